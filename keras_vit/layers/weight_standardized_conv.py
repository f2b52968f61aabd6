"""A convolution that normalises its own kernel."""

import keras
from keras import ops

from keras_vit.layers.one_pass import widened
from keras_vit.layers.patches import as_pair


@keras.saving.register_keras_serializable(package="keras_vit")
class WeightStandardizedConv(keras.layers.Layer):
    """A convolution without bias whose kernel is standardised at each call.

    Weight standardisation ([Qiao et al., 2019](https://arxiv.org/abs/1903.10520)): of each filter
    `(kernel - mean) / (sqrt(variance + variance_epsilon) + deviation_epsilon)`, mean and variance
    over height, width and input channels. It is computed in float32 at least. The padding is
    TensorFlow's "same": the odd row or column goes to the end.

    Args:
        filters: Number of output channels.
        kernel_size: Size of the kernel in pixels: an int, or (height, width).
        strides: Steps of the kernel in pixels, likewise.
        variance_epsilon: Added to the variance of a filter.
        deviation_epsilon: Added to the standard deviation of a filter.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.

    Raises:
        ValueError: If `filters`, `kernel_size` or `strides` is not positive, an epsilon is
            negative, or both are zero.

    Example:

    >>> import numpy as np
    >>> layer = WeightStandardizedConv(16, kernel_size=7, strides=2)
    >>> layer(np.zeros((2, 33, 32, 3), "float32")).shape == (2, 17, 16, 16)
    True
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        *,
        variance_epsilon=0.0,
        deviation_epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if filters < 1:
            raise ValueError(f"`filters` must be positive. Received: filters={filters}")
        epsilons = (variance_epsilon, deviation_epsilon)
        if min(epsilons) < 0 or max(epsilons) == 0:
            raise ValueError(
                "`variance_epsilon` and `deviation_epsilon` must not be negative, nor both zero. "
                f"Received: variance_epsilon={variance_epsilon}, "
                f"deviation_epsilon={deviation_epsilon}"
            )
        self.filters = filters
        self.kernel_size = as_pair(kernel_size, "kernel_size")
        self.strides = as_pair(strides, "strides")
        self.variance_epsilon = variance_epsilon
        self.deviation_epsilon = deviation_epsilon

    def build(self, input_shape):
        # Autocast would round the kernel before it is standardised.
        self.kernel = self.add_weight(
            shape=(*self.kernel_size, input_shape[-1], self.filters),
            initializer="lecun_normal",
            autocast=False,
            name="kernel",
        )

    def standardized_kernel(self):
        """The kernel that the images meet, in float32 at least."""
        kernel = widened(ops.convert_to_tensor(self.kernel))
        # Not ops.moments, which on PyTorch subtracts squares and loses the variance of a far mean.
        centred = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        variance = ops.mean(ops.square(centred), axis=(0, 1, 2), keepdims=True)
        deviation = ops.sqrt(variance + self.variance_epsilon)
        return centred / (deviation + self.deviation_epsilon)

    def call(self, images):
        return ops.conv(
            images,
            ops.cast(self.standardized_kernel(), self.compute_dtype),
            strides=self.strides,
            padding="same",
            data_format="channels_last",
        )

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        sides = (
            None if side is None else -(-side // stride)
            for side, stride in zip((height, width), self.strides, strict=True)
        )
        return (batch, *sides, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "variance_epsilon": self.variance_epsilon,
            "deviation_epsilon": self.deviation_epsilon,
        }
