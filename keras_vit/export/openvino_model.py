"""OpenVINO's intermediate representation: `model.xml` and `model.bin`."""

import contextlib
import logging
import os
import sys

from keras_vit.export.pixel_graph import pixel_function

# What OpenVINO computes with; unless told, it takes bfloat16 where the processor has it.
HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "f32"}

_EXAMPLE = """\
import numpy as np
import openvino
from PIL import Image

hints = {{"INFERENCE_PRECISION_HINT": "{hint}", "PERFORMANCE_HINT": "LATENCY"}}
model = openvino.compile_model("model.xml", "CPU", hints)
pixels = np.asarray(Image.open("cat.jpg").convert("RGB"))[None]
probabilities = model(pixels)["probabilities"]
"""


def write_openvino(model, file, precision, calibration_images):
    """Writes a model of logits as OpenVINO IR, its weights beside it in a `.bin`."""
    import openvino

    converted = openvino.convert_model(pixel_function(model))
    if precision == "int8":
        converted = _quantize(converted, calibration_images)
    openvino.save_model(converted, os.fspath(file), compress_to_fp16=precision == "float16")


def load_openvino(file, precision, threads):
    """A function from pixels to probabilities and logits, computed by OpenVINO on the CPU."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.compile_model(openvino.Core().read_model(file), "CPU", options)

    def run(pixels):
        outputs = compiled(pixels)
        return {name: outputs[name] for name in ("probabilities", "logits")}

    return run


def openvino_example(precision):
    """Python that computes `probabilities` of `cat.jpg`, in the folder of the model."""
    return _EXAMPLE.format(hint=HINTS[precision])


def _quantize(model, images):
    with _without_torch():
        import nncf

        with _quiet("nncf"):
            return nncf.quantize(
                model,
                nncf.Dataset(images),
                # With it, SmoothQuant, and what a transformer cannot have in 8 bits stays float.
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(patterns=["resize_and_crop/.*"]),
            )


@contextlib.contextmanager
def _without_torch():
    """NNCF imports PyTorch where it is, for models of PyTorch.

    Some builds of it end a process that has TensorFlow.
    """
    if "torch" in sys.modules:
        yield
        return
    # What makes an import say that there is no such module.
    sys.modules["torch"] = None
    try:
        yield
    finally:
        sys.modules.pop("torch", None)


@contextlib.contextmanager
def _quiet(name):
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
