"""Lesion masks: their files, which pixels are lesion, and the lesions that they hold."""
