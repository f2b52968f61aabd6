"""What a server needs: the files beside a model, checks of a model, checks of a running server."""

from keras_vit.serving.model_checks import Verdict, check_saved_model
from keras_vit.serving.serve_check import ServeCheckReport, serve_check

__all__ = ["ServeCheckReport", "Verdict", "check_saved_model", "serve_check"]
