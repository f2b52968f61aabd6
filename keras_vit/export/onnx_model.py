"""ONNX: a model for onnxruntime and whatever else reads the format."""

import contextlib
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from keras_vit.export.classifier import heads
from keras_vit.export.onnx_file import save_onnx
from keras_vit.export.onnx_quantization import quantize_dynamically, quantize_statically
from keras_vit.export.onnx_rewriting import use_whole_operations
from keras_vit.export.pixel_graph import pixel_function_of_weights

# The highest that tf2onnx writes, and the one that has GELU; between them nothing changes for the
# operations used here.
_CONVERTED_OPSET, _OPSET = 18, 20

_EXAMPLE = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
pixels = np.asarray(Image.open("cat.jpg").convert("RGB"))[None]
(probabilities,) = session.run(["probabilities"], {"pixels": pixels})
"""


def write_onnx(model, file, precision, calibration_images):
    """Writes a model of logits as ONNX; one of 2 GiB or more with its weights beside it."""
    proto = _convert(model)
    if precision == "float32":
        save_onnx(proto, file)
        return
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder, "float32.onnx")
        save_onnx(proto, float_file)
        if precision == "int8":
            quantize_statically(float_file, file, calibration_images, len(heads(model)))
        else:
            quantize_dynamically(float_file, file)


def load_onnx(file, precision, threads):
    """A function from pixels to probabilities and logits, computed by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        os.fspath(file), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))


def onnx_example(precision):
    """Python that computes `probabilities` of `cat.jpg`, in the folder of the model."""
    return _EXAMPLE


def _convert(model):
    import tf2onnx
    from onnx import numpy_helper

    function, signature, weights = pixel_function_of_weights(model)
    with _quiet("tf2onnx"):
        proto, _ = tf2onnx.convert.from_function(
            function,
            input_signature=signature,
            opset=_CONVERTED_OPSET,
            # Left as it is, and then rewritten as a part of GELU.
            custom_op_handlers={"Erfc": (lambda *_: None, [])},
        )
    graph = proto.graph
    pixels = [tensor for tensor in graph.input if tensor.name not in weights]
    for tensor in graph.input:
        if tensor.name in weights:
            value = np.asarray(weights[tensor.name])
            graph.initializer.append(numpy_helper.from_array(value, tensor.name))
    del graph.input[:]
    graph.input.extend(pixels)
    use_whole_operations(graph)
    _name_weights(graph, {name: weight.path for name, weight in weights.items()})
    proto.opset_import[0].version = _OPSET
    proto.producer_name, proto.producer_version = "keras_vit", ""
    return proto


def _name_weights(graph, paths):
    """Gives the weights the names that they have in Keras."""
    for tensor in graph.initializer:
        tensor.name = paths.get(tensor.name, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = paths.get(name, name)


@contextlib.contextmanager
def _quiet(name):
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
