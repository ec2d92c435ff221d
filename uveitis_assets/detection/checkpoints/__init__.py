"""Detector checkpoints: loading, earlier formats, lineage, the weights of a fold."""
