"""Predictions as other tools read them (COCO, YOLO, VOC, FiftyOne, CVAT); detectors as ONNX files."""
