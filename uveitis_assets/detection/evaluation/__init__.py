"""Metrics of detections per image after merging: COCO AP, FROC, confusion, intervals over patients."""
