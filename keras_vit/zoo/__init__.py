"""Models by name or by checkpoint."""

from keras_vit.zoo.builders import (
    ViTB8,
    ViTB16,
    ViTB32,
    ViTg14,
    ViTH14,
    ViTL16,
    ViTL32,
    ViTS8,
    ViTS16,
    ViTS32,
    ViTTi16,
    checkpoint_config,
    create,
    from_checkpoint,
    list_models,
    weights_path,
)
from keras_vit.zoo.catalog import PublishedWeights, list_weights
from keras_vit.zoo.download import DownloadError, fetch_weights
from keras_vit.zoo.resizing import resize

__all__ = [
    "DownloadError",
    "PublishedWeights",
    "ViTB8",
    "ViTB16",
    "ViTB32",
    "ViTH14",
    "ViTL16",
    "ViTL32",
    "ViTS8",
    "ViTS16",
    "ViTS32",
    "ViTTi16",
    "ViTg14",
    "checkpoint_config",
    "create",
    "fetch_weights",
    "from_checkpoint",
    "list_models",
    "list_weights",
    "resize",
    "weights_path",
]
