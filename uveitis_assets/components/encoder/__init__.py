"""The asset of an encoder that learns from images without labels."""
