"""Assets, checks and automation of a lesion detector."""
