"""An ONNX model as a file, or as two."""

import os
from pathlib import Path

# Protocol buffers end at 2 GiB: larger models keep their weights in a file of their own.
_LARGEST_FILE = 2**31 - 2**24


def save_onnx(proto, file):
    """Writes an `onnx.ModelProto`; of 2 GiB or more, with the weights in `FILE.data` beside."""
    import onnx

    # Not proto.ByteSize(), which fails above 2 GiB.
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    beside = {"save_as_external_data": True, "location": f"{Path(file).name}.data"}
    onnx.save_model(proto, os.fspath(file), **(beside if weights > _LARGEST_FILE else {}))
