"""Models for serving."""

from keras_vit.export.engines import FORMATS, export_engine, load_engine
from keras_vit.export.limits import DEFAULT_LIMITS, ImageLimits
from keras_vit.export.pruning import prune
from keras_vit.export.saved_model import export_saved_model

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "ImageLimits",
    "export_engine",
    "export_saved_model",
    "load_engine",
    "prune",
]
