"""Predictions as other tools read them (COCO, YOLO, Pascal VOC, FiftyOne, CVAT), and detectors as ONNX files."""
