"""From an image file to the model's pixels, on the host."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from keras_vit.layers import ImagePreprocessing

# The formats that are read, by Pillow's names, and the suffixes of their files. Pillow knows more,
# some of them hardly tested, and starts Ghostscript for one: no file gets that far.
FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# Numbers of TIFF's tags.
BITS_PER_SAMPLE, ORIENTATION, TILE_WIDTH, TILE_HEIGHT = 258, 274, 322, 323
# By orientation, what takes back how Pillow turns a TIFF file while it reads the pixels.
TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# 16 bits each of red, green, blue and alpha, and what stands beside the pixels: some decoders keep
# all of a file in memory.
MOST_BYTES_PER_PIXEL = 8
MOST_BYTES_BESIDE = 2**26


def decode_image(image: str | Path | bytes) -> np.ndarray:
    """Decodes an image file to RGB pixels.

    BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read, whatever the name of the file ends in. Grey
    and palette images become RGB, 16-bit values keep their upper 8 bits, transparency is left out
    and an EXIF orientation is not applied, as in TensorFlow's decoders. Of an animation it is the
    first frame, of several pages the first. 32-bit integers and floating-point numbers are
    refused.

    Args:
        image: Path of a file, or the encoded bytes.

    Returns:
        A uint8 array `(height, width, 3)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or says that it has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` (89,478,485 unless you set it), which is judged before
            anything is decoded, or has more than 8 bytes for each of those and 64 MiB; the message
            names the file.

    Example:

    >>> buffer = io.BytesIO()
    >>> Image.new("L", (3, 2), 7).save(buffer, "PNG")
    >>> decode_image(buffer.getvalue()).shape
    (2, 3, 3)
    """
    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        with _opened(image) as file:
            return _rgb(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image file {name}") from None
    except IsADirectoryError:
        raise ValueError(
            f"{name} is a folder. Expected an image file; name those in it, such as *.jpg"
        ) from None
    except Exception as error:  # Damaged bytes make decoders raise errors of any kind.
        raise ValueError(
            f"{name} cannot be decoded: {_reason(error)}. Expected a complete "
            "BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file; replace it or leave it out"
        ) from error


def undecodable(path: Path) -> str | None:
    """Why `decode_image` would refuse a file; None where it would not.

    A JPEG is read whole, but decoded to an eighth of its size.
    """
    try:
        with _opened(path) as file:
            file.draft(None, (1, 1))
            file.load()
            # One pixel tells whether the mode can become RGB.
            _rgb(file.crop((0, 0, 1, 1)))
    except Exception as error:
        return _reason(error)
    return None


def _reason(error):
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def _opened(image: str | Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """An image whose header is read and its pixels are not.

    `Image.open` raises from twice its limit on and warns below; here the limit is the limit.
    """
    most_pixels = Image.MAX_IMAGE_PIXELS or math.inf
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        most_bytes = MOST_BYTES_PER_PIXEL * most_pixels + MOST_BYTES_BESIDE
        if size > most_bytes:
            raise ValueError(f"it has {size:,} bytes. Expected at most {most_bytes:,}")
        with _factory(file)(file, "") as opened:
            if 0 in opened.size:
                raise ValueError("it has no pixels")
            for what, (width, height) in _sizes(opened):
                if width * height > most_pixels:
                    raise ValueError(
                        f"{what} {width:,} x {height:,} pixels. Expected at most {most_pixels:,}; "
                        "make it smaller"
                    )
            _check_values(opened)
            yield opened


def _sizes(opened):
    """What is decoded at once, as the header says: (width, height), after a few words."""
    yield "it has", opened.size
    tags = getattr(opened, "tag_v2", {})  # Those of a TIFF file.
    if TILE_WIDTH in tags and TILE_HEIGHT in tags:
        # A tile may be larger than the image.
        yield "it is stored in tiles of", (tags[TILE_WIDTH], tags[TILE_HEIGHT])


def _factory(file):
    """What opens a file, by its first bytes."""
    file.seek(0)
    prefix = file.read(16)
    file.seek(0)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        # A text says that Pillow was built without the format.
        if accept is not None and accept(prefix) is True:
            return factory
    raise UnidentifiedImageError("cannot identify an image in it")


def _check_values(file):
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    # Pillow has the same mode for some kinds of 16 bits.
    if file.mode == "I" and 32 in getattr(file, "tag_v2", {}).get(BITS_PER_SAMPLE, ()):
        raise ValueError(
            "its pixels are 32-bit integers, of which no range is known: convert it to 8 or 16 bits"
        )


def _rgb(file):
    # The orientation that Pillow goes by, which it forgets once it has the pixels.
    orientation = file.getexif().get(ORIENTATION) if file.format == "TIFF" else None
    # NumPy may hide what goes wrong when it asks for the pixels.
    file.load()
    if orientation in TURNED_BACK:
        file = file.transpose(TURNED_BACK[orientation])
    if file.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        grey = np.clip(np.asarray(file) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    # It is not blended anyway, and Pillow warns of some kinds and fails with others.
    file.info.pop("transparency", None)
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

    A central crop leaves the same number of pixels on both sides, or one less before it, as in
    big_vision. torchvision, and timm with it, rounds half to even: of 3, 7, 11, … pixels that are
    over it leaves one more before it.

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
