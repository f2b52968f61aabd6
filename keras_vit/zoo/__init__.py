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
    "checkpoint_config",
    "create",
    "from_checkpoint",
    "list_models",
]
