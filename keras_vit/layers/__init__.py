"""The Keras layers of a Vision Transformer."""

from keras_vit.layers.attention_pooling import AttentionPooling
from keras_vit.layers.drop_path import DropPath
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.layers.layer_scale import LayerScale
from keras_vit.layers.mlp import MLP
from keras_vit.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_vit.layers.patch_dropout import PatchDropout
from keras_vit.layers.patch_encoder import PatchEncoder
from keras_vit.layers.patches import Patches
from keras_vit.layers.relative_position_bias import RelativePositionBias
from keras_vit.layers.residual_unit import ResidualUnit
from keras_vit.layers.resnet_stem import ResNetStem
from keras_vit.layers.token_merging_block import TokenMergingBlock
from keras_vit.layers.token_pooling import TokenPooling
from keras_vit.layers.token_pruning_block import TokenPruningBlock
from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.layers.weight_standardized_conv import WeightStandardizedConv

__all__ = [
    "MLP",
    "AttentionPooling",
    "DropPath",
    "ImagePreprocessing",
    "LayerScale",
    "MultiHeadSelfAttention",
    "PatchDropout",
    "PatchEncoder",
    "Patches",
    "RelativePositionBias",
    "ResNetStem",
    "ResidualUnit",
    "TokenMergingBlock",
    "TokenPooling",
    "TokenPruningBlock",
    "TransformerBlock",
    "WeightStandardizedConv",
]
