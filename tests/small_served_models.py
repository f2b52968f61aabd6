"""Small SavedModels with the signatures of an export, made without any of our code.

Each has one flaw, or none: what a check of a server must notice comes from here.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

CLASSES = ("cat", "dog", "naïve", "ox", "pig", "rat", "yak")
TOP = 5
FLAWS = (
    "none",
    "neighbours",  # the answer depends on the other rows
    "sums",  # probabilities sum to 0.9
    "nan",  # logits are not finite
    "polite",  # bad pictures are answered
    "loud",  # a bad row has its error, and scores
    "hurt",  # a bad row zeroes all rows
    "strict",  # a bad picture fails the call, and there is no `error`
    "fractional",  # classify gives other scores
)
_MAX_BYTES, _MAX_PIXELS, _MAX_PARTS = 1_000_000, 1_000_000, 100


def write_model(folder, flaw="none", seed=0):
    """Writes a SavedModel to `folder`, whose name is the version."""
    # The server closes over nothing: the weights are constants.
    weights = tf.constant(np.random.default_rng(seed).normal(0, 1, (48, len(CLASSES))), tf.float32)
    names = tf.constant(CLASSES)

    def features(image):
        return tf.reshape(tf.image.resize(tf.cast(image, tf.float32), (4, 4)) / 64, (-1,))

    def read(encoded):
        error = _error(encoded)
        if flaw == "strict":
            with tf.control_dependencies([tf.debugging.Assert(error == "", [error])]):
                return features(_decode(encoded)), error
        return tf.cond(
            error == "", lambda: (features(_decode(encoded)), error), lambda: (tf.zeros(48), error)
        )

    def read_all(encoded):
        signature = (tf.TensorSpec((48,), tf.float32), tf.TensorSpec((), tf.string))
        values, errors = tf.map_fn(read, encoded, fn_output_signature=signature)
        if flaw == "polite":
            errors = tf.zeros_like(errors)
        good = tf.cast(errors == "", tf.float32)[:, None]
        return values, errors, tf.reduce_min(good) * tf.ones_like(good) if flaw == "hurt" else good

    def head(values):
        logits = values @ weights
        if flaw == "neighbours":
            logits -= tf.reduce_mean(logits, axis=0)
        if flaw == "nan":
            logits *= np.nan
        probabilities = tf.nn.softmax(logits) * (0.9 if flaw == "sums" else 1.0)
        scores, best = tf.math.top_k(probabilities, TOP)
        return {
            "logits": logits,
            "probabilities": probabilities,
            "scores": scores,
            "classes": tf.gather(names, best),
        }

    def masked(outputs, good):
        blank = (good == 0) & (flaw != "loud")
        return {
            name: tf.where(blank, "" if value.dtype == tf.string else 0.0, value)
            for name, value in outputs.items()
        }

    def serving_default(image_bytes):
        values, errors, good = read_all(image_bytes)
        outputs = masked(head(values), good)
        return outputs if flaw == "strict" else {**outputs, "error": errors}

    def pixels(pixels):
        size = tf.reduce_prod(tf.shape(pixels)[1:3])
        check = tf.debugging.Assert(size <= _MAX_PIXELS, ["too many pixels", size])
        with tf.control_dependencies([check]):
            pixels = tf.identity(pixels)
        return head(tf.map_fn(features, pixels, fn_output_signature=tf.float32))

    def classify(inputs):
        feature = tf.io.FixedLenFeature((), tf.string)
        encoded = tf.io.parse_example(inputs, {"image/encoded": feature})["image/encoded"]
        values, errors, good = read_all(encoded)
        outputs = masked(head(values), good)
        first = tf.where(errors == "", outputs["classes"][:, 0], errors)
        scores = outputs["scores"] * (0.5 if flaw == "fractional" else 1.0)
        classes = tf.concat([first[:, None], outputs["classes"][:, 1:]], axis=1)
        return {"classes": classes, "scores": scores}

    def embed(image_bytes):
        values, errors, good = read_all(image_bytes)
        outputs = {"embedding": values * good}
        return outputs if flaw == "strict" else {**outputs, "error": errors}

    def attention(image_bytes):
        values, errors, good = read_all(image_bytes)
        outputs = {"attention": tf.reshape(values * good, (-1, 6, 8))}
        return outputs if flaw == "strict" else {**outputs, "error": errors}

    strings = tf.TensorSpec((None,), tf.string)
    colours = tf.TensorSpec((None, None, None, 3), tf.uint8)
    functions = [
        (serving_default, strings),
        (pixels, colours),
        (classify, strings),
        (embed, strings),
        (attention, strings),
    ]
    signatures = {
        function.__name__: tf.function(function, autograph=False).get_concrete_function(spec)
        for function, spec in functions
    }
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
    # TensorFlow writes every signature as one for Predict.
    file = folder / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = model.meta_graphs[0].signature_def["classify"]
    signature.method_name = "tensorflow/serving/classify"
    file.write_bytes(model.SerializeToString())
    return folder


def _decode(encoded):
    return tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3), (None, None, 3))


def _error(encoded):
    """The error text of an encoded picture; empty for one that can be decoded."""
    # Of 24 bytes and more there is a beginning and an end.
    padded = tf.strings.join([encoded, tf.constant(b"\0" * 24)])
    start = tf.strings.substr(padded, 0, 24)
    end = tf.strings.substr(tf.strings.join([tf.constant(b"\0" * 8), encoded]), -8, 8)
    is_jpeg = (tf.strings.substr(start, 0, 3) == b"\xff\xd8\xff") & (
        tf.strings.substr(end, 6, 2) == b"\xff\xd9"
    )
    is_png = (tf.strings.substr(start, 0, 16) == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") & (
        tf.strings.substr(end, 0, 4) == b"IEND"
    )
    sides = tf.io.decode_raw(tf.strings.substr(start, 16, 8), tf.int32, little_endian=False)
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    too_many = is_png & ((pixels < 0) | (pixels > _MAX_PIXELS))
    too_long = tf.strings.length(encoded) > _MAX_BYTES
    parts = [tf.strings.split([encoded], mark).flat_values for mark in (b"zTXt", b"\xff\xda")]
    too_many_parts = tf.size(tf.concat(parts, 0)) > _MAX_PARTS
    error = tf.where(is_jpeg | is_png, "", "not a JPEG or PNG file")
    error = tf.where(too_many_parts, "too many texts or scans", error)
    error = tf.where(too_many, "too many pixels", error)
    return tf.where(too_long, "too many bytes", error)
