"""Maps of patches drawn over the picture that they belong to."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from keras_vit.data import evaluation_geometry
from keras_vit.layers import ImagePreprocessing
from keras_vit.layers.resampling import resampling_matrix

# Dark to light through purple and orange: five colours of matplotlib's "inferno" (released as CC0)
# at equal distances, from 0 to 1.
COLOURS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], "float64"
)
LIGHTEST_FROM = 0.98  # the quantile of the map from which on patches have the lightest colour
UNSEEN_BRIGHTNESS = 0.15


def draw_overlay(
    image: np.ndarray,
    patch_map: np.ndarray,
    *,
    box: tuple[int, int, int, int] | None = None,
    opacity: float = 0.6,
) -> np.ndarray:
    """Draws a map of patches as colours over the picture, which becomes grey.

    The darkest colour stands for the map's smallest value, the lightest for the largest fiftieth of
    its values: some patches often have many times what the others have. The map is enlarged with
    a bicubic kernel. The part of the picture that the network did not see is dimmed.

    Args:
        image: uint8 array `(height, width, 3)`.
        patch_map: Array `(rows, columns)`, e.g. of `attention_rollout`.
        box: `(top, left, bottom, right)` of what the network saw, in pixels of `image`, as
            `seen_box` gives it; None for all of it.
        opacity: How much the colours cover, from 0 (the grey picture) to 1.

    Returns:
        A uint8 array `(height, width, 3)`.

    Raises:
        ValueError: If an array has another shape, the map is not finite, `box` is empty or not
            within the image, or `opacity` is out of range.

    Example:

    >>> picture = draw_overlay(np.zeros((8, 8, 3), "uint8"), np.eye(2), opacity=1.0)
    >>> picture[1, 1].tolist(), picture[1, 6].tolist()
    ([252, 255, 164], [0, 0, 4])
    """
    patch_map = np.asarray(patch_map, "float64")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "`image` must be a uint8 array (height, width, 3). "
            f"Received: {image.dtype} {image.shape}"
        )
    if patch_map.ndim != 2 or not patch_map.size or not np.isfinite(patch_map).all():
        raise ValueError(
            "`patch_map` must be an array (rows, columns) of finite numbers. "
            f"Received: shape={patch_map.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be in [0, 1]. Received: opacity={opacity}")
    height, width, _ = image.shape
    top, left, bottom, right = box or (0, 0, height, width)
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            "`box` must be (top, left, bottom, right) of a part of the image, which is "
            f"{height} pixels high and {width} wide. Received: box={box}"
        )
    heat = _scaled(patch_map)
    heat = resampling_matrix(heat.shape[0], bottom - top) @ heat
    heat = heat @ resampling_matrix(heat.shape[1], right - left).T
    # The kernel overshoots.
    heat = np.clip(heat, 0.0, 1.0)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    dimmed = np.rint(grey * np.float32(UNSEEN_BRIGHTNESS)).astype(np.uint8)
    picture = np.repeat(dimmed[..., None], 3, axis=-1)
    seen = (1.0 - opacity) * grey[top:bottom, left:right]
    positions = np.linspace(0.0, 1.0, len(COLOURS))
    # A channel at a time, because photographs are large.
    for channel, colours in enumerate(COLOURS.T):
        blended = np.interp(heat, positions, opacity * colours) + seen
        picture[top:bottom, left:right, channel] = np.rint(blended)
    return picture


def _scaled(patch_map):
    """From 0 for the smallest value to 1 for the largest ones; zeros where all are equal."""
    rest = patch_map - patch_map.min()
    # A map with very few values above the smallest has a quantile of nothing.
    spread = np.quantile(rest, LIGHTEST_FROM) or rest.max() or 1.0
    return np.minimum(rest / spread, 1.0)


def shrink_image(image: np.ndarray, longest_side: int) -> np.ndarray:
    """The image made smaller, its aspect ratio kept, where a side is longer than said.

    Args:
        image: uint8 array `(height, width, 3)`.
        longest_side: Pixels that neither side of the result exceeds.

    Returns:
        A uint8 array.

    Example:

    >>> shrink_image(np.zeros((300, 400, 3), "uint8"), 100).shape
    (75, 100, 3)
    """
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((longest_side, longest_side))
    return np.asarray(thumbnail)


def draw_sheet(pictures: list[np.ndarray], *, gap: int = 4) -> np.ndarray:
    """Lays pictures of one size side by side, row by row, on a sheet about as wide as high.

    Args:
        pictures: uint8 arrays `(height, width, 3)`.
        gap: White space between pictures, in pixels.

    Returns:
        A uint8 array.

    Example:

    >>> draw_sheet([np.zeros((10, 20, 3), "uint8")] * 3, gap=2).shape
    (22, 42, 3)
    """
    height, width, _ = pictures[0].shape
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def seen_box(
    height: int, width: int, image_size: tuple[int, int], preprocessing: ImagePreprocessing
) -> tuple[int, int, int, int]:
    """Which part of an image the network sees when the image is evaluated.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: The model's layer; its `crop_fraction` and `crop_mode` are read.

    Returns:
        `(top, left, bottom, right)` in pixels of the image, rounded; at least one pixel.

    Example:

    >>> seen_box(448, 896, (224, 224), ImagePreprocessing())
    (0, 224, 448, 672)
    """
    resized_height, resized_width, top, left = evaluation_geometry(
        height,
        width,
        image_size,
        crop_fraction=preprocessing.crop_fraction,
        crop_mode=preprocessing.crop_mode,
    )
    y, x = height / resized_height, width / resized_width
    top, bottom = _pixels(top * y, (top + image_size[0]) * y)
    left, right = _pixels(left * x, (left + image_size[1]) * x)
    return top, left, bottom, right


def _pixels(start, stop):
    """The rounded ends of a part of a side; of less than a pixel, the pixel of its middle."""
    first, last = round(start), round(stop)
    if first < last:
        return first, last
    middle = math.floor((start + stop) / 2)
    return middle, middle + 1


def write_picture(picture: np.ndarray, folder: str | Path, name: str) -> Path:
    """Writes `folder/name.png`, or `name-2.png`, … where that is taken: no file is replaced.

    Args:
        picture: uint8 array `(height, width, 3)`.
        folder: An existing folder.
        name: The file's name without its ending.

    Returns:
        The path of the file.
    """
    for number in itertools.count(1):
        path = Path(folder, f"{name}.png" if number == 1 else f"{name}-{number}.png")
        try:
            # Taken by making the file, which of several processes one alone can.
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            continue
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(picture).save(beside, "PNG")
        os.replace(beside, path)
    except BaseException:
        path.unlink()
        raise
    finally:
        beside.unlink(missing_ok=True)
    return path
