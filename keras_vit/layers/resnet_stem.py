"""The ResNet of a hybrid Vision Transformer."""

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.residual_unit import (
    EXPANSION,
    ResidualUnit,
    build_chain,
    check_width,
    convolution,
    group_norm,
)


@keras.saving.register_keras_serializable(package="keras_vit")
class ResNetStem(CompositeLayer):
    """Turns images into the feature maps that a hybrid Vision Transformer cuts into patches.

    A 7x7 convolution with stride 2, a group norm, ReLU and 3x3 max pooling with stride 2 (the
    root block); then stages of bottleneck units, each stage after the first twice as wide at half
    the resolution ([Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929), section 3.1, and
    [Steiner et al., 2021](https://arxiv.org/abs/2106.10270)). Convolutions are weight-standardised
    and pad as TensorFlow's "same"; norms have 32 groups.

    Args:
        blocks: Number of units of each stage: `(3, 4, 9)` is R50, `(2, 2, 2, 2)` R26, `()` the
            root block alone, R.
        width: Channels of the root block and of the first stage's bottlenecks, a multiple of 32.
        rule: Whose epsilons: `"google"` (google-research/vision_transformer) or `"timm"`.

    Input shape:
        `(batch, height, width, 3)`.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), channels)`, where `stride` and
        `channels` are the layer's properties.

    Raises:
        ValueError: If `blocks` has a stage without units, `width` is no positive multiple of 32,
            or for an unknown rule.

    Example:

    >>> import numpy as np
    >>> stem = ResNetStem(blocks=(1, 2), width=32)
    >>> stem.stride, stem.channels
    (8, 256)
    >>> stem(np.zeros((2, 32, 64, 3), "float32")).shape == (2, 4, 8, 256)
    True
    """

    def __init__(self, blocks, width=64, *, rule="google", **kwargs):
        super().__init__(**kwargs)
        if any(units < 1 for units in blocks):
            raise ValueError(
                "`blocks` must give each stage at least one unit; `()` is the root block alone. "
                f"Received: blocks={tuple(blocks)}"
            )
        check_width(width)
        self.blocks = tuple(blocks)
        self.width = width
        self.rule = rule
        common = {"rule": rule, **self.inner_options}
        self.root_conv = convolution(width, 7, 2, name="root_conv", **common)
        self.root_norm = group_norm(name="root_norm", **common)
        self.root_pool = keras.layers.MaxPooling2D(
            3,
            strides=2,
            padding="same",
            data_format="channels_last",
            name="root_pool",
            **self.inner_options,
        )
        self.units = [
            ResidualUnit(
                width * 2**stage,
                strides=2 if stage > 0 and unit == 0 else 1,
                name=f"stage_{stage}_unit_{unit}",
                **common,
            )
            for stage, units in enumerate(self.blocks)
            for unit in range(units)
        ]

    @property
    def stride(self):
        """Pixels of the image between neighbours of the feature map."""
        return stem_stride(self.blocks)

    @property
    def channels(self):
        """Channels of the feature map."""
        return stem_channels(self.blocks, self.width)

    def build(self, input_shape):
        build_chain((self.root_conv, self.root_norm, self.root_pool, *self.units), input_shape)

    def call(self, images):
        features = self.root_pool(ops.relu(self.root_norm(self.root_conv(images))))
        for unit in self.units:
            features = unit(features)
        return features

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        sides = (None if side is None else -(-side // self.stride) for side in (height, width))
        return (batch, *sides, self.channels)

    def get_config(self):
        return {
            **super().get_config(),
            "blocks": self.blocks,
            "width": self.width,
            "rule": self.rule,
        }


def stem_stride(blocks):
    """Pixels of the image between neighbours of the feature map.

    Example:

    >>> stem_stride(()), stem_stride((3, 4, 9))
    (4, 16)
    """
    return 4 * 2 ** max(0, len(blocks) - 1)


def stem_channels(blocks, width=64):
    """Channels of the feature map.

    Example:

    >>> stem_channels(()), stem_channels((3, 4, 9))
    (64, 1024)
    """
    return EXPANSION * width * 2 ** (len(blocks) - 1) if blocks else width
