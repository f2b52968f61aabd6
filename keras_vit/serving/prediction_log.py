"""The records of requests that TensorFlow Serving warms up with, written and read.

The messages are the parts of `tensorflow_serving/apis/prediction_log.proto` that hold a request.
They are built here from their numbers, because an export needs nothing else of the package
`tensorflow-serving-api`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np

# Tensors and examples are kept as bytes, which look the same in the file.
MESSAGES: dict[str, list[tuple[int, str, str]]] = {
    # Of the logs that are not replayed, only their kind is read.
    "Unread": [],
    "ModelSpec": [(1, "name", "string"), (3, "signature_name", "string")],
    "NamedTensor": [(1, "key", "string"), (2, "value", "bytes")],
    "PredictRequest": [
        (1, "model_spec", "ModelSpec"),
        (2, "inputs", "repeated NamedTensor"),
        (3, "output_filter", "repeated string"),
    ],
    "PredictLog": [(1, "request", "PredictRequest")],
    "ExampleList": [(1, "examples", "repeated bytes")],
    "Input": [(1, "example_list", "ExampleList"), (2, "example_list_with_context", "Unread")],
    "ExamplesRequest": [(1, "model_spec", "ModelSpec"), (2, "input", "Input")],
    "ExamplesLog": [(1, "request", "ExamplesRequest")],
    "PredictionLog": [
        (2, "classify_log", "ExamplesLog"),
        (3, "regress_log", "ExamplesLog"),
        (4, "multi_inference_log", "Unread"),
        (5, "session_run_log", "Unread"),
        (6, "predict_log", "PredictLog"),
        (7, "predict_streamed_log", "Unread"),
    ],
}
# The one input of a signature that takes serialised examples.
EXAMPLES_INPUT = "inputs"


@dataclasses.dataclass(frozen=True)
class WarmupRequest:
    """One request to a served model.

    Attributes:
        kind: The log that holds it: `"predict_log"`, `"classify_log"`, `"regress_log"`, or one
            that is not read further, such as `"multi_inference_log"`; `""` for an empty record.
        signature: Name of the signature that answers it.
        inputs: Input name → array; `"inputs"` → serialised examples for classify and regress.
    """

    kind: str
    signature: str
    inputs: dict[str, np.ndarray]


@functools.cache
def _prediction_log():
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "keras_vit.prediction_log"
    file = descriptor_pb2.FileDescriptorProto(name=package, package=package, syntax="proto3")
    for message, fields in MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for number, name, kind in fields:
            *repeated, kind = kind.split()
            field = descriptor.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = field.TYPE_STRING if kind == "string" else field.TYPE_BYTES
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.PredictionLog"))


def write_warmup_requests(
    path: str | os.PathLike, requests: Iterable[WarmupRequest], *, model_name: str
) -> None:
    """Writes requests as a TFRecord file of `PredictionLog`.

    Args:
        path: The file, `assets.extra/tf_serving_warmup_requests` of a SavedModel.
        requests: The requests, of kind `"predict_log"` or `"classify_log"`.
        model_name: Name of the served model.
    """
    import tensorflow as tf

    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for request in requests:
            log = _prediction_log()()
            message = getattr(log, request.kind).request
            message.model_spec.name = model_name
            message.model_spec.signature_name = request.signature
            if request.kind == "predict_log":
                for name, array in request.inputs.items():
                    tensor = tf.make_tensor_proto(array)
                    message.inputs.add(key=name, value=tensor.SerializeToString())
            else:
                message.input.example_list.examples.extend(request.inputs[EXAMPLES_INPUT].tolist())
            writer.write(log.SerializeToString(deterministic=True))


def read_warmup_requests(path: str | os.PathLike) -> Iterator[WarmupRequest]:
    """Reads the requests of a TFRecord file of `PredictionLog`, one by one.

    Args:
        path: The file.

    Returns:
        The requests, in the order of the file.

    Raises:
        ValueError: If the file is cut off or damaged, or a record is no `PredictionLog`.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator()
    index, left = 0, os.path.getsize(path)
    while True:
        try:
            record = next(records, None)
            if record is None:
                break
            request = _request(_prediction_log().FromString(record))
        except tf.errors.OpError as error:
            raise ValueError(
                f"{path} cannot be read after record {index}; it must be a whole TFRecord file. "
                f"Found: {error.message}"
            ) from None
        except (DecodeError, TypeError, ValueError, MemoryError) as error:
            raise ValueError(
                f"Record {index} of {path} is no PredictionLog with a request. Found: {error}"
            ) from None
        yield request
        index += 1
        # Length and two checksums.
        left -= len(record) + 16
    if left:
        raise ValueError(
            f"{path} ends after record {index} with {left} bytes that are no record; it must be a "
            "whole TFRecord file."
        )


def _request(log):
    kind = next((name for _, name, _ in MESSAGES["PredictionLog"] if log.HasField(name)), "")
    if kind == "predict_log":
        request = log.predict_log.request
        inputs = {entry.key: _array(entry.value) for entry in request.inputs}
    elif kind in ("classify_log", "regress_log"):
        request = getattr(log, kind).request
        inputs = {EXAMPLES_INPUT: np.array([*request.input.example_list.examples], dtype=object)}
        if request.input.HasField("example_list_with_context"):
            raise ValueError("examples with a context, which are not read here")
    else:
        return WarmupRequest(kind, "", {})
    return WarmupRequest(kind, request.model_spec.signature_name or "serving_default", inputs)


def _array(serialised):
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    return tf.make_ndarray(tensor_pb2.TensorProto.FromString(serialised))
