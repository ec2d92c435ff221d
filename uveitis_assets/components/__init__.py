"""What a defs.yaml can instantiate."""
