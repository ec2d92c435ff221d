"""Converts COCO, YOLO, DOTA, CVAT, LabelMe and Label Studio files into a lane's label files."""
