"""Models for serving."""

from keras_vit.export.limits import DEFAULT_LIMITS, ImageLimits
from keras_vit.export.saved_model import export_saved_model

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "export_saved_model"]
