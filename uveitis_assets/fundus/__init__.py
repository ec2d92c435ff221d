"""From landed fundus images to tiles: ROI, crops, colour, reference colours, contact sheets."""
