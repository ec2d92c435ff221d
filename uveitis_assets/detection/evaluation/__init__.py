"""How good detections are, judged per image after merging: COCO AP, FROC, confusion, intervals over patients."""
