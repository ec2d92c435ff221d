"""Labelled tiles: splits, sampling, augmentation, tile cache, loader."""
