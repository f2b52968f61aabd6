"""Models by name or by checkpoint."""

from typing import TYPE_CHECKING

from keras_vit.lazy import lazy_names
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
    create,
    list_models,
)

if TYPE_CHECKING:
    from keras_vit.zoo.catalog import PublishedWeights, list_weights
    from keras_vit.zoo.download import DownloadError, fetch_weights
    from keras_vit.zoo.pretrained import checkpoint_config, from_checkpoint, weights_path
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

# Random weights need none of these.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "catalog": ("PublishedWeights", "list_weights"),
        "download": ("DownloadError", "fetch_weights"),
        "pretrained": ("checkpoint_config", "from_checkpoint", "weights_path"),
        "resizing": ("resize",),
    },
)
