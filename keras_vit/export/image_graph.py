"""From encoded images to the model's pixels, in TensorFlow operations only.

The arithmetic is that of `keras_vit.data.prepare_image`, without anything of ours at run time.
"""

import math

from keras_vit.export.limits import MAX_SCANS, MAX_SIDE, MAX_TEXTS

# Images of one request that are decoded at a time.
_PARALLEL_IMAGES = 16
# Outputs of an axis that share the source pixels they are summed from.
_GROUP = 16
# Of an image, that are float32 at a time: 32 MB.
_VALUES_AT_A_TIME = 8_000_000
# What begins a text of a PNG that may be compressed.
_TEXTS = (b"zTXt", b"iTXt")
# What begins a scan of a JPEG, and the first byte of its length, always 0: the marker's two bytes
# alone occur by chance in what cameras write behind the picture, such as a film.
_SCANS = (b"\xff\xda\x00",)


def decode_and_prepare(encoded, image_size, preprocessing, limits, on_error):
    """Decodes a batch of encoded images of any sizes and brings them to the model's size.

    Args:
        encoded: String tensor `(batch,)` of JPEG or PNG files.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: An `ImagePreprocessing` layer; only its evaluation policy is read.
        limits: The `ImageLimits`.
        on_error: `"row"`: an image that cannot be taken gives zeros and its error.
            `"fail"`: it fails the whole call.

    Returns:
        float32 pixels `(batch, height, width, 3)`, 0 to 255, and the errors, string `(batch,)`,
        empty where there is none.
    """
    import tensorflow as tf

    def decode_one(image_bytes):
        # This operation decodes PNG too; decode_image would not let the accurate DCT be chosen,
        # which is the one of Pillow.
        image = tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.ensure_shape(image, (None, None, 3))
        return prepare(image[None], image_size, preprocessing)[0]

    def image_and_error(image_bytes):
        error = _header_error(image_bytes, limits)
        good = tf.equal(error, "")
        if on_error == "fail":
            with tf.control_dependencies([tf.debugging.Assert(good, [error])]):
                return decode_one(image_bytes), error
        empty = tf.zeros((*image_size, 3))
        return tf.cond(good, lambda: decode_one(image_bytes), lambda: empty), error

    unreadable = (tf.zeros((*image_size, 3)), tf.constant("cannot be decoded: the file is damaged"))
    return _map_rows(image_and_error, encoded, unreadable, on_error)


def example_images(examples):
    """The feature `image/encoded` of serialised `tf.Example`s; empty where there is none.

    Args:
        examples: String tensor `(batch,)`.

    Returns:
        A string tensor `(batch,)`.
    """
    import tensorflow as tf

    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string, "")}
    (encoded,) = _map_rows(
        lambda example: tuple(tf.io.parse_single_example(example, feature).values()),
        examples,
        (tf.constant(""),),
        on_error="row",
    )
    return encoded


def _map_rows(function, rows, default, on_error):
    """`function` of each row, in parallel; `default` where an operation of it fails.

    A graph cannot catch errors, but a data set in it can leave out the rows that raise. They are
    told by their missing index.
    """
    import tensorflow as tf

    count = tf.size(rows, out_type=tf.int64)
    data = tf.data.Dataset.from_tensor_slices((tf.range(count), rows))
    data = data.map(lambda index, row: (index, *function(row)), num_parallel_calls=_PARALLEL_IMAGES)
    if on_error == "row":
        data = data.ignore_errors()
    # The last row keeps the batch from being empty.
    data = data.concatenate(tf.data.Dataset.from_tensors((count, *default)))
    index, *values = data.batch(count + 1).get_single_element()

    def with_defaults():
        found = tf.scatter_nd(index[:, None], tf.range(1, tf.size(index) + 1), [count + 1])
        # Where nothing was found, the last value, which is the default.
        places = tf.where(found > 0, found - 1, tf.size(index) - 1)
        return [tf.gather(value, places[:-1]) for value in values]

    complete = tf.equal(tf.size(index, out_type=tf.int64), count + 1)
    outputs = tf.cond(complete, lambda: [value[:-1] for value in values], with_defaults)
    return tuple(
        tf.ensure_shape(output, (None, *missing.shape))
        for output, missing in zip(outputs, default, strict=True)
    )


def _header_error(image_bytes, limits):
    """Why the file is not to be decoded, or an empty string."""
    import tensorflow as tf

    size = tf.strings.length(image_bytes)
    is_jpeg = tf.equal(tf.strings.substr(image_bytes, 0, tf.minimum(size, 3)), b"\xff\xd8\xff")
    is_png = tf.equal(tf.strings.substr(image_bytes, 0, tf.minimum(size, 8)), b"\x89PNG\r\n\x1a\n")
    # The size must come first: libpng would pass over a chunk before it that feigns another.
    has_header = tf.equal(
        tf.strings.substr(
            image_bytes, tf.minimum(size, 8), tf.minimum(size - tf.minimum(size, 8), 8)
        ),
        b"\x00\x00\x00\rIHDR",
    )

    def size_error():
        sides = tf.cond(
            is_jpeg,
            lambda: tf.cast(tf.image.extract_jpeg_shape(image_bytes)[:2], tf.int64),
            # Height follows width, both big-endian and without a sign, in the first chunk.
            lambda: (
                tf.cast(
                    tf.io.decode_raw(
                        tf.strings.substr(image_bytes, 16, 8), tf.int32, little_endian=False
                    )[::-1],
                    tf.int64,
                )
                % 2**32
            ),
        )
        pixels = tf.reduce_prod(sides)
        fits = (pixels <= limits.max_pixels) & tf.reduce_all((sides > 0) & (sides <= MAX_SIDE))
        found = tf.strings.format("{} x {} pixels", (sides[0], sides[1]))
        bound = f": at most {limits.max_pixels} and no side above {MAX_SIDE} are taken"
        return tf.cond(fits, parts_error, lambda: tf.strings.join([found, bound]))

    def parts_error():
        return tf.cond(
            is_jpeg,
            lambda: _too_many(image_bytes, "scans in the JPEG", MAX_SCANS, _SCANS),
            lambda: _too_many(image_bytes, "zTXt and iTXt texts in the PNG", MAX_TEXTS, _TEXTS),
        )

    def file_error():
        return tf.case(
            [
                (tf.equal(size, 0), lambda: tf.constant("empty: expected a JPEG or PNG file")),
                (
                    is_png & (size <= limits.max_bytes),
                    lambda: tf.constant("cannot be decoded: the PNG does not begin with its size"),
                ),
                (
                    size > limits.max_bytes,
                    lambda: tf.strings.format(
                        "{} bytes: at most " + f"{limits.max_bytes} are taken", (size,)
                    ),
                ),
            ],
            default=lambda: tf.constant("neither a JPEG nor a PNG file"),
        )

    readable = (is_jpeg | (is_png & has_header)) & (size <= limits.max_bytes)
    return tf.cond(readable, size_error, file_error)


def _too_many(image_bytes, what, most, marks):
    """The error of a file in which `marks` occur more than `most` times."""
    import tensorflow as tf

    found = sum(
        # One more is enough: a file may hold millions.
        tf.raw_ops.StringSplitV2(input=[image_bytes], sep=mark, maxsplit=most + 1).shape[1] - 1
        for mark in marks
    )
    return tf.where(found > most, f"more than {most} {what}: no more are taken", "")


def prepare(images, image_size, preprocessing):
    """Resizes a batch of images of one size and crops its centre.

    Args:
        images: uint8 tensor `(batch, height, width, 3)`, its sizes known only at run time.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: An `ImagePreprocessing` layer; only its evaluation policy is read.

    Returns:
        A float32 tensor `(batch, *image_size, 3)` of pixels, 0 to 255, not rounded.
    """
    import tensorflow as tf

    # Not on a GPU, whose float32 products may round to TF32's 11 bits.
    with tf.device("CPU:0"):
        source = tf.shape(images, out_type=tf.int64)[1:3]
        resized = _resized_size(source, image_size, preprocessing)
        offset = (resized - tf.constant(image_size, tf.int64)) // 2
        axes = zip(*map(tf.unstack, (source, resized, offset)), image_size, strict=True)
        if preprocessing.interpolation == "nearest":
            rows, columns = (_nearest(*axis) for axis in axes)
            crop = tf.cast(tf.gather(tf.gather(images, rows, axis=1), columns, axis=2), tf.float32)
        else:
            rows, columns = (_windows(*axis, preprocessing.interpolation) for axis in axes)
            crop = _resample(images, rows, columns, image_size)
        # Bicubic overshoots at edges.
        return tf.clip_by_value(tf.ensure_shape(crop, (None, *image_size, 3)), 0.0, 255.0)


def prepare_each(images, image_size, preprocessing):
    """The same as `prepare`, image by image: memory for long lines is that of a few images."""
    import tensorflow as tf

    return tf.map_fn(
        lambda image: prepare(image[None], image_size, preprocessing)[0],
        images,
        fn_output_signature=tf.TensorSpec((*image_size, 3), tf.float32),
        parallel_iterations=_PARALLEL_IMAGES,
    )


def _resized_size(source, image_size, preprocessing):
    """The size, int64 `(height, width)`, that an image is resized to before the centre crop."""
    import tensorflow as tf

    target = tf.constant(
        [math.floor(size / preprocessing.crop_fraction) for size in image_size], tf.int64
    )
    if preprocessing.crop_mode == "squash":
        return target
    height, width = source[0], source[1]
    by_height = tf.stack([target[0], target[0] * width // height])
    by_width = tf.stack([target[1] * height // width, target[1]])
    return tf.where(target[0] * width >= target[1] * height, by_height, by_width)


def _nearest(source, resized, offset, size):
    """The `size` source pixels that the crop of one axis takes."""
    import tensorflow as tf

    # floor((index + 0.5) * source / resized), exact.
    return (2 * (tf.range(size, dtype=tf.int64) + offset) + 1) * source // (2 * resized)


def _windows(source, resized, offset, size, interpolation):
    """The source pixels under a few outputs of one axis at a time, and their weights.

    They are rows `offset` to `offset + size` of `resampling_matrix(source, resized,
    interpolation)`, in groups, without the zeros that make up most of it. tf.image.resize
    computes positions in float32, which is not close enough: a trained ViT-Ti's probabilities
    then differ by more than 1e-5.

    Returns:
        Indices of pixels, int64 `(groups, window)`, and weights, float32 `(groups, group size,
        window)`; the last group may go on beyond `size`.
    """
    import tensorflow as tf

    groups = math.ceil(size / _GROUP)
    step = tf.cast(source, tf.float64) / tf.cast(resized, tf.float64)
    output = tf.range(groups * _GROUP, dtype=tf.float64) + tf.cast(offset, tf.float64)
    centre = tf.reshape((output + 0.5) * step - 0.5, (groups, _GROUP))
    stretch = tf.maximum(step, tf.ones((), tf.float64))
    radius = (1.0 if interpolation == "bilinear" else 2.0) * stretch
    window = tf.math.ceil((_GROUP - 1) * step + 2.0 * radius) + 1.0
    pixels = tf.math.floor(centre[:, :1] - radius) + tf.range(window, dtype=tf.float64)
    d = tf.abs(pixels[:, None] - centre[:, :, None]) / stretch
    if interpolation == "bilinear":
        weights = tf.nn.relu(1.0 - d)
    else:
        # Keys' cubic with a = -0.5.
        inner = (1.5 * d - 2.5) * d * d + 1.0
        outer = ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
        weights = tf.where(d <= 1.0, inner, tf.where(d < 2.0, outer, tf.zeros_like(d)))
    inside = (pixels >= 0.0) & (pixels < tf.cast(source, tf.float64))
    weights *= tf.cast(inside, tf.float64)[:, None]
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))
    last = tf.cast(source - 1, tf.float64)
    indices = tf.cast(tf.clip_by_value(pixels, tf.zeros_like(last), last), tf.int64)
    return indices, tf.cast(weights, tf.float32)


def _sums(lines, indices, weights):
    """Weighted sums of groups: `(batch, length, values)` to `(batch, groups, group, values)`."""
    import tensorflow as tf

    return tf.matmul(weights, tf.cast(tf.gather(lines, indices, axis=1), tf.float32))


def _sums_in_parts(lines, indices, weights):
    """The same, a few groups at a time: the pixels under them alone are float32 then."""
    import tensorflow as tf

    groups, group = weights.shape[0], weights.shape[1]
    batch, values = tf.shape(lines)[0], tf.shape(lines)[2]
    values_of_group = tf.size(indices[0], tf.int64) * tf.size(lines[:, 0], tf.int64)
    some = tf.cast(tf.clip_by_value(_VALUES_AT_A_TIME // values_of_group, 1, groups), tf.int32)

    def add(first, done):
        part = slice(first, first + some)
        return first + some, tf.concat([done, _sums(lines, indices[part], weights[part])], axis=1)

    _, sums = tf.while_loop(
        lambda first, _: first < groups,
        add,
        (0, tf.zeros(tf.stack([batch, 0, group, values]))),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape((None, None, group, None))),
    )
    return sums


def _resample(images, rows, columns, image_size):
    import tensorflow as tf

    height, width = image_size
    batch, source_height, source_width, channels = tf.unstack(tf.shape(images))
    lines = tf.reshape(images, (batch, source_height, source_width * channels))
    # Rows first: that needs no transposed copy of the large image.
    lines = tf.cond(
        tf.size(rows[0], tf.int64) * tf.size(lines[:, 0], tf.int64) <= _VALUES_AT_A_TIME,
        lambda: _sums(lines, *rows),
        lambda: _sums_in_parts(lines, *rows),
    )
    lines = tf.reshape(lines, (batch, -1, source_width, channels))
    lines = tf.transpose(lines, (0, 2, 1, 3))
    padded = tf.shape(lines)[2]
    lines = tf.reshape(lines, (batch, source_width, padded * channels))
    crop = tf.reshape(_sums(lines, *columns), (batch, -1, padded, channels))
    return tf.transpose(crop, (0, 2, 1, 3))[:, :height, :width]
