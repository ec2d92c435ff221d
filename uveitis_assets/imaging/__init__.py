"""Geometry, tiling, encodings, colour spaces and drawing; knows no lane and no registration."""
