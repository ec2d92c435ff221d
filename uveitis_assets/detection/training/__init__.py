"""Training of a lesion detector."""
