"""Training labels expanded with confident detections."""
