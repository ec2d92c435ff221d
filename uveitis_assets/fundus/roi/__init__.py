"""Masks of the visible retina: threshold, ultra-widefield, SAM 2, and the choice among them."""
