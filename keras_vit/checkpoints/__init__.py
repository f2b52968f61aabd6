"""Published weights: formats, names, position grids, and the report on what was loaded."""

from keras_vit.checkpoints.checkpoint import Checkpoint, inspect_checkpoint, open_checkpoint
from keras_vit.checkpoints.loading import load_checkpoint
from keras_vit.checkpoints.positions import resample_positions
from keras_vit.checkpoints.reading import CheckpointError
from keras_vit.checkpoints.report import LoadReport
from keras_vit.checkpoints.saving import save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadReport",
    "inspect_checkpoint",
    "load_checkpoint",
    "open_checkpoint",
    "resample_positions",
    "save_checkpoint",
]
