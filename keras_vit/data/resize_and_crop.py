"""Resizing and cropping of small images for evaluation, on the device."""

import keras
from keras import ops

from keras_vit.data.image_operations import resample
from keras_vit.data.images import evaluation_geometry
from keras_vit.layers.image_preprocessing import check_evaluation_policy
from keras_vit.layers.patches import as_pair
from keras_vit.layers.resampling import resampling_matrix


@keras.saving.register_keras_serializable(package="keras_vit")
class ResizeAndCrop(keras.layers.Layer):
    """Brings small images to the model's size as part of its graph, by an evaluation policy.

    Each image is resized and cropped as `ImagePreprocessing` says; training has `Augment`. As
    resampling an axis is a matrix product, a crop of the resized image is a product with some
    rows of the matrix: the resized image is never made.

    It computes in float32 whatever the dtype policy.

    Args:
        image_size: Side, or `(height, width)`, of the output, in pixels.
        crop_fraction: Of the evaluation policy, see `ImagePreprocessing`.
        crop_mode: Of the evaluation policy: `"center"` or `"squash"`.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.

    Input shape:
        `(batch, height, width, channels)`, any numeric dtype, 0 to 255; only the batch may be
        unknown.

    Output shape:
        `(batch, *image_size, channels)`, float32, 0 to 255.

    Raises:
        ValueError: If a size of the input is unknown, or an argument is outside its range.

    Example:

    >>> import numpy as np
    >>> tuple(ResizeAndCrop(16)(np.zeros((2, 8, 12, 3), "uint8")).shape)
    (2, 16, 16, 3)
    """

    def __init__(
        self,
        image_size,
        *,
        crop_fraction=1.0,
        crop_mode="center",
        interpolation="bilinear",
        **kwargs,
    ):
        # Autocast would round pixels to bfloat16 before they are resized.
        super().__init__(autocast=False, **kwargs)
        self.image_size = as_pair(image_size, "image_size")
        check_evaluation_policy(crop_fraction, crop_mode, interpolation)
        self.crop_fraction = float(crop_fraction)
        self.crop_mode = crop_mode
        self.interpolation = interpolation

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "Images must come as (batch, height, width, channels) with only the batch "
                f"unknown. Received: input_shape={tuple(input_shape)}"
            )
        self.built = True

    def call(self, images):
        source_size = images.shape[1:3]
        *resized_size, top, left = evaluation_geometry(
            *source_size,
            self.image_size,
            crop_fraction=self.crop_fraction,
            crop_mode=self.crop_mode,
        )
        matrices = []
        for axis, first in enumerate((top, left)):
            matrix = resampling_matrix(source_size[axis], resized_size[axis], self.interpolation)
            matrices.append(matrix[first : first + self.image_size[axis]].astype("float32"))
        return resample(ops.cast(images, "float32"), *matrices)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.image_size, input_shape[3])

    def compute_output_spec(self, images):
        return keras.KerasTensor(self.compute_output_shape(images.shape), dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "crop_fraction": self.crop_fraction,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
        }
