"""Dagster wiring that every family shares: partition runs, checks, automation, previews, lane names."""
