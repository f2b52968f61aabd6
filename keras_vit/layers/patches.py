"""The layer that cuts images into patches."""

from numbers import Integral

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_vit")
class Patches(keras.layers.Layer):
    """Cuts images into non-overlapping square or rectangular patches.

    Patches follow each other row by row over the grid; inside a patch the pixels follow row by
    row, channels last. A linear layer on top equals a convolution with the patch as kernel and
    stride, its kernel reshaped to `(height * width * channels, filters)`
    ([Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929), equation 1).

    Args:
        patch_size: Side of a patch in pixels: an int, or (height, width).

    Input shape:
        `(batch, height, width, channels)`; height and width are multiples of the patch's.

    Output shape:
        `(batch, height / patch height * width / patch width,
        patch height * patch width * channels)`.

    Raises:
        ValueError: If `patch_size` is not positive or an image is no multiple of it.

    Example:

    >>> import numpy as np
    >>> Patches(16)(np.zeros((2, 224, 160, 3), "float32")).shape == (2, 140, 768)
    True
    """

    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = as_pair(patch_size, "patch_size")

    def call(self, images):
        # ops.shape keeps sizes that are known when the graph is built as plain ints.
        batch, height, width, channels = ops.shape(images)
        if isinstance(height, int) and isinstance(width, int):
            self.grid(height, width)
            batch = -1  # Otherwise what does not fit would be taken for more images.
        patch_height, patch_width = self.patch_size
        rows, columns = height // patch_height, width // patch_width
        images = ops.reshape(images, (batch, rows, patch_height, columns, patch_width * channels))
        images = ops.transpose(images, (0, 1, 3, 2, 4))
        return ops.reshape(images, (-1, rows * columns, patch_height * patch_width * channels))

    def grid(self, height, width):
        """Rows and columns of patches in an image of `height` x `width` pixels."""
        for side, size, patch in zip(
            ("height", "width"), (height, width), self.patch_size, strict=True
        ):
            if size < patch or size % patch:
                raise ValueError(
                    f"The image's {side} must be a positive multiple of the patch's ({patch} px). "
                    f"Received: {height}x{width} px; the nearest that fits is "
                    f"{max(1, round(size / patch)) * patch} px"
                )
        return height // self.patch_size[0], width // self.patch_size[1]

    def compute_output_shape(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                "`Patches` takes images of shape (batch, height, width, channels). "
                f"Received: shape={tuple(input_shape)}"
            )
        batch, height, width, channels = input_shape
        size = None if channels is None else self.patch_size[0] * self.patch_size[1] * channels
        if height is None or width is None:
            return (batch, None, size)
        rows, columns = self.grid(height, width)
        return (batch, rows * columns, size)

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


def as_pair(value, argument):
    """`value` as two positive ints (height, width), or an error that names `argument`.

    Example:

    >>> as_pair(16, "patch_size")
    (16, 16)
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < 1:
        raise ValueError(
            f"`{argument}` must be a positive int or a pair of them (height, width). "
            f"Received: {argument}={value!r}"
        )
    return int(pair[0]), int(pair[1])


def as_count(value, argument):
    """`value` as an int of at least 0, or an error that names `argument`.

    Example:

    >>> as_count(0, "prefix_tokens")
    0
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(
            f"`{argument}` must be an int of at least 0. Received: {argument}={value!r}"
        )
    return int(value)


def check_patches_left(layer, input_shape):
    """Raises a ValueError where a layer's `prefix_tokens` are all tokens that it is given."""
    if input_shape[1] is not None and input_shape[1] <= layer.prefix_tokens:
        raise ValueError(
            f"{layer.name!r} needs patches after the `prefix_tokens`. Received: "
            f"shape={tuple(input_shape)}, prefix_tokens={layer.prefix_tokens}"
        )
