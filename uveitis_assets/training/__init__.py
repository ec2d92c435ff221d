"""One training loop and what surrounds it; knows no lane, label or image type."""
