"""Assets, checks and automation of a fundus lane."""
