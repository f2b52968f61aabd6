"""From encoded images to the model's pixels, in TensorFlow operations only.

The arithmetic is that of `keras_vit.data.prepare_image`, without anything of ours at run time.
"""

import math


def decode_and_prepare(image_bytes, image_size, preprocessing):
    """Decodes a batch of encoded images of any sizes and brings them to the model's size.

    Args:
        image_bytes: String tensor `(batch,)` of JPEG or PNG files.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: An `ImagePreprocessing` layer; only its evaluation policy is read.

    Returns:
        A float32 tensor `(batch, height, width, 3)` of pixels, 0 to 255.
    """
    import tensorflow as tf

    def decode_one(encoded):
        # This operation decodes PNG too; decode_image would not let the accurate DCT be chosen,
        # which is the one of Pillow.
        image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.ensure_shape(image, (None, None, 3))
        return prepare(image[None], image_size, preprocessing)[0]

    # One after the other in the graph, in parallel at run time; vectorized_map has no decoder.
    return tf.map_fn(
        decode_one,
        image_bytes,
        fn_output_signature=tf.TensorSpec((*image_size, 3), tf.float32),
        parallel_iterations=16,
    )


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
            rows, columns = (_matrix(*axis, preprocessing.interpolation) for axis in axes)
            crop = _resample(images, rows, columns)
        # Bicubic overshoots at edges.
        return tf.clip_by_value(tf.ensure_shape(crop, (None, *image_size, 3)), 0.0, 255.0)


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


def _matrix(source, resized, offset, size, interpolation):
    """Rows `offset` to `offset + size` of `resampling_matrix(source, resized, interpolation)`.

    tf.image.resize computes positions in float32, which is not close enough: a trained ViT-Ti's
    probabilities then differ by more than 1e-5.
    """
    import tensorflow as tf

    source, resized, offset = (tf.cast(value, tf.float64) for value in (source, resized, offset))
    step = source / resized
    centre = (tf.range(size, dtype=tf.float64) + offset + 0.5) * step - 0.5
    stretch = tf.maximum(step, tf.ones((), tf.float64))
    d = tf.abs(tf.range(source, dtype=tf.float64) - centre[:, None]) / stretch
    if interpolation == "bilinear":
        weights = tf.nn.relu(1.0 - d)
    else:
        # Keys' cubic with a = -0.5.
        inner = (1.5 * d - 2.5) * d * d + 1.0
        outer = ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
        weights = tf.where(d <= 1.0, inner, tf.where(d < 2.0, outer, tf.zeros_like(d)))
    return tf.cast(weights / tf.reduce_sum(weights, axis=1, keepdims=True), tf.float32)


def _resample(images, rows, columns):
    import tensorflow as tf

    batch, height, width, channels = tf.unstack(tf.shape(images))
    # Rows first: their product needs no transposed copy of the large image.
    lines = tf.reshape(tf.cast(images, tf.float32), (batch, height, width * channels))
    lines = tf.reshape(tf.matmul(rows, lines), (batch, -1, width, channels))
    return tf.einsum("wx,bhxc->bhwc", columns, lines)
