"""Lesion labels: readers, class maps, COCO files, overlays."""
