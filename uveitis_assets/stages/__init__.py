"""Resumable batches of items: index, journal, ownership, stale batches."""
