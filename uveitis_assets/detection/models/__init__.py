"""Networks of the lesion detectors: backbones, pyramids and heads; no files, no training."""
