"""Vision Transformers in Keras 3: published weights in, fine-tuned, SavedModel out."""

from keras_vit import checkpoints, data, export, finetune, inspection, layers, models, zoo
from keras_vit._version import __version__
from keras_vit.checkpoints import load_checkpoint, save_checkpoint
from keras_vit.export import export_saved_model
from keras_vit.inspection import attention_maps, attention_rollout, features
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
    "zoo",
]
