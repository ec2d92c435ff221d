"""Geometry, tiling, encodings, colour spaces and drawing of images of any kind."""
