"""The architecture of Vision Transformers."""

from keras_vit.models.config import VisionTransformerConfig
from keras_vit.models.counts import count_flops, count_macs, count_parameters
from keras_vit.models.device_layout import layout_map
from keras_vit.models.even_tokens import with_even_tokens
from keras_vit.models.inference import inference_function
from keras_vit.models.preprocessing import PRESETS, Preprocessing
from keras_vit.models.unread_tokens import without_unread_tokens
from keras_vit.models.variants import VARIANTS
from keras_vit.models.vision_transformer import (
    added_layers,
    config_of,
    vision_transformer,
    whole_config_of,
)

__all__ = [
    "PRESETS",
    "VARIANTS",
    "Preprocessing",
    "VisionTransformerConfig",
    "added_layers",
    "config_of",
    "count_flops",
    "count_macs",
    "count_parameters",
    "inference_function",
    "layout_map",
    "vision_transformer",
    "whole_config_of",
    "with_even_tokens",
    "without_unread_tokens",
]
