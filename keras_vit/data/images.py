"""From an image file to the model's pixels, on the host."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from keras_vit.layers import ImagePreprocessing

# What Pillow raises for files that are damaged, no image, or of a size that only an attack has.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def decode_image(image: str | Path | bytes) -> np.ndarray:
    """Decodes an image file to RGB pixels.

    Grey and palette images become RGB, 16-bit values keep their upper 8 bits, transparency is
    left out and an EXIF orientation is not applied, as in TensorFlow's decoders.

    Args:
        image: Path of a file, or the encoded bytes.

    Returns:
        A uint8 array `(height, width, 3)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded; the message names the file.

    Example:

    >>> buffer = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(buffer, "PNG")
    >>> decode_image(buffer.getvalue()).shape
    (2, 3, 3)
    """
    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as file:
            return _rgb(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image file {name}") from None
    except _DECODING_ERRORS as error:
        raise ValueError(
            f"{name} cannot be decoded: {error}. Expected a complete JPEG, PNG or other image "
            "file that Pillow reads; replace it or leave it out"
        ) from error


def undecodable(path: Path) -> str | None:
    """Why `decode_image` would refuse a file; None where it would not.

    A JPEG is read whole, but decoded to an eighth of its size.
    """
    try:
        with Image.open(path) as file:
            file.draft(None, (1, 1))
            _rgb(file)
    except _DECODING_ERRORS as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None


def _rgb(file):
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if file.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        grey = np.clip(np.asarray(file).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    # NumPy may hide what goes wrong when it asks for the pixels.
    file.load()
    # Pillow would copy an image that is RGB already.
    return np.array(file if file.mode == "RGB" else file.convert("RGB"))


def covering_size(height: int, width: int, target_size: tuple[int, int]) -> tuple[int, int]:
    """The size at which an image just covers a target, its aspect ratio kept.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image.
        target_size: `(height, width)` to cover.

    Returns:
        `(height, width)`: one of them is the target's, the other is rounded down but not below
        the target's.

    Example:

    >>> covering_size(375, 500, (256, 256))
    (256, 341)
    """
    target_height, target_width = target_size
    # Integers only: a graph that does the same cannot round differently.
    if target_height * width >= target_width * height:
        return target_height, target_height * width // height
    return target_width * height // width, target_width


def evaluation_geometry(
    height: int,
    width: int,
    image_size: tuple[int, int],
    *,
    crop_fraction: float,
    crop_mode: str,
) -> tuple[int, int, int, int]:
    """Where the evaluation crop of an image lies.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image.
        image_size: `(height, width)` of the crop.
        crop_fraction: Share of the resized image's side that the crop keeps, in (0, 1].
        crop_mode: `"center"`: the image is resized to cover `floor(size / crop_fraction)`, its
            aspect ratio kept; `"squash"`: it is resized to just that.

    Returns:
        `(resized_height, resized_width, top, left)` in pixels: what the image is resized to, and
        the corner of the crop in it.

    Example:

    >>> evaluation_geometry(375, 500, (224, 224), crop_fraction=0.9, crop_mode="center")
    (248, 330, 12, 53)
    """
    target_height, target_width = (math.floor(size / crop_fraction) for size in image_size)
    if crop_mode == "center":
        target_height, target_width = covering_size(height, width, (target_height, target_width))
    elif crop_mode != "squash":
        raise ValueError(f"`crop_mode` must be center or squash. Received: {crop_mode!r}")
    top, left = (target_height - image_size[0]) // 2, (target_width - image_size[1]) // 2
    return target_height, target_width, top, left


def prepare_image(
    image: np.ndarray, image_size: tuple[int, int], preprocessing: ImagePreprocessing
) -> np.ndarray:
    """Brings an image to the model's size as the model's `preprocessing` layer says.

    Args:
        image: uint8 array `(height, width, 3)`.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: The layer; its `crop_fraction`, `crop_mode` and `interpolation` are read.

    Returns:
        A float32 array `(*image_size, 3)` of pixels, 0 to 255, not rounded.

    Example:

    >>> image = np.full((30, 40, 3), 7, "uint8")
    >>> prepare_image(image, (16, 16), ImagePreprocessing(crop_fraction=0.9)).shape
    (16, 16, 3)
    """
    resized_height, resized_width, top, left = evaluation_geometry(
        image.shape[0],
        image.shape[1],
        image_size,
        crop_fraction=preprocessing.crop_fraction,
        crop_mode=preprocessing.crop_mode,
    )
    return resized_crop(
        image,
        (resized_height, resized_width),
        (top, left),
        image_size,
        preprocessing.interpolation,
    )


def resized_crop(
    image: np.ndarray,
    resized_size: tuple[int, int],
    corner: tuple[int, int],
    crop_size: tuple[int, int],
    interpolation: str,
) -> np.ndarray:
    """A crop of a resized image; only the crop is computed.

    Args:
        image: uint8 array `(height, width, 3)`.
        resized_size: `(height, width)` that the image is resized to, with antialias.
        corner: `(top, left)` of the crop in the resized image.
        crop_size: `(height, width)` of the crop.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`.

    Returns:
        A float32 array `(*crop_size, 3)` of pixels, 0 to 255, not rounded.
    """
    if interpolation == "nearest":
        crop = _nearest_crop(image, resized_size, corner, crop_size).astype(np.float32)
    else:
        crop = _filtered_crop(image, resized_size, corner, crop_size, interpolation)
    # Bicubic overshoots at edges.
    return np.clip(crop, 0.0, 255.0, out=crop)


def _nearest_crop(image, resized_size, corner, crop_size):
    rows, columns = (
        # floor((index + 0.5) * source / resized), exact.
        (2 * np.arange(first, first + count) + 1) * source // (2 * resized)
        for source, resized, first, count in zip(
            image.shape, resized_size, corner, crop_size, strict=False
        )
    )
    return image[rows[:, None], columns]


def _filtered_crop(image, resized_size, corner, crop_size, interpolation):
    """Pillow's antialiased filters, which are those of `resampling_matrix`, on float pixels."""
    resample = Image.Resampling[interpolation.upper()]
    crop = np.empty((*crop_size, image.shape[2]), np.float32)
    # An axis at a time and cropped at once, so that no plane gets much larger than the image.
    longer, shorter = (0, 1) if image.shape[0] >= image.shape[1] else (1, 0)
    for channel in range(image.shape[2]):
        # Only images of one float channel are not rounded.
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        for axis in (longer, shorter):
            # Pillow's sizes and boxes are (width, height). Its resize takes a box too, but rounds
            # it to 32 bits.
            x_or_y = 1 - axis
            size, box = list(plane.size), [0, 0, *plane.size]
            size[x_or_y] = resized_size[axis]
            box[x_or_y] = corner[axis]
            box[x_or_y + 2] = corner[axis] + crop_size[axis]
            plane = plane.resize(tuple(size), resample).crop(tuple(box))
        crop[..., channel] = plane
    return crop
