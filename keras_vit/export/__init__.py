"""Models for serving."""

from keras_vit.export.checks import Verdict, check_saved_model
from keras_vit.export.limits import DEFAULT_LIMITS, ImageLimits
from keras_vit.export.saved_model import export_saved_model
from keras_vit.export.serve_check import ServeCheckReport, serve_check

__all__ = [
    "DEFAULT_LIMITS",
    "ImageLimits",
    "ServeCheckReport",
    "Verdict",
    "check_saved_model",
    "export_saved_model",
    "serve_check",
]
