"""LiteRT, formerly TensorFlow Lite: one file for phones and small devices."""

import os
import tempfile

from keras_vit.export.pixel_graph import pixel_function

_EXAMPLE = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

classify = Interpreter("model.tflite", num_threads=2).get_signature_runner("serving_default")
pixels = np.asarray(Image.open("cat.jpg").convert("RGB"))[None]
probabilities = classify(pixels=pixels)["probabilities"]
"""


def write_litert(model, file, precision, calibration_images):
    """Writes a model of logits as a `.tflite` file, in builtin operations only."""
    import tensorflow as tf

    function = pixel_function(model)
    module = tf.Module()
    # What the graph reads and no more.
    module.weights = list(function.variables)
    # By way of a SavedModel, whose signature keeps the names of input and outputs.
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
    with open(file, "wb") as stream:
        stream.write(content)


def load_litert(file, precision, threads):
    """A function from pixels to probabilities and logits, computed by LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(os.fspath(file), num_threads=threads)
    run = interpreter.get_signature_runner("serving_default")
    return lambda pixels: run(pixels=pixels)


def litert_example(precision):
    """Python that computes `probabilities` of `cat.jpg`, in the folder of the model."""
    return _EXAMPLE
