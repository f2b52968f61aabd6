"""8 bits: Keras' own quantisation, and the images that the other engines calibrate with."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vit.data.images import decode_image
from keras_vit.export.copying import copy_with_weights

# More than this changes ranges little and takes longer; NNCF takes 300 by itself.
MAX_CALIBRATION_IMAGES = 128
_SUFFIXES = (".jpg", ".jpeg", ".png")


def quantize_int8(model: keras.Model) -> keras.Model:
    """A copy of a model with Keras' 8-bit weights; the model is left as it is.

    Every `Dense` layer holds int8 weights with a scale for each output, and rounds its inputs to 8
    bits with a scale for each row at run time (`keras.Model.quantize`): no calibration is needed.
    The copy can be exported as a SavedModel, which is a quarter as large. TensorFlow has no fast
    8-bit product on a CPU: it is slower than float32.

    Args:
        model: A model with `Dense` layers.

    Returns:
        A new model with weights of its own.

    Raises:
        ValueError: If the model is quantised, or has adapters (LoRA) that are not merged.

    Example:

    >>> import keras_vit
    >>> from keras_vit.export.quantization import quantize_int8
    >>> model = quantize_int8(keras_vit.ViTTi16(num_classes=2, image_size=32, depth=1))
    >>> str(model.get_layer("block_0").mlp.expansion.kernel.dtype)
    'int8'
    """
    quantized = copy_with_weights(model)
    quantized.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
    return quantized


def calibration_arrays(images: str | os.PathLike | Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """The images that the ranges of the activations are taken from.

    Args:
        images: A folder of JPEG and PNG files, its sub-folders included, or a sequence of uint8
            arrays `(height, width, 3)` of any sizes, or one array `(n, height, width, 3)`. Of more
            than 128, as many are taken, evenly spread.

    Returns:
        Arrays, uint8 `(1, height, width, 3)`.

    Raises:
        ValueError: If there are none, or one is no uint8 image.
    """
    if images is None:
        raise ValueError(
            "int8 takes the ranges of the activations from images: give `calibration_images` "
            "(--calibration), a folder of JPEG or PNG files such as 100 of the training images, or "
            "a sequence of uint8 arrays (height, width, 3)."
        )
    if isinstance(images, (str, os.PathLike)):
        folder = Path(images)
        if not folder.is_dir():
            raise NotADirectoryError(
                f"The calibration images must be a folder. Found none: {folder}"
            )
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not files:
            raise ValueError(f"{folder} holds no .jpg, .jpeg or .png file to calibrate with.")
        return [decode_image(file)[None] for file in _spread(files)]
    arrays = [np.asarray(image) for image in _spread(images)]
    for index, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise ValueError(
                "`calibration_images` must be uint8 arrays (height, width, 3). Received at index "
                f"{index}: {array.dtype} {array.shape}"
            )
    if not arrays:
        raise ValueError("`calibration_images` is empty. Give some 100 images.")
    return [array[None] for array in arrays]


def _spread(items):
    count = min(len(items), MAX_CALIBRATION_IMAGES)
    return [items[index * len(items) // count] for index in range(count)]
