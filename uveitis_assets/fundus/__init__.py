"""From landed fundus images to tiles: adapters, ledger, manifest, splits, ROI, crops, colour, tiling."""
