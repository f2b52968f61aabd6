"""8-bit ONNX models: the matrix products with weights, and nothing else."""

import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from keras_vit.export.onnx_file import save_onnx

# How far the outliers of the activations are moved into the weights, 0 to 1. Of 0.5, 0.65, 0.8 and
# 0.9, the one whose ViT-Ti agreed with float32 most often.
_SMOOTHING = 0.8


def quantize_statically(source, target, images, heads=1):
    """Quantises weights per output channel and their inputs with ranges seen in `images`.

    Outliers in a few channels of the activations, which all 8-bit steps of a tensor would have to
    stretch over, are first moved into the weights
    ([SmoothQuant, Xiao et al., 2022](https://arxiv.org/abs/2211.10438), equation 4). What the
    products give stays float32: it has outliers too, and the residual path adds it up. So do the
    first product and those of the heads, which read pixels and give logits and are a small share of
    the work.

    Args:
        source: Path of the float32 model.
        target: Path to write to.
        images: Calibration images, uint8 `(1, height, width, 3)`.
        heads: How many of the last products give logits.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        left = iter(images)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"pixels": image}

    with tempfile.TemporaryDirectory() as folder:
        merged, smooth = Path(folder, "merged.onnx"), Path(folder, "smooth.onnx")
        _merge_biases(source, merged)
        _smooth(merged, smooth, images)
        products = _products(_graph(smooth))
        _quietly(
            quantization.quantize_static,
            smooth,
            target,
            Reader(),
            per_channel=True,
            nodes_to_quantize=[node.name for node in products[1:-heads] or products],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=_is_external(source),
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                # The mean of the images' ranges: one odd image does not set the steps of all.
                "CalibMovingAverage": True,
            },
        )


def _merge_biases(source, target):
    """Makes a product and the bias added to it one operation, `Gemm`, while it is float.

    Otherwise onnxruntime does so when it loads the quantised model, and has no 8-bit kernel for
    what comes out.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = os.fspath(target)
    if _is_external(source):
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{target.name}.data")
    onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])


def quantize_dynamically(source, target):
    """Quantises weights per output channel, and their inputs by the range each has at run time.

    The second layer of each MLP stays float32: its inputs, after the GELU, have outliers that 8
    bits for a whole tensor do not hold.
    """
    from onnxruntime import quantization

    nodes = [node for node in _products(_graph(source)) if "/mlp/projection/" not in node.input[1]]
    _quietly(
        quantization.quantize_dynamic,
        source,
        target,
        per_channel=True,
        nodes_to_quantize=[node.name for node in nodes],
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=_is_external(source),
    )


def _graph(file):
    import onnx

    return onnx.load(os.fspath(file), load_external_data=False).graph


def _is_external(file):
    return Path(f"{file}.data").exists()


def _products(graph):
    """The matrix products whose second factor is a weight: those of the Dense layers."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]


def _smooth(source, target, images):
    """Divides the inputs of each product by a factor a channel, and multiplies its weights."""
    import onnx
    from onnx import helper, numpy_helper

    largest = _largest_inputs(source, images)
    proto = onnx.load(os.fspath(source))
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in _products(graph)}
    ordered = []
    for node in graph.node:
        if node.name in nodes:
            tensor = weights[node.input[1]]
            kernel = numpy_helper.to_array(tensor)
            # A channel that is always zero stays as it is.
            inputs = np.maximum(largest[node.input[0]], 1e-5)
            columns = np.maximum(np.abs(kernel).max(axis=1), 1e-5)
            factor = np.float32(inputs**_SMOOTHING / columns ** (1 - _SMOOTHING))
            tensor.CopyFrom(numpy_helper.from_array(kernel * factor[:, None], tensor.name))
            divisor = f"{tensor.name}/smoothing"
            graph.initializer.append(numpy_helper.from_array(1 / factor, divisor))
            smoothed = f"{node.name}/smoothed"
            ordered.append(
                helper.make_node("Mul", [node.input[0], divisor], [smoothed], name=smoothed)
            )
            node.input[0] = smoothed
        ordered.append(node)
    ordered = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(ordered)
    save_onnx(proto, target)


def _largest_inputs(source, images):
    """The largest magnitude in each channel of what each product reads, by its name."""
    import onnx
    import onnxruntime
    from onnx import helper

    proto = onnx.load(os.fspath(source), load_external_data=False)
    names = sorted({node.input[0] for node in _products(proto.graph)})
    present = {output.name for output in proto.graph.output}
    for name in names:
        if name not in present:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    # Beside the source, whose weights it may read.
    probe = Path(source).with_name("probe.onnx")
    probe.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(os.fspath(probe), providers=["CPUExecutionProvider"])
    largest = None
    for image in images:
        values = session.run(names, {"pixels": image})
        found = [np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) for value in values]
        largest = found if largest is None else list(map(np.maximum, largest, found))
    return dict(zip(names, largest, strict=True))


def _quietly(function, *arguments, **options):
    """Without the advice, at the root logger, to run a preparation that these models had."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        function(*arguments, **options)
    finally:
        root.setLevel(level)
