"""Looking inside a model: its features, its attention, and attention drawn over a picture."""

from keras_vit.inspection.attention import attention_maps, attention_rollout, patch_attention
from keras_vit.inspection.features import features
from keras_vit.inspection.overlay import (
    draw_overlay,
    draw_sheet,
    seen_box,
    shrink_image,
    write_picture,
)

__all__ = [
    "attention_maps",
    "attention_rollout",
    "draw_overlay",
    "draw_sheet",
    "features",
    "patch_attention",
    "seen_box",
    "shrink_image",
    "write_picture",
]
