"""Former place of weights files and their lineage, for scripts that import it."""

from uveitis_assets.detection.checkpoints.lineage import weights_lineage
from uveitis_assets.training.weights_files import parent_of, read_weights_file, save_weights

__all__ = ["parent_of", "read_weights_file", "save_weights", "weights_lineage"]
