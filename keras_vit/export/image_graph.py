"""From encoded images to the model's pixels, in TensorFlow operations only.

The arithmetic is that of `keras_vit.data.prepare_image`, without anything of ours at run time.
"""

import math

# tf.image.resize(antialias=True) names its kernels so; it cannot leave out what the crop discards.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


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

    source = tf.shape(images, out_type=tf.int64)[1:3]
    resized = _resized_size(source, image_size, preprocessing)
    offset = (resized - tf.constant(image_size, tf.int64)) // 2
    if preprocessing.interpolation == "nearest":
        crop = _nearest(images, image_size, source, resized, offset)
    else:
        crop = tf.raw_ops.ScaleAndTranslate(
            images=images,
            size=tf.constant(image_size, tf.int32),
            scale=tf.cast(resized, tf.float32) / tf.cast(source, tf.float32),
            translation=-tf.cast(offset, tf.float32),
            kernel_type=_KERNELS[preprocessing.interpolation],
            antialias=True,
        )
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


def _nearest(images, image_size, source, resized, offset):
    import tensorflow as tf

    for axis in (0, 1):
        index = tf.range(image_size[axis], dtype=tf.int64) + offset[axis]
        # floor((index + 0.5) * source / resized), exact.
        nearest = (2 * index + 1) * source[axis] // (2 * resized[axis])
        images = tf.gather(images, nearest, axis=axis + 1)
    return tf.cast(images, tf.float32)
