"""The signatures of a SavedModel, read out of its file with TensorFlow's protocol buffers."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Signature:
    """The tensors of a signature.

    Args:
        method_name: What the server offers it as.
        inputs: Name of the tensor in the graph, and its TF_DataType, of each input.
        outputs: The same of each output.
    """

    method_name: str
    inputs: dict[str, tuple[str, int]]
    outputs: dict[str, tuple[str, int]]


def read_signatures(folder: str | os.PathLike) -> dict[str, Signature]:
    """The signatures of the meta graph with the tag `serve`."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(Path(folder, "saved_model.pb").read_bytes())
    (graph,) = [g for g in saved.meta_graphs if list(g.meta_info_def.tags) == ["serve"]]

    def tensors(infos):
        return {name: (info.name, info.dtype) for name, info in infos.items()}

    return {
        name: Signature(d.method_name, tensors(d.inputs), tensors(d.outputs))
        for name, d in graph.signature_def.items()
        # Initialisation of the SavedModel, nothing that a server answers.
        if name != "__saved_model_init_op"
    }
