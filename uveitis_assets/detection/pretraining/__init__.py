"""Pretraining of encoders without labels, by a masked autoencoder."""
