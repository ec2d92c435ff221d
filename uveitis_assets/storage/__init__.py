"""Places of all artefacts, atomic writes and locks."""
