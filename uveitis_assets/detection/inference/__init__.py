"""From tiles to detections of whole images: prediction, merging, files, overlays."""
