"""One training loop and what it needs, independent of lanes, labels and image types."""
