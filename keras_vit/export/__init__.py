"""Models for serving."""

from keras_vit.export.limits import ImageLimits
from keras_vit.export.saved_model import export_saved_model

__all__ = ["ImageLimits", "export_saved_model"]
