"""Lesion detectors: data, models, training, inference, merging and evaluation, without Dagster."""
