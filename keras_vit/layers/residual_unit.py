"""The bottleneck unit of a ResNet with weight standardisation and group norms."""

from dataclasses import dataclass

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.nearest import nearest_names
from keras_vit.layers.patches import as_pair
from keras_vit.layers.weight_standardized_conv import WeightStandardizedConv

GROUPS = 32
EXPANSION = 4


@dataclass(frozen=True)
class StemRule:
    """The epsilons of a published ResNet: its convolutions' (two places) and its norms'."""

    variance_epsilon: float
    deviation_epsilon: float
    norm_epsilon: float


# vision_transformer's models_resnet.py with Flax's GroupNorm; timm's vision_transformer_hybrid.py,
# whose StdConv2dSame takes the deviation as batch normalisation does, with PyTorch's GroupNorm.
STEM_RULES = {
    "google": StemRule(variance_epsilon=0.0, deviation_epsilon=1e-5, norm_epsilon=1e-6),
    "timm": StemRule(variance_epsilon=1e-8, deviation_epsilon=0.0, norm_epsilon=1e-5),
}


def get_stem_rule(name):
    """The rule called `name`: `"google"` or `"timm"`.

    Raises:
        ValueError: For an unknown name.

    Example:

    >>> get_stem_rule("timm").norm_epsilon
    1e-05
    """
    if name not in STEM_RULES:
        raise ValueError(
            f"Unknown rule of a stem. {nearest_names(name, STEM_RULES)} Received: rule={name!r}"
        )
    return STEM_RULES[name]


def convolution(filters, kernel_size, strides=1, *, rule, name, **options):
    """A weight-standardised convolution by the rule called `rule`."""
    rule = get_stem_rule(rule)
    return WeightStandardizedConv(
        filters,
        kernel_size,
        strides,
        variance_epsilon=rule.variance_epsilon,
        deviation_epsilon=rule.deviation_epsilon,
        name=name,
        **options,
    )


def group_norm(*, rule, name, gamma_initializer="ones", **options):
    """A group norm over the channels by the rule called `rule`."""
    return keras.layers.GroupNormalization(
        GROUPS,
        axis=-1,
        epsilon=get_stem_rule(rule).norm_epsilon,
        gamma_initializer=gamma_initializer,
        name=name,
        **options,
    )


@keras.saving.register_keras_serializable(package="keras_vit")
class ResidualUnit(CompositeLayer):
    """A bottleneck unit: `relu(shortcut + norm3(conv3(…)))`.

    Convolutions of 1x1 to `width`, 3x3 with the strides, and 1x1 to `4 * width` channels
    ([He et al., 2015](https://arxiv.org/abs/1512.03385), figure 5), each weight-standardised and
    followed by a group norm of 32 groups, the first two by a ReLU. The shortcut is the input, or
    its 1x1 projection and a group norm where strides or channels change. The last norm's scale
    starts at zero, so that a new unit hands on its shortcut.

    Args:
        width: Channels of the 3x3 convolution, a multiple of 32.
        strides: Steps of the 3x3 convolution in pixels: an int, or (vertical, horizontal).
        rule: Whose epsilons: `"google"` (google-research/vision_transformer) or `"timm"`.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), 4 * width)`.

    Raises:
        ValueError: If `width` is no positive multiple of 32, or for an unknown rule.

    Example:

    >>> import numpy as np
    >>> unit = ResidualUnit(32, strides=2)
    >>> unit(np.zeros((2, 8, 8, 64), "float32")).shape == (2, 4, 4, 128)
    True
    """

    def __init__(self, width, strides=1, *, rule="google", **kwargs):
        super().__init__(**kwargs)
        check_width(width)
        self.width = width
        self.strides = as_pair(strides, "strides")
        self.rule = rule
        common = {"rule": rule, **self.inner_options}
        self.conv1 = convolution(width, 1, name="conv1", **common)
        self.norm1 = group_norm(name="norm1", **common)
        self.conv2 = convolution(width, 3, self.strides, name="conv2", **common)
        self.norm2 = group_norm(name="norm2", **common)
        self.conv3 = convolution(EXPANSION * width, 1, name="conv3", **common)
        self.norm3 = group_norm(name="norm3", gamma_initializer="zeros", **common)
        self.projection = self.projection_norm = None

    def build(self, input_shape):
        branch = (self.conv1, self.norm1, self.conv2, self.norm2, self.conv3, self.norm3)
        build_chain(branch, input_shape)
        if self.strides != (1, 1) or input_shape[-1] != EXPANSION * self.width:
            common = {"rule": self.rule, **self.inner_options}
            self.projection = convolution(
                EXPANSION * self.width, 1, self.strides, name="projection", **common
            )
            self.projection_norm = group_norm(name="projection_norm", **common)
            build_chain((self.projection, self.projection_norm), input_shape)

    def call(self, inputs):
        shortcut = inputs
        if self.projection is not None:
            shortcut = self.projection_norm(self.projection(inputs))
        branch = ops.relu(self.norm1(self.conv1(inputs)))
        branch = ops.relu(self.norm2(self.conv2(branch)))
        return ops.relu(shortcut + self.norm3(self.conv3(branch)))

    def compute_output_shape(self, input_shape):
        shape = self.conv2.compute_output_shape(input_shape)
        return (*shape[:3], EXPANSION * self.width)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "strides": self.strides,
            "rule": self.rule,
        }


def check_width(width):
    """Raises a ValueError if the group norms cannot divide `width` channels."""
    if width < GROUPS or width % GROUPS:
        raise ValueError(
            f"`width` must be a positive multiple of {GROUPS}, the groups of the norms. "
            f"Received: width={width}"
        )


def build_chain(layers, shape):
    """Builds `layers`, each for the output of the one before; returns the last output's shape."""
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return shape
