"""From decoded images to probabilities, in operations that every engine has.

The arithmetic is that of `keras_vit.data.prepare_image`. Engines have int32, float32 and matrix
products; float64, loops and scattering, which `image_graph` is made of, not all of them have.
"""

import math

from keras_vit.export.classifier import model_image_size, preprocessing_layer


def pixel_function(model):
    """The function that engines convert, the weights being constants of its graph.

    Args:
        model: A model with a `preprocessing` layer, from images of a fixed size to logits.

    Returns:
        A TensorFlow concrete function from `pixels`, uint8 `(batch, height, width, 3)` of any size,
        to `probabilities` and `logits`, float32 `(batch, num_classes)`.
    """

    def classify(pixels):
        return _classify(lambda images: model(images, training=False), model, pixels)

    return _traceable(classify).get_concrete_function(_pixels())


def pixel_function_of_weights(model):
    """The same function with the weights as further inputs, for models of any number of bytes.

    Returns:
        The TensorFlow function of `pixels` and a list of weights, its input signature, and the
        weights: a dict of variables by the name of the input.
    """
    import tensorflow as tf

    trained = len(model.trainable_variables)
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    weights = {f"weight_{index}": variable for index, variable in enumerate(variables)}

    def classify(pixels, values):
        def call(images):
            outputs, _ = model.stateless_call(
                values[:trained], values[trained:], images, training=False
            )
            return outputs

        return _classify(call, model, pixels)

    specs = [tf.TensorSpec(v.shape, v.dtype, name=name) for name, v in weights.items()]
    signature = [_pixels(), specs]
    return _traceable(classify, input_signature=signature), signature, weights


def _pixels():
    import tensorflow as tf

    return tf.TensorSpec((None, None, None, 3), tf.uint8, name="pixels")


def _traceable(function, **options):
    import tensorflow as tf

    return tf.function(function, autograph=False, jit_compile=False, **options)


def _classify(call, model, pixels):
    import tensorflow as tf

    # Quantisers leave out what has this name.
    with tf.name_scope("resize_and_crop"):
        images = resize_and_crop(pixels, model_image_size(model), preprocessing_layer(model))
    logits = tf.cast(call(images), tf.float32)
    return {"probabilities": tf.nn.softmax(logits), "logits": logits}


def resize_and_crop(images, image_size, preprocessing):
    """Resizes a batch of images of one size and crops its centre.

    Args:
        images: uint8 tensor `(batch, height, width, 3)`, its sizes known only at run time.
        image_size: `(height, width)` of the model, in pixels.
        preprocessing: An `ImagePreprocessing` layer; only its evaluation policy is read.

    Returns:
        A float32 tensor `(batch, *image_size, 3)` of pixels, 0 to 255, not rounded; NaN for images
        so long and narrow that a side times its size after resizing reaches 2²⁹.
    """
    import tensorflow as tf

    shape = tf.shape(images)
    source = (shape[1], shape[2])
    resized = _resized_size(*source, image_size, preprocessing)
    axes = [
        (old, new, (new - size) // 2, size)
        for old, new, size in zip(source, resized, image_size, strict=True)
    ]
    images = tf.cast(images, tf.float32)
    if preprocessing.interpolation == "nearest":
        rows, columns = (_nearest(*axis) for axis in axes)
        crop = tf.gather(tf.gather(images, rows, axis=1), columns, axis=2)
    else:
        rows, columns = (_matrix(*axis, preprocessing.interpolation) for axis in axes)
        lines = tf.reshape(images, tf.stack([shape[0], shape[1], shape[2] * 3]))
        lines = tf.reshape(tf.matmul(rows, lines), tf.stack([-1, shape[2], 3]))
        crop = tf.reshape(tf.matmul(columns, lines), (-1, *image_size, 3))
    # Bicubic overshoots at edges.
    crop = tf.clip_by_value(tf.ensure_shape(crop, (None, *image_size, 3)), 0.0, 255.0)
    # Beyond, the integers below would have run over: no answer rather than a wrong one.
    # Roots, because an engine of 16-bit constants does not have 2²⁹.
    roots = tf.sqrt(tf.cast(source, tf.float32)) * tf.sqrt(tf.cast(resized, tf.float32))
    return tf.where(tf.reduce_max(roots) < 2.0**14.5, crop, math.nan)


def _resized_size(height, width, image_size, preprocessing):
    """The size, int32 height and width, that an image is resized to before the centre crop."""
    import tensorflow as tf

    rows, columns = (math.floor(size / preprocessing.crop_fraction) for size in image_size)
    if preprocessing.crop_mode == "squash":
        return tf.constant(rows), tf.constant(columns)
    # The sides keep their ratio: the one that would fall short of its target is the target.
    return (
        tf.maximum(rows, columns * height // width),
        tf.maximum(columns, rows * width // height),
    )


def _nearest(source, resized, offset, size):
    """The `size` source pixels that the crop of one axis takes."""
    import tensorflow as tf

    # floor((index + 0.5) * source / resized), exact.
    return (2 * (tf.range(size) + offset) + 1) * source // (2 * resized)


def _matrix(source, resized, offset, size, interpolation):
    """Rows `offset` to `offset + size` of `resampling_matrix(source, resized, interpolation)`."""
    import tensorflow as tf

    # The distance from a pixel's centre to a tap, in units of 1 / (2 * resized): an integer, and so
    # exact where float32 positions are not, also in an engine that computes in bfloat16.
    centre = (2 * (tf.range(size) + offset) + 1) * source - resized
    distance = tf.abs(centre[:, None] - 2 * resized * tf.range(source)[None])
    # Stretched when the image shrinks.
    d = tf.cast(distance, tf.float32) / tf.cast(2 * tf.maximum(source, resized), tf.float32)
    if interpolation == "bilinear":
        weights = tf.nn.relu(1.0 - d)
    else:
        # Keys' cubic with a = -0.5.
        inner = (1.5 * d - 2.5) * d * d + 1.0
        outer = ((2.5 - 0.5 * d) * d - 4.0) * d + 2.0
        weights = tf.where(d <= 1.0, inner, tf.where(d < 2.0, outer, tf.zeros_like(d)))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)
