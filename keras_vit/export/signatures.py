"""The signatures of an exported model, traced: what a server can be asked."""

from dataclasses import dataclass

from keras_vit.export.classifier import (
    features_model,
    logits_model,
    model_image_size,
    preprocessing_layer,
)
from keras_vit.export.folding import fold_constants
from keras_vit.export.fused_norms import fused_norms
from keras_vit.export.image_graph import (
    decode_and_prepare,
    example_images,
    prepare,
    prepare_each,
)
from keras_vit.export.limits import DEFAULT_LIMITS, MAX_SIDE, ImageLimits
from keras_vit.inspection import attention_rollout
from keras_vit.models import without_unread_tokens
from keras_vit.models.in_parts import with_tokens_in_parts

ON_ERROR = ("row", "fail")
NO_IMAGE = "no image: expected a tf.Example with one value of bytes in the feature image/encoded"
# Values of the first lines of a batch of pixels.
_SHORT_LINES = 64 * 1024 * 3


@dataclass(frozen=True)
class ServingOptions:
    """What is served beside the model itself.

    Args:
        top: Number of `classes` and `scores`; at most all classes are given.
        limits: What is taken of an encoded image.
        on_error: `"row"`: an image that cannot be taken answers with zeros and an error, for its
            row alone. `"fail"`: it fails the whole call.
        attention: Whether there is a signature `attention`.
        token_parts: Number of parts of an image's tokens that the server may compute beside each
            other.

    Raises:
        ValueError: If an option is not of its kind.

    Example:

    >>> ServingOptions(top=3).on_error
    'row'
    """

    top: int = 5
    limits: ImageLimits = DEFAULT_LIMITS
    on_error: str = "row"
    attention: bool = False
    token_parts: int = 1

    def __post_init__(self):
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise ValueError(f"`top` must be a positive integer. Received: top={self.top!r}")
        if self.on_error not in ON_ERROR:
            raise ValueError(
                f"`on_error` must be one of {', '.join(ON_ERROR)}. "
                f"Received: on_error={self.on_error!r}"
            )
        parts = self.token_parts
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
            raise ValueError(f"`token_parts` must be a positive integer. Received: {parts!r}")


def trace_signatures(model, class_names, options):
    """The concrete functions of a model, by the name of their signature.

    Args:
        model: A classifier with a `preprocessing` layer.
        class_names: A `tf.lookup` table from a class' index to its name.
        options: `ServingOptions`.
    """
    import tensorflow as tf

    preprocessing, image_size = preprocessing_layer(model), model_image_size(model)
    model = fold_constants(model)
    classifier, embedder = (
        _in_parts(without_unread_tokens(network), options.token_parts)
        for network in (logits_model(model), features_model(model))
    )
    looking = attention_rollout(model) if options.attention else None
    top = min(options.top, classifier.output_shape[-1])

    def traced(*specification):
        # TensorFlow Serving cannot run a function with jit_compile=True.
        return tf.function(
            input_signature=[tf.TensorSpec(*specification)], autograph=False, jit_compile=False
        )

    strings, pixels = ((None,), tf.string), ((None, None, None, 3), tf.uint8)
    prepared = ((None, *image_size, 3), tf.float32)

    # Traced once for all signatures.
    @traced(*strings)
    def decoded(image_bytes):
        arguments = (image_size, preprocessing, options.limits, options.on_error)
        return decode_and_prepare(image_bytes, *arguments)

    def run(network, images):
        return tf.cast(network(images, training=False), tf.float32)

    @traced(*prepared)
    def classify(images):
        logits = run(classifier, images)
        probabilities = tf.nn.softmax(logits)
        scores, best = tf.math.top_k(probabilities, top)
        classes = class_names.lookup(tf.cast(best, tf.int64))
        outputs = {"classes": classes, "scores": scores}
        return {**outputs, "probabilities": probabilities, "logits": logits}

    def classify_bytes(image_bytes):
        images, error = decoded(image_bytes)
        return _without_bad_rows(classify(images), error)

    def classify_pixels(pixels):
        size = tf.shape(pixels, out_type=tf.int64)[1:3]
        fits = (tf.reduce_prod(size) <= options.limits.max_pixels) & (
            tf.reduce_max(size) <= MAX_SIDE
        )
        message = (
            "pixels must have at least one row and one column, no side above "
            f"{MAX_SIDE} and at most {options.limits.max_pixels} pixels; found (rows, columns):"
        )
        check = tf.debugging.Assert(fits & tf.reduce_all(size > 0), [message, size])
        with tf.control_dependencies([check]):
            # Lines of a batch at once are faster, unless they are long.
            images = tf.cond(
                tf.size(pixels[:, 0], tf.int64) <= _SHORT_LINES,
                lambda: prepare(pixels, image_size, preprocessing),
                lambda: prepare_each(pixels, image_size, preprocessing),
            )
        return classify(images)

    def classify_examples(inputs):
        encoded = example_images(inputs)
        outputs = classify_bytes(encoded)
        # Two outputs are all that the server's classification API knows: the first class
        # carries the error.
        error, classes = outputs["error"], outputs["classes"]
        error = tf.where(tf.equal(encoded, ""), NO_IMAGE, error)[:, None]
        first = tf.concat([error, classes[:, 1:]], axis=1)
        return {
            "classes": tf.where(tf.equal(error, ""), classes, first),
            "scores": outputs["scores"],
        }

    def embed(image_bytes):
        images, error = decoded(image_bytes)
        return _without_bad_rows({"embedding": run(embedder, images)}, error)

    def attention(image_bytes):
        images, error = decoded(image_bytes)
        return _without_bad_rows({"attention": run(looking, images)}, error)

    functions = {
        "serving_default": (classify_bytes, strings),
        "pixels": (classify_pixels, pixels),
        "classify": (classify_examples, strings),
        "embed": (embed, strings),
    }
    if options.attention:
        functions["attention"] = (attention, strings)
    with fused_norms():
        return {
            name: traced(*specification)(function).get_concrete_function()
            for name, (function, specification) in functions.items()
        }


def _in_parts(network, parts):
    if parts == 1:
        return network
    divided = with_tokens_in_parts(network, parts)
    if divided is network:
        raise ValueError(
            f"`token_parts={parts}` is not there for this model: blocks with rotary or relative "
            "positions or windows, or that merge or prune tokens, need them together, and a part "
            "at least 24 of them. Leave it out"
        )
    return divided


def _without_bad_rows(outputs, error):
    """Zeros, or empty strings, in the rows that have an error."""
    import tensorflow as tf

    good = tf.equal(error, "")

    def masked(output):
        rows = tf.reshape(good, (-1, *[1] * (output.shape.rank - 1)))
        return tf.where(rows, output, "" if output.dtype == tf.string else 0.0)

    return {**{name: masked(output) for name, output in outputs.items()}, "error": error}
