"""The layer that turns raw pixels into what the network was trained on."""

import functools

import keras
from keras import ops

from keras_vit.layers.one_pass import in_one_pass, stays_in_this_process
from keras_vit.layers.resampling import INTERPOLATIONS

CROP_MODES = ("center", "squash")


@keras.saving.register_keras_serializable(package="keras_vit")
class ImagePreprocessing(keras.layers.Layer):
    """Scales raw 0..255 pixels to `(pixel / 255 - mean) / std`.

    It computes in float32 whatever the dtype policy and hands on the policy's compute dtype. It
    also carries how images of other sizes are brought to the model's size for evaluation,
    prediction and export, so that a saved model knows how it wants its images; the layer itself
    does not resize.

    Args:
        mean: Mean of each channel, in units of 0..1: a sequence, or one number for all channels.
        std: Standard deviation of each channel, in units of 0..1, likewise.
        crop_fraction: Share of the resized image's side that the centre crop keeps, in (0, 1]:
            the image is resized to `floor(size / crop_fraction)` pixels, then cropped to `size`.
        crop_mode: `"center"` keeps the aspect ratio (the shorter side is resized), `"squash"`
            resizes both sides.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.

    Input shape:
        `(batch, height, width, channels)`, any numeric dtype.

    Output shape:
        The same, in the compute dtype of the policy.

    Raises:
        ValueError: If `std` is not positive, `crop_fraction` is outside (0, 1], a name is unknown,
            or the images have another number of channels than `mean`.

    Example:

    >>> import numpy as np
    >>> layer = ImagePreprocessing(mean=0.5, std=0.5)
    >>> pixels = np.array([0, 255], "uint8").reshape(1, 1, 2, 1)
    >>> np.asarray(layer(pixels)).ravel().tolist()
    [-1.0, 1.0]
    """

    def __init__(
        self,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        *,
        crop_fraction=1.0,
        crop_mode="center",
        interpolation="bicubic",
        **kwargs,
    ):
        # Autocast would round pixels to bfloat16 before they are scaled.
        super().__init__(autocast=False, **kwargs)
        mean, std = _per_channel(mean), _per_channel(std)
        check_scaling(mean, std)
        channels = max(len(mean), len(std))
        self.mean, self.std = (x if len(x) == channels else x * channels for x in (mean, std))
        check_evaluation_policy(crop_fraction, crop_mode, interpolation)
        self.crop_fraction = float(crop_fraction)
        self.crop_mode = crop_mode
        self.interpolation = interpolation

    def build(self, input_shape):
        if len(self.mean) > 1 and input_shape[-1] not in (None, len(self.mean)):
            raise ValueError(
                f"`mean` and `std` are of {len(self.mean)} channels. Received images of the shape "
                f"{tuple(input_shape)}: pass values of as many channels as they have"
            )

    def call(self, images):
        # One multiply-add: x * scale + offset.
        scale = tuple(1.0 / (255.0 * std) for std in self.std)
        offset = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        scaled = _scaled(scale, offset)
        if stays_in_this_process():
            scaled = in_one_pass(scaled)
        return ops.cast(scaled(ops.cast(images, "float32")), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "mean": self.mean,
            "std": self.std,
            "crop_fraction": self.crop_fraction,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
        }


@functools.lru_cache(maxsize=16)
def _scaled(scale, offset):
    """The multiply-add of all layers with these values."""

    def scaled(images):
        if set(scale) != {1.0}:
            images = images * ops.convert_to_tensor(scale, "float32")
        if set(offset) != {0.0}:
            images = images + ops.convert_to_tensor(offset, "float32")
        return images

    return scaled


def check_scaling(mean, std):
    """Raises a ValueError that names `mean` or `std` if they cannot scale pixels."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3):
            raise ValueError(f"`{name}` must have 1 or 3 values. Received: {name}={values}")
    if not min(std) > 0:
        raise ValueError(f"`std` must be positive. Received: std={std}")


def check_evaluation_policy(crop_fraction, crop_mode, interpolation):
    """Raises a ValueError that names the argument that is out of its range."""
    if not 0 < crop_fraction <= 1:
        raise ValueError(
            f"`crop_fraction` must be in (0, 1]. Received: crop_fraction={crop_fraction}"
        )
    for name, value, known in (
        ("crop_mode", crop_mode, CROP_MODES),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}"
            )


def _per_channel(value):
    return tuple(map(float, value)) if hasattr(value, "__len__") else (float(value),)
