"""Vision Transformers in Keras 3: published weights in, fine-tuned, SavedModel out."""

import os
from typing import TYPE_CHECKING

# TensorFlow reads it when it is imported. It is its default where the CPU has AVX-512 VNNI; with
# AVX2 training is 1.3 times as fast with it (benchmarks/results/train_avx2.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from keras_vit import layers, models, zoo
from keras_vit._version import __version__
from keras_vit.lazy import lazy_names
from keras_vit.zoo import (
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
    from keras_vit import checkpoints, data, export, finetune, inspection, serving
    from keras_vit.checkpoints import load_checkpoint, save_checkpoint
    from keras_vit.export import export_saved_model
    from keras_vit.inspection import attention_maps, attention_rollout, features
    from keras_vit.zoo import from_checkpoint, list_weights, resize

__all__ = [
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
    "__version__",
    "attention_maps",
    "attention_rollout",
    "checkpoints",
    "create",
    "data",
    "export",
    "export_saved_model",
    "features",
    "finetune",
    "from_checkpoint",
    "inspection",
    "layers",
    "list_models",
    "list_weights",
    "load_checkpoint",
    "models",
    "resize",
    "save_checkpoint",
    "serving",
    "zoo",
]

# What building a model does not need is imported when it is first asked for.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoints": (),
        "checkpoints.loading": ("load_checkpoint",),
        "checkpoints.saving": ("save_checkpoint",),
        "data": (),
        "export": (),
        "export.saved_model": ("export_saved_model",),
        "finetune": (),
        "inspection": (),
        "inspection.attention": ("attention_maps", "attention_rollout"),
        "inspection.features": ("features",),
        "serving": (),
        "zoo.catalog": ("list_weights",),
        "zoo.pretrained": ("from_checkpoint",),
        "zoo.resizing": ("resize",),
    },
)
