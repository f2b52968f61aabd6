"""Image operations on batches, with the arguments of each image, in `keras.ops`.

Each follows the arithmetic of Pillow, whose results are whole numbers, rounded down. Images are
`(batch, height, width, 3)`, 0 to 255, of which only the batch may be unknown.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_vit.data.augmentation import OPERATIONS
from keras_vit.layers.jax_device import full_precision

# Images at a time. More make better use of a large device, fewer leave less undone on a small one.
CHUNK_SIZE = 4

# Weights of red, green and blue in Pillow's conversion to grey, in units of 2 ** -16.
GREY_WEIGHTS = (19595.0, 38470.0, 7471.0)

# The grey of what a geometric operation brings in, as in RandAugment's first code and in timm's
# default: near the mean that models are normalised by, so that it says little to them.
FILL = 128.0

LARGEST_BLUR_SIGMA = 2.0


def in_graph_on_cpu():
    """Whether a graph of TensorFlow is being made, on a machine that has only CPUs."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.executing_eagerly() and all(
        device.device_type == "CPU" for device in tf.config.list_logical_devices()
    )


def one_by_one(function, inputs):
    """Calls a function on batches of one image, with TensorFlow.

    An image then stays in the cache from one operation to the next, and no operation copies the
    batch to change a few of its images.

    Args:
        function: From a dictionary of tensors, whose first axis is the batch, to float32 images.
        inputs: The tensors.

    Returns:
        float32 images of the whole batch.
    """
    import tensorflow as tf

    def of_one(row):
        return function({name: tensor[None] for name, tensor in row.items()})[0]

    return tf.map_fn(of_one, inputs, fn_output_signature=tf.float32)


def fused(function):
    """Has XLA compile a function where it is part of a graph of TensorFlow for CPUs.

    TensorFlow would write and read each intermediate result. Other backends, and eager calls,
    whose shapes change, take the function as it is.
    """
    compiled = []

    @functools.wraps(function)
    def call(*arguments):
        if not in_graph_on_cpu():
            return function(*arguments)
        if not compiled:
            import tensorflow as tf

            compiled.append(tf.function(function, autograph=False, jit_compile=True))
        return compiled[0](*arguments)

    return call


def apply_where(function, images, needed, parameters, dtype=None):
    """Replaces the images that need it by what a function makes of them, and spares the others.

    The number of those images decides how often a loop runs, not a shape; so the work is in
    proportion to it and the graph can be compiled.

    Args:
        function: From images and parameters, `CHUNK_SIZE` of each, to images.
        images: `(batch, height, width, 3)`.
        needed: bool `(batch,)`.
        parameters: Tensors whose first axis is the batch.
        dtype: Of the images that are returned; None: as they are.

    Returns:
        Images of that dtype.
    """
    dtype = dtype or images.dtype
    if images.shape[0] == 1:
        return ops.cond(
            needed[0],
            lambda: ops.cast(function(images, *parameters), dtype),
            lambda: ops.cast(images, dtype),
        )
    images = ops.cast(images, dtype)
    needed = ops.cast(needed, "int32")
    count = ops.sum(needed)
    order = ops.cast(ops.argsort(1 - needed), "int32")

    def step(start, images):
        # The last chunk is filled up with its last image, which is written more than once then.
        places = ops.minimum(start + ops.arange(CHUNK_SIZE, dtype="int32"), count - 1)
        rows = ops.take(order, places, axis=0)
        changed = function(
            ops.take(images, rows, axis=0),
            *(ops.take(parameter, rows, axis=0) for parameter in parameters),
        )
        changed = ops.cast(changed, images.dtype)
        return start + CHUNK_SIZE, ops.scatter_update(images, rows[:, None], changed)

    start = ops.zeros((), "int32")
    return ops.while_loop(lambda start, images: start < count, step, (start, images))[1]


# resampling --------------------------------------------------------------------------------------


def resample(images, rows, columns):
    """Images times a matrix an axis, clipped to 0..255 because cubic kernels overshoot at edges.

    Args:
        images: float32 `(batch, height, width, channels)`.
        rows: `(new_height, height)`, or one for each image.
        columns: `(new_width, width)`, likewise.

    Returns:
        float32 `(batch, new_height, new_width, channels)`.
    """
    _, height, width, channels = images.shape
    new_height, new_width = rows.shape[-2], columns.shape[-2]
    # Rounded to ten bits, pixels would not be Pillow's.
    with full_precision():
        # Columns first: then only small tensors are transposed.
        images = ops.reshape(ops.transpose(images, (0, 2, 1, 3)), (-1, width, height * channels))
        images = ops.reshape(ops.matmul(columns, images), (-1, new_width, height, channels))
        images = ops.transpose(images, (0, 2, 1, 3))
        images = ops.reshape(images, (-1, height, new_width * channels))
        images = ops.reshape(ops.matmul(rows, images), (-1, new_height, new_width, channels))
    return ops.clip(images, 0.0, 255.0)


def resampling_rows(first, last, source_size, target_size, interpolation, padding=0):
    """For each image, the matrix that resamples a part of one axis, as Pillow's `resize(box=)`.

    Args:
        first: float32 `(batch,)`, where the part begins, in pixels of the source.
        last: Where it ends; below `first`, the part is mirrored.
        source_size: Pixels of the axis.
        target_size: Pixels of the resampled part.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.
        padding: Zeros on both sides of the source that count as pixels of it.

    Returns:
        float32 `(batch, target_size, source_size)`.
    """
    first, last = first[:, None, None], last[:, None, None]
    index = ops.arange(target_size, dtype="float32")[:, None] + 0.5
    pixels = ops.arange(-padding, source_size + padding, dtype="float32")
    step = (last - first) / target_size
    centre = first + index * step
    if interpolation == "nearest":
        # A centre between two pixels belongs to the second, also where it is a rounding short.
        return ops.cast(
            ops.floor(centre + 1e-4) == pixels[padding or None : -padding or None], "float32"
        )
    distance = ops.abs(pixels + 0.5 - centre) / ops.maximum(ops.abs(step), 1.0)
    if interpolation == "bilinear":
        weights = ops.maximum(1.0 - distance, 0.0)
    else:
        # Keys (1981) with a = -0.5, as Pillow has it.
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        weights = ops.where(distance < 1.0, near, ops.where(distance < 2.0, far, 0.0))
    weights = weights / ops.sum(weights, axis=-1, keepdims=True)
    return weights[..., padding : padding + source_size]


def transform(images, matrices):
    """Resamples images at places that a matrix gives, bilinearly; outside there is grey.

    Args:
        images: Images of whole values.
        matrices: `(batch, 6)`: two rows of a matrix from the centre (x, y, 1) of each pixel to its
            place in the image.

    Returns:
        float32 images, not rounded.
    """
    return _blend(*_corners(images, matrices))


@fused
def _corners(images, matrices):
    """The four pixels around each place, packed, how far it is from the first, and if it is in."""
    _, height, width, _ = images.shape
    a, b, c, d, e, f = (matrices[:, place, None, None] for place in range(6))
    x = ops.arange(width, dtype="float32")[None, None, :] + 0.5
    y = ops.arange(height, dtype="float32")[None, :, None] + 0.5
    x, y = a * x + b * y + c, d * x + e * y + f
    inside = (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = ops.floor(x), ops.floor(y)
    along_x, along_y = x - left, y - top
    # A pixel is repeated at its border.
    lefts, rights = (
        ops.cast(ops.clip(column, 0.0, width - 1.0), "int32") for column in (left, left + 1.0)
    )
    image = ops.arange(ops.shape(images)[0], dtype="int32")[:, None, None] * (height * width)
    tops, bottoms = (
        ops.cast(ops.clip(row, 0.0, height - 1.0), "int32") * width + image
        for row in (top, top + 1.0)
    )
    # One number a pixel, as fetching a pixel costs more than taking it apart.
    red, green, blue = (ops.cast(images[..., channel], "int32") for channel in range(3))
    pixels = ops.reshape(red + 256 * green + 65536 * blue, (-1,))
    corners = [
        _gather(pixels, row + column) for row in (tops, bottoms) for column in (lefts, rights)
    ]
    return corners, along_x, along_y, inside


@fused
def _blend(corners, along_x, along_y, inside):
    moved = []
    for shift in (0, 8, 16):
        upper_left, upper_right, lower_left, lower_right = (
            ops.cast(ops.bitwise_and(ops.right_shift(corner, shift), 255), "float32")
            for corner in corners
        )
        upper = upper_left + along_x * (upper_right - upper_left)
        lower = lower_left + along_x * (lower_right - lower_left)
        moved.append(ops.where(inside, upper + along_y * (lower - upper), FILL))
    return ops.stack(moved, axis=-1)


def _gather(array, places):
    """Rows of an array; none of the places is negative, which `ops.take` would look for."""
    if keras.backend.backend() != "tensorflow":
        return ops.take(array, places, axis=0)
    import tensorflow as tf

    return tf.gather(array, places)


# colour ------------------------------------------------------------------------------------------


def histograms(images):
    """How often each value occurs in each channel, as float32 `(batch, channels, 256)`."""
    places = ops.reshape(_places_in_tables(images), (-1,))
    size = ops.shape(images)[0] * images.shape[3] * 256
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # Four times as fast on a CPU as a sum over segments.
        counts = tf.raw_ops.DenseBincount(
            input=places, size=size, weights=tf.zeros((0,)), binary_output=False
        )
    else:
        ones = ops.ones_like(places, dtype="float32")
        counts = ops.segment_sum(ones, places, num_segments=size)
    return ops.reshape(counts, (-1, images.shape[3], 256))


def _places_in_tables(images):
    """Of each value, its place in tables `(batch, channels, 256)` laid flat; `(batch, values)`."""
    _, height, width, channels = images.shape
    # Flat, as TensorFlow is slow where it repeats something along an axis of three.
    channel = ops.tile(ops.arange(channels, dtype="int32") * 256, (height * width,))
    image = ops.arange(ops.shape(images)[0], dtype="int32")[:, None] * (channels * 256)
    return ops.cast(ops.reshape(images, (-1, height * width * channels)), "int32") + image + channel


def change_values(images, kinds, values):
    """Operations that map each value of a channel to another, by a table for each image.

    Args:
        images: uint8 images.
        kinds: int32 `(batch,)`, places in `OPERATIONS`.
        values: float32 `(batch,)`, their arguments.

    Returns:
        uint8 images.
    """
    if images.shape[0] == 1:
        by_counts = [OPERATIONS.index(name) for name in ("autocontrast", "equalize", "contrast")]
        counted = ops.any(ops.equal(kinds, ops.array(by_counts, dtype="int32")))
        counts = ops.cond(
            counted,
            lambda: histograms(images),
            lambda: ops.ones((1, images.shape[3], 256), "float32"),
        )
    else:
        counts = histograms(images)
    return _look_up(images, value_tables(counts, kinds, values))


@fused
def _look_up(images, tables):
    tables = ops.reshape(ops.cast(tables, "uint8"), (-1,))
    changed = _gather(tables, _places_in_tables(images))
    return ops.reshape(changed, (-1, *images.shape[1:]))


TABLE_OPERATIONS = OPERATIONS[OPERATIONS.index("autocontrast") : OPERATIONS.index("color")]


@fused
def value_tables(counts, kinds, values):
    """The tables of `change_values`: new values, 0 to 255 and whole, `(batch, channels, 256)`.

    Args:
        counts: Histograms, float32 `(batch, channels, 256)`.
        kinds: int32 `(batch,)`, places in `OPERATIONS`.
        values: float32 `(batch,)`, their arguments.
    """
    level = ops.arange(256, dtype="float32")
    value = values[:, None, None]
    coarse = ops.power(2.0, 8.0 - value)
    grey = _grey_mean(counts)
    tables = {
        "autocontrast": _autocontrast(counts, level),
        "equalize": _equalize(counts, level),
        "invert": 255.0 - level + 0.0 * value,
        "posterize": ops.floor(level / coarse) * coarse,
        "solarize": ops.where(level < value, level, 255.0 - level),
        "solarize_add": ops.where(level < 128.0, level + value, level),
        "contrast": grey + value * (level - grey),
        "brightness": value * level,
    }
    kinds = kinds[:, None, None]
    result = level + 0.0 * counts
    for name in TABLE_OPERATIONS:
        result = ops.where(kinds == OPERATIONS.index(name), tables[name], result)
    return _whole(result)


def _whole(values):
    """Pillow cuts fractions off."""
    return ops.clip(ops.floor(values), 0.0, 255.0)


def _autocontrast(counts, level):
    lowest = ops.min(ops.where(counts > 0.0, level, 255.0), axis=-1, keepdims=True)
    highest = ops.max(ops.where(counts > 0.0, level, 0.0), axis=-1, keepdims=True)
    spread = highest - lowest
    # Pillow computes in 64 bits: what 32 leave short of a whole number is still one.
    stretched = (level - lowest) * (255.0 / ops.maximum(spread, 1.0)) + 1e-3
    return ops.where(spread > 0.0, stretched, level)


def _equalize(counts, level):
    """ImageOps.equalize: the last value that occurs does not count for the step."""
    highest = ops.max(ops.where(counts > 0.0, level, 0.0), axis=-1, keepdims=True)
    last = ops.sum(ops.where(level == highest, counts, 0.0), axis=-1, keepdims=True)
    step = ops.floor((ops.sum(counts, axis=-1, keepdims=True) - last) / 255.0)
    below = ops.cumsum(counts, axis=-1) - counts
    equal = ops.floor((ops.floor(step / 2.0) + below) / ops.maximum(step, 1.0))
    return ops.where(step > 0.0, equal, level)


def _grey_mean(counts):
    level = ops.arange(256, dtype="float32")
    means = ops.sum(counts * level, axis=-1) / ops.sum(counts, axis=-1)
    weights = ops.convert_to_tensor(GREY_WEIGHTS, "float32") / 65536.0
    return ops.floor(ops.sum(means * weights, axis=-1) + 0.5)[:, None, None]


@fused
def change_color(images, factors):
    """Blends images with their grey: 0 is grey, 1 the image, more is more colourful.

    Args:
        images: uint8 images.
        factors: float32 `(batch,)`.

    Returns:
        float32 images of whole values.
    """
    images = ops.cast(images, "float32")
    red, green, blue = (
        images[..., channel : channel + 1] * weight for channel, weight in enumerate(GREY_WEIGHTS)
    )
    grey = ops.floor((red + green + blue + 32768.0) * (1.0 / 65536.0))
    return _whole(grey + factors[:, None, None, None] * (images - grey))


@fused
def change_sharpness(images, factors):
    """Blends images with their smoothed selves: 0 is smooth, 1 the image, more is sharper.

    The outermost pixels stay as they are.

    Args:
        images: uint8 images.
        factors: float32 `(batch,)`.

    Returns:
        float32 images of whole values.
    """
    _, height, width, _ = images.shape
    images = ops.cast(images, "float32")
    if min(height, width) < 3:
        return images
    sums = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
    inner = images[:, 1:-1, 1:-1]
    # Nine neighbours and four times the pixel again: Pillow's SMOOTH, which rounds.
    smooth = ops.floor((sums + 4.0 * inner) * (1.0 / 13.0) + 0.5)
    inner = _whole(smooth + factors[:, None, None, None] * (inner - smooth))
    inner = ops.concatenate([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], axis=2)
    return ops.concatenate([images[:, :1], inner, images[:, -1:]], axis=1)


def blur(images, sigmas):
    """Gaussian blur; at the border the outermost pixels are repeated.

    Args:
        images: uint8 images.
        sigmas: Standard deviations in pixels, float32 `(batch,)`, up to 2.

    Returns:
        float32 images of whole values.
    """
    rows, columns = (_blurring_rows(size, sigmas) for size in images.shape[1:3])
    return ops.floor(resample(ops.cast(images, "float32"), rows, columns) + 0.5)


def _blurring_rows(size, sigmas):
    reach = math.ceil(4 * LARGEST_BLUR_SIGMA)
    pixels = ops.arange(-reach, size + reach, dtype="float32")
    distance = pixels - ops.arange(size, dtype="float32")[:, None]
    weights = ops.exp(-0.5 * (distance / sigmas[:, None, None]) ** 2)
    weights = weights / ops.sum(weights, axis=-1, keepdims=True)
    before = ops.sum(weights[..., :reach], axis=-1, keepdims=True)
    after = ops.sum(weights[..., -reach:], axis=-1, keepdims=True)
    weights = weights[..., reach:-reach]
    if size == 1:
        return weights + before + after
    ends = [before + weights[..., :1], weights[..., 1:-1], weights[..., -1:] + after]
    return ops.concatenate(ends, axis=-1)


# erasing and mixing ------------------------------------------------------------------------------


def erase(images, boxes, seeds):
    """Fills a box of each image with random pixels.

    Args:
        images: float32 images.
        boxes: int32 `(batch, 4)`: top, left, bottom, right.
        seeds: int32 `(batch,)`, what decides the random pixels of an image.

    Returns:
        float32 images.
    """
    return ops.where(_inside(images, boxes), noise(images, seeds), images)


def noise(images, seeds):
    """Random pixels, each of the values 0 to 255 as likely as any; the same on each backend.

    They are a hash of a seed and the place of the pixel: MurmurHash3's last steps (Appleby, in the
    public domain) on 32-bit numbers that overflow.
    """
    _, height, width, _ = images.shape
    place = np.arange(height * width, dtype="uint32") * np.uint32(0x9E3779B1)
    bits = ops.bitwise_xor(seeds[:, None], ops.convert_to_tensor(place.view("int32"))[None])
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        # The sign must not be shifted in.
        shifted = ops.bitwise_and(ops.right_shift(bits, shift), 2 ** (32 - shift) - 1)
        bits = ops.bitwise_xor(bits, shifted)
        if factor:
            bits = bits * int(np.uint32(factor).view("int32"))
    channels = [ops.bitwise_and(ops.right_shift(bits, shift), 255) for shift in (0, 8, 16)]
    pixels = ops.cast(ops.stack(channels, axis=-1), "float32")
    return ops.reshape(pixels, (-1, height, width, 3))


def mix(images, partners, ratios=None, boxes=None):
    """Mixes images with others: in a box the other replaces the image, elsewhere they are blended.

    Args:
        images: float32 images.
        partners: int32 `(batch,)`, which image each is mixed with.
        ratios: float32 `(batch,)`, the share of the image itself outside of the box; None: 1.
        boxes: int32 `(batch, 4)`: top, left, bottom, right; None: none.

    Returns:
        float32 images.
    """
    others = ops.take(images, partners, axis=0)
    mixed = images
    if ratios is not None:
        mixed = others + ratios[:, None, None, None] * (images - others)
    return mixed if boxes is None else ops.where(_inside(images, boxes), others, mixed)


def _inside(images, boxes):
    """Which values lie in the box of their image, as bool `(batch, height, width, channels)`."""
    _, height, width, channels = images.shape
    top, left, bottom, right = (boxes[:, place, None, None] for place in range(4))
    y = ops.arange(height, dtype="int32")[:, None]
    x = ops.repeat(ops.arange(width, dtype="int32"), channels)
    inside = ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
    return ops.reshape(inside, (-1, height, width, channels))
