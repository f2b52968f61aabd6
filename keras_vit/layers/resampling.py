"""Separable image resampling as matrices.

Resampling one axis is linear, so it is a matrix; resampling an image is one matrix product
per axis. Position grids and images on the device use the matrices made here; images on the host
are resized by Pillow, whose antialias is the same arithmetic.
"""

import math

import numpy as np

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


def _triangle(distance):
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _cubic(distance, a):
    # Keys, "Cubic convolution interpolation for digital image processing" (1981), equation 15.
    d = np.abs(distance)
    inner = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    outer = a * (((d - 5.0) * d + 8.0) * d - 4.0)
    return np.where(d <= 1.0, inner, np.where(d < 2.0, outer, 0.0))


def resampling_matrix(
    source_size,
    target_size,
    interpolation="bicubic",
    *,
    antialias=True,
    cubic_a=-0.5,
    align_corners=False,
):
    """The matrix that resamples one axis from `source_size` to `target_size` points.

    Args:
        source_size: Number of points of the source axis.
        target_size: Number of points of the target axis.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`.
        antialias: Whether the kernel is stretched when the axis shrinks, as Pillow, TensorFlow
            and PyTorch do with `antialias=True`. Taps outside the axis are then left out and
            the others scaled to a sum of one; without it the edge is repeated (PyTorch's
            `interpolate`).
        cubic_a: The cubic kernel's parameter: -0.5 in Pillow, TensorFlow and PyTorch with
            antialias, -0.75 in PyTorch without.
        align_corners: Whether the first and last points of both axes coincide, as in
            `scipy.ndimage.zoom`; half-pixel centres otherwise.

    Returns:
        A float64 array of shape `(target_size, source_size)`; its rows sum to one.

    Raises:
        ValueError: For sizes below one or an unknown interpolation.

    Example:

    >>> resampling_matrix(2, 3, "bilinear", align_corners=True)
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ]])
    """
    if source_size < 1 or target_size < 1:
        raise ValueError(
            f"Sizes to resample between must be at least 1. Received: source_size={source_size}, "
            f"target_size={target_size}"
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}. "
            f"Received: interpolation={interpolation!r}"
        )
    index = np.arange(target_size, dtype=np.float64)
    if align_corners:
        # One target point has no step; zoom puts it on the first source point.
        centre = index * ((source_size - 1) / (target_size - 1) if target_size > 1 else 0.0)
    else:
        centre = (index + 0.5) * (source_size / target_size) - 0.5
    if interpolation == "nearest":
        # Integers, because a centre that lies between two pixels belongs to the second.
        nearest = (2 * np.arange(target_size) + 1) * source_size // (2 * target_size)
        if align_corners:
            nearest = np.floor(centre + 0.5).astype(int)
        matrix = np.zeros((target_size, source_size))
        matrix[np.arange(target_size), nearest] = 1.0
        return matrix
    if interpolation == "bilinear":
        radius, kernel = 1.0, _triangle
    else:
        radius, kernel = 2.0, lambda distance: _cubic(distance, cubic_a)
    if antialias and not align_corners:
        stretch = max(1.0, source_size / target_size)
        distance = (np.arange(source_size)[None, :] - centre[:, None]) / stretch
        matrix = kernel(distance)
        return matrix / matrix.sum(axis=1, keepdims=True)
    matrix = np.zeros((target_size, source_size))
    first = np.floor(centre).astype(int) - math.ceil(radius) + 1
    for tap in range(2 * math.ceil(radius)):
        position = first + tap
        weight = kernel(position - centre)
        np.add.at(
            matrix,
            (np.arange(target_size), np.clip(position, 0, source_size - 1)),
            weight,
        )
    return matrix
