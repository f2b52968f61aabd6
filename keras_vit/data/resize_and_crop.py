"""Resizing, random crops and flips of small images, on the device."""

import keras
import numpy as np
from keras import ops

from keras_vit.data.augmentation import resize_pair, size_pair
from keras_vit.data.image_operations import resample
from keras_vit.data.images import covering_size, evaluation_geometry
from keras_vit.layers.image_preprocessing import check_evaluation_policy
from keras_vit.layers.resampling import resampling_matrix


@keras.saving.register_keras_serializable(package="keras_vit")
class ResizeAndCrop(keras.layers.Layer):
    """Brings small images to the model's size as part of the training graph.

    In training each image is resized to cover `resize_size`, cropped at random to `image_size`
    and mirrored at random; otherwise it is resized and cropped by the evaluation policy. As
    resampling an axis is a matrix product, a crop of the resized image is a product with some
    rows of the matrix: each image gets its own rows, and the resized image is never made.

    It computes in float32 whatever the dtype policy.

    Args:
        image_size: Side, or `(height, width)`, of the output, in pixels.
        resize_size: Side, or `(height, width)`, that is covered before the random crop; None: 8/7
            of `image_size`.
        crop_fraction: Of the evaluation policy, see `ImagePreprocessing`.
        crop_mode: Of the evaluation policy: `"center"` or `"squash"`.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.
        horizontal_flip: Whether every second image, at random, is mirrored in training.
        seed: Optional int, for a reproducible sequence.

    Input shape:
        `(batch, height, width, channels)`, any numeric dtype, 0 to 255; only the batch may be
        unknown.

    Output shape:
        `(batch, *image_size, channels)`, float32, 0 to 255.

    Raises:
        ValueError: If `resize_size` is below `image_size`, a size of the input is unknown, or an
            argument is outside its range.

    Example:

    >>> layer = ResizeAndCrop(16, seed=0)
    >>> tuple(layer(np.zeros((2, 8, 8, 3), "uint8"), training=True).shape)
    (2, 16, 16, 3)
    """

    def __init__(
        self,
        image_size,
        *,
        resize_size=None,
        crop_fraction=1.0,
        crop_mode="center",
        interpolation="bilinear",
        horizontal_flip=True,
        seed=None,
        **kwargs,
    ):
        # Autocast would round pixels to bfloat16 before they are resized.
        super().__init__(autocast=False, **kwargs)
        self.image_size = size_pair(image_size)
        self.resize_size = None if resize_size is None else size_pair(resize_size)
        self._resize_size = resize_pair(self.resize_size, self.image_size)
        check_evaluation_policy(crop_fraction, crop_mode, interpolation)
        self.crop_fraction = float(crop_fraction)
        self.crop_mode = crop_mode
        self.interpolation = interpolation
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "Images must come as (batch, height, width, channels) with only the batch "
                f"unknown. Received: input_shape={tuple(input_shape)}"
            )
        self.built = True

    def call(self, images, training=False):
        source_size = tuple(images.shape[1:3])
        if training:
            rows, columns = self._random_matrices(ops.shape(images)[0], source_size)
        else:
            rows, columns = self._evaluation_matrices(source_size)
        return resample(ops.cast(images, "float32"), rows, columns)

    def _evaluation_matrices(self, source_size):
        *resized_size, top, left = evaluation_geometry(
            *source_size,
            self.image_size,
            crop_fraction=self.crop_fraction,
            crop_mode=self.crop_mode,
        )
        rows, columns = self._full_matrices(source_size, resized_size)
        height, width = self.image_size
        return rows[top : top + height], columns[left : left + width]

    def _random_matrices(self, batch_size, source_size):
        """Per image, the rows of the resampling matrices that make up its crop."""
        resized_size = covering_size(*source_size, self._resize_size)
        indices = [
            self._random_offset(batch_size, resized - size + 1)
            + ops.expand_dims(ops.arange(size, dtype="int32"), 0)
            for resized, size in zip(resized_size, self.image_size, strict=True)
        ]
        if self.horizontal_flip:
            mirrored = keras.random.uniform((batch_size, 1), seed=self.seed_generator) < 0.5
            indices[1] = ops.where(mirrored, ops.flip(indices[1], axis=1), indices[1])
        matrices = self._full_matrices(source_size, resized_size)
        return [
            ops.take(ops.convert_to_tensor(matrix), index, axis=0)
            for matrix, index in zip(matrices, indices, strict=True)
        ]

    def _random_offset(self, batch_size, count):
        return keras.random.randint(
            (batch_size, 1), 0, count, dtype="int32", seed=self.seed_generator
        )

    def _full_matrices(self, source_size, resized_size):
        return [
            resampling_matrix(source, resized, self.interpolation).astype(np.float32)
            for source, resized in zip(source_size, resized_size, strict=True)
        ]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.image_size, input_shape[3])

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(self.compute_output_shape(images.shape), dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "resize_size": self.resize_size,
            "crop_fraction": self.crop_fraction,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
            "horizontal_flip": self.horizontal_flip,
            "seed": self.seed,
        }
