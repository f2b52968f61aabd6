"""Vision Transformers in Keras 3: published weights in, fine-tuned, SavedModel out."""

import importlib
import os
from typing import TYPE_CHECKING

# TensorFlow reads it when it is imported. It is its default where the CPU has AVX-512 VNNI; with
# AVX2 training is 1.3 times as fast with it (benchmarks/results/train.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from keras_vit import checkpoints, layers, models, zoo
from keras_vit._version import __version__
from keras_vit.checkpoints import load_checkpoint, save_checkpoint
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
    from_checkpoint,
    list_models,
    list_weights,
    resize,
)

if TYPE_CHECKING:
    from keras_vit import data, export, finetune, inspection, serving
    from keras_vit.export import export_saved_model
    from keras_vit.inspection import attention_maps, attention_rollout, features

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

# What building and loading a model does not need is imported when it is first asked for.
_LAZY = {
    "attention_maps": "inspection",
    "attention_rollout": "inspection",
    "export_saved_model": "export",
    "features": "inspection",
    "data": None,
    "export": None,
    "finetune": None,
    "inspection": None,
    "serving": None,
}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = _LAZY[name]
    module = importlib.import_module(f"{__name__}.{folder or name}")
    return module if folder is None else getattr(module, name)


def __dir__():
    return sorted({*globals(), *__all__})
