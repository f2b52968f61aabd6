"""What lies beside a SavedModel: its description, warm-up records, and the server's settings."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from keras_vit.checkpoints.replaced_file import replaced_file
from keras_vit.serving.made_up_requests import (
    CLASSIFY,
    IMAGE_FEATURE,
    NO_LIMIT,
    image_input,
    made_up_request,
)
from keras_vit.serving.prediction_log import WarmupRequest, write_warmup_requests

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
# saved_model_warmup_util.h: a server refuses a model with more.
MAX_WARMUP_RECORDS = 1000
BATCHING_FILE = "batching_parameters.txt"
# Of the server's batches, unless larger ones are warmed up.
MAX_BATCH_SIZE = 64
# Batches that are warmed up, unless others are asked for.
WARMUP_BATCH_SIZES = (1, 8)


def read_saved_model(folder: str | os.PathLike) -> Any:
    """Reads the graph that a model server would serve, without running anything.

    Args:
        folder: Folder of one version, with `saved_model.pb`.

    Returns:
        The `MetaGraphDef` that has the tag `serve` and no other.

    Raises:
        FileNotFoundError: If there is no `saved_model.pb`.
        ValueError: If the file is damaged or has no such graph.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(folder) / "saved_model.pb"
    if not path.is_file():
        versions = sorted(parent.parent.name for parent in Path(folder).glob("*/saved_model.pb"))
        raise FileNotFoundError(
            f"{path} is missing. Give the folder of one version of a SavedModel"
            + (f", such as {Path(folder) / versions[-1]}." if versions else ".")
        )
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(
            f"{path} is damaged or cut off: it is no SavedModel message ({error}). Export again."
        ) from None
    tags = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    if ["serve"] not in tags:
        raise ValueError(
            f"{path} has no graph with the one tag 'serve', which a model server asks for. The "
            f"tags of its graphs: {tags}. Export again with `tf.saved_model.save`."
        )
    return saved_model.meta_graphs[tags.index(["serve"])]


def describe_signatures(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads what a SavedModel takes and gives, without running anything.

    Args:
        folder: Folder of one version, with `saved_model.pb`.

    Returns:
        `{signature: {"method_name", "inputs", "outputs"}}`, the default first, then sorted by name;
        inputs and outputs are
        `{name: {"dtype", "shape", "tensor"}}`. In a shape, None is any size; None for the shape is
        any rank. `tensor` is the tensor's name in the graph, `""` for one of several parts.

    Raises:
        FileNotFoundError: If there is no `saved_model.pb`.
        ValueError: If the file is damaged or has no graph with the tag `serve`.

    Example:

    ```python
    describe_signatures("saved_models/pets/1")["serving_default"]["inputs"]
    # {'image_bytes': {'dtype': 'string', 'shape': [None], 'tensor': '…:0'}}
    ```
    """
    definitions = read_saved_model(folder).signature_def
    return {
        name: {
            "method_name": definitions[name].method_name,
            "inputs": _describe_tensors(definitions[name].inputs),
            "outputs": _describe_tensors(definitions[name].outputs),
        }
        # TensorFlow writes its initialisation as a signature.
        for name in sorted(definitions, key=lambda name: (name != "serving_default", name))
        if not name.startswith("__saved_model_")
    }


def _describe_tensors(tensors):
    import tensorflow as tf

    def shape(proto):
        if proto.unknown_rank:
            return None
        return [None if dimension.size < 0 else dimension.size for dimension in proto.dim]

    return {
        name: {
            "dtype": tf.as_dtype(tensors[name].dtype).name,
            "shape": shape(tensors[name].tensor_shape),
            "tensor": tensors[name].name,
        }
        for name in sorted(tensors)
    }


def write_descriptions(
    folder: str | os.PathLike, *, name: str, version: int, facts: Mapping[str, Any]
) -> None:
    """Writes `signatures.json` and `README.md` into the folder of a version.

    Args:
        folder: Folder of the version, with `saved_model.pb`.
        name: Name that the model is served under.
        version: Number of the version.
        facts: What else a reader should know, such as the image size and the limits; values that
            JSON can hold. They become entries of `signatures.json` and rows of `README.md`.

    Raises:
        ValueError: If a fact is called `name`, `version` or `signatures`, or `name` cannot be
            served.
        FileNotFoundError: If there is no `saved_model.pb`.
    """
    _check_name(name)
    taken = {"name", "version", "signatures"} & set(facts)
    if taken:
        raise ValueError(
            f"`facts` must not hold {sorted(taken)}: signatures.json has these. Rename them."
        )
    signatures = describe_signatures(folder)
    description = {"name": name, "version": version, **facts, "signatures": signatures}
    _replace(
        Path(folder) / "signatures.json",
        json.dumps(description, indent=2, ensure_ascii=False) + "\n",
    )
    rows = "".join(
        f"| {key} | `{json.dumps(value, ensure_ascii=False)}` |\n" for key, value in facts.items()
    )
    parts = [
        f"# {name}, version {version}\n\n"
        "A TensorFlow SavedModel for TensorFlow Serving. `signatures.json` says the same for "
        "programs. The first axis of every input and output is the batch.\n\n"
        f"| | |\n|---|---|\n{rows}",
        *(_describe_signature(name, key, row) for key, row in signatures.items()),
    ]
    _replace(Path(folder) / "README.md", "\n".join(parts))


def _check_name(name):
    if not name or set(name) & set("/:") or not name.isprintable():
        raise ValueError(
            "A served model's name is a part of its address: it must be printable and have no '/' "
            f"and no ':'. Received: name={name!r}. Rename the model's folder."
        )


# What the inputs and outputs of an export hold, by their name.
MEANINGS = {
    "image_bytes": "JPEG or PNG files, whose sizes may differ",
    "pixels": "RGB, 0 to 255, not resized beforehand",
    "inputs": f"serialised `tf.Example`s with the feature `{IMAGE_FEATURE}`",
    "classes": "names of the best classes, best first",
    "scores": "their probabilities",
    "probabilities": "of all classes, in the order of `assets/class_names.txt`",
    "logits": "before the softmax",
    "embedding": "what the classifier reads",
    "attention": "how much each patch flows into the answer (attention rollout)",
    "error": "why an image could not be taken, all else in its row zero; empty for a good one",
}


def _describe_signature(model_name, signature_name, signature):
    rows = "".join(
        f"| {side} | `{name}` | {tensor['dtype']} | {_shape_text(tensor['shape'])} | "
        f"{MEANINGS.get(name, '')} |\n"
        for side in ("input", "output")
        for name, tensor in signature[f"{side}s"].items()
    )
    return (
        f"## {signature_name}\n\nMethod `{signature['method_name']}`.\n\n"
        f"| | name | type | shape | |\n|---|---|---|---|---|\n{rows}\n"
        f"REST, with curl:\n\n```bash\n{_curl(model_name, signature_name, signature)}\n```\n\n"
        "gRPC, after `pip install tensorflow-serving-api`:\n\n"
        f"```python\n{_grpc(model_name, signature_name, signature)}\n```\n"
    )


def _shape_text(shape):
    if shape is None:
        return "any"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _curl(model_name, signature_name, signature):
    image, method = image_input(signature), "predict"
    # printf puts the image's bytes in the place of %s.
    content: dict[str, Any]
    if signature["method_name"] == CLASSIFY:
        method, content = "classify", {"examples": [{IMAGE_FEATURE: {"b64": "%s"}}]}
    else:
        row = {
            name: {"b64": "%s"} if name == image else _zeros(tensor)
            for name, tensor in signature["inputs"].items()
        }
        # An only input needs no name.
        content = {"instances": [*row.values()] if len(row) == 1 else [row]}
    data = json.dumps({"signature_name": signature_name, **content})
    address = shlex.quote(f"http://localhost:8501/v1/models/{quote(model_name)}:{method}")
    if image is None:
        return f"curl -s -d {shlex.quote(data)} {address}"
    data = data.replace("\\", "\\\\").replace("%", "%%").replace("%%s", "%s")
    return (
        f"printf {shlex.quote(data)} \"$(base64 < cat.jpg | tr -d '\\n')\" |\n"
        f"  curl -s -d @- {address}"
    )


def _open_sizes_filled(tensor):
    """The shape of one row of a tensor, 2 where the size is open."""
    return [2 if size is None else size for size in (tensor["shape"] or [None])[1:]]


def _zeros(tensor):
    value: Any = {"string": "", "bool": False}.get(tensor["dtype"], 0)
    for size in reversed(_open_sizes_filled(tensor)):
        value = [value] * size
    return value


GRPC = """\
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow_serving.apis import {file}_pb2, prediction_service_pb2_grpc

channel = grpc.insecure_channel("localhost:8500")
service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
request = {file}_pb2.{message}()
request.model_spec.name = {model_name!r}
request.model_spec.signature_name = {signature_name!r}
{inputs}
print(service.{method}(request, timeout=10.0))"""

GRPC_EXAMPLE = f"""\
image = tf.train.BytesList(value=[Path("cat.jpg").read_bytes()])
features = {{"{IMAGE_FEATURE}": tf.train.Feature(bytes_list=image)}}
example = tf.train.Example(features=tf.train.Features(feature=features))
request.input.example_list.examples.append(example)"""


def _grpc(model_name, signature_name, signature):
    names = {"model_name": model_name, "signature_name": signature_name}
    if signature["method_name"] == CLASSIFY:
        return GRPC.format(
            file="classification",
            message="ClassificationRequest",
            method="Classify",
            inputs=GRPC_EXAMPLE,
            **names,
        )
    lines = []
    for name, tensor in signature["inputs"].items():
        value = f"tf.zeros({[1, *_open_sizes_filled(tensor)]}, {tensor['dtype']!r}).numpy()"
        if name == image_input(signature):
            value = '[Path("cat.jpg").read_bytes()]'
        lines.append(f"request.inputs[{name!r}].CopyFrom(tf.make_tensor_proto({value}))")
    return GRPC.format(
        file="predict",
        message="PredictRequest",
        method="Predict",
        inputs="\n".join(lines),
        **names,
    )


def write_warmup(
    folder: str | os.PathLike,
    *,
    name: str,
    batch_sizes: Sequence[int],
    image_size: tuple[int, int],
    max_bytes: int = NO_LIMIT,
    max_pixels: int = NO_LIMIT,
) -> Path:
    """Writes the requests that a server runs before it says that the version is ready.

    One request for each signature and batch size, with images made up here. The server reads
    them from `assets.extra/tf_serving_warmup_requests`; see
    https://www.tensorflow.org/tfx/serving/saved_model_warmup.

    Args:
        folder: Folder of the version, with `saved_model.pb`.
        name: Name that the model is served under.
        batch_sizes: Sizes of the batches to warm up.
        image_size: `(height, width)` of the images, in pixels; smaller where the limits ask for it.
        max_bytes: Largest image file that the model takes.
        max_pixels: Largest image that the model takes, height times width.

    Returns:
        The file written.

    Raises:
        ValueError: If a batch size is no positive integer, the records are more than a server
            takes, nothing can be made up for a signature, or no image file is within `max_bytes`.
        FileNotFoundError: If there is no `saved_model.pb`.
    """
    sizes = _checked_batch_sizes(batch_sizes)
    signatures = describe_signatures(folder)
    if len(signatures) * len(sizes) > MAX_WARMUP_RECORDS:
        raise ValueError(
            f"{len(sizes)} batch sizes of {len(signatures)} signatures are more than the "
            f"{MAX_WARMUP_RECORDS} warm-up records that a server takes. Give fewer `batch_sizes`."
        )
    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
    requests = _warmup_requests(signatures, sizes, image_size, limits)
    with replaced_file(path, shared=True) as partial:
        write_warmup_requests(partial, requests, model_name=name)
    return path


def _warmup_requests(signatures, batch_sizes, image_size, limits):
    for name, signature in signatures.items():
        for batch_size in batch_sizes:
            inputs = made_up_request(signature, batch_size, image_size, **limits)
            if inputs is None:
                raise ValueError(
                    f"Signature {name!r} takes strings that are not images, for which no warm-up "
                    f"request can be made up. Its inputs: {signature['inputs']}"
                )
            kind = "classify_log" if signature["method_name"] == CLASSIFY else "predict_log"
            yield WarmupRequest(kind, name, inputs)


def _checked_batch_sizes(batch_sizes):
    sizes = list(batch_sizes)
    are_integers = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if not sizes or not are_integers or min(sizes) < 1:
        raise ValueError(
            f"`batch_sizes` must be positive integers. Received: batch_sizes={batch_sizes!r}"
        )
    return sorted(set(sizes))


MODELS_CONFIG = """\
# For tensorflow_model_server --model_config_file=...; the address is that of the container image.
# https://www.tensorflow.org/tfx/serving/serving_config
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    # Without a policy the server serves the highest version and changes to a new one when its
    # folder appears. To go back to version 1 while version 2 is there, say so here; the server
    # reads this file again with --model_config_file_poll_wait_seconds=60.
    # model_version_policy {{ specific {{ versions: 1 }} }}
    #
    # Both versions at once, each with a label that clients ask for
    # (/v1/models/{name}/labels/stable:predict). To go back, move the label. A server that starts
    # with labels in this file needs --allow_version_labels_for_unavailable_models=true.
    # model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    # version_labels {{ key: "stable" value: 1 }}
    # version_labels {{ key: "canary" value: 2 }}
  }}
}}
"""

BATCHING_PARAMETERS = """\
# For tensorflow_model_server --enable_batching --batching_parameters_file=...
# https://github.com/tensorflow/serving/blob/master/tensorflow_serving/batching/README.md
# A start for a server without a GPU; measure with your own requests.

# The server joins requests up to this many images; one with more is refused, and with a larger
# request in its warm-up a version: after a change here check it with `keras-vit export --check`.
max_batch_size {{ value: {max_batch_size} }}
# A batch starts as soon as a thread is free, full or not: nothing waits for company. With many
# small requests, try 1000 to 10000 (1 to 10 ms).
batch_timeout_micros {{ value: 0 }}
# Batches that run at one time. One batch of a Vision Transformer already keeps the cores busy; a
# second decodes its images meanwhile.
num_batch_threads {{ value: 2 }}
# Full batches that wait, for each signature. When that many wait, further requests are refused at
# once. Raise it where a late answer is better than none.
max_enqueued_batches {{ value: 4 }}
# Not set, because the model takes batches of any size. Where it is set, a batch is filled up to
# one of these sizes, the last being max_batch_size, with rows that are computed and thrown away:
# of use on a GPU whose libraries choose a method anew for each size. Then warm these sizes up.
{allowed_batch_sizes}
# Image files of all sizes are rows of one string tensor; there is nothing to pad. All requests to
# the signature `pixels` must have images of one size, though: where others share a batch, every
# request of it fails. Send images of mixed sizes as files, to serving_default.
pad_variable_length_inputs: false
"""


def write_server_files(
    base: str | os.PathLike, *, name: str, batch_sizes: Sequence[int]
) -> tuple[Path, ...]:
    """Writes a model server's settings beside the versions, where there are none yet.

    `models.config` names the model and says how to go back to an older version;
    `batching_parameters.txt` joins requests into batches. A file that exists is the operator's and
    stays as it is. Where one cannot be written, none is.

    Args:
        base: Folder of the model, whose sub-folders are the versions.
        name: Name that the model is served under.
        batch_sizes: Sizes of the batches that are warmed up, if any.

    Returns:
        The files written.

    Raises:
        ValueError: If `name` cannot be served, a batch size is no positive integer, or is larger
            than the operator's `batching_parameters.txt` lets a batch be.
    """
    from google.protobuf import text_encoding

    _check_name(name)
    sizes = _checked_batch_sizes(batch_sizes) if batch_sizes else []
    check_warmup_fits(base, sizes)
    max_batch_size = max([MAX_BATCH_SIZE, *sizes])
    allowed = sorted({*sizes, max_batch_size})
    texts = {
        "models.config": MODELS_CONFIG.format(name=text_encoding.CEscape(name.encode(), False)),
        BATCHING_FILE: BATCHING_PARAMETERS.format(
            max_batch_size=max_batch_size,
            allowed_batch_sizes="\n".join(f"# allowed_batch_sizes: {size}" for size in allowed),
        ),
    }
    Path(base).mkdir(parents=True, exist_ok=True)
    missing = {Path(base) / file: text for file, text in texts.items()}
    missing = {path: text for path, text in missing.items() if not path.exists()}
    written: list[Path] = []
    try:
        for path, text in missing.items():
            _replace(path, text)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return tuple(written)


def check_warmup_fits(base: str | os.PathLike, batch_sizes: Sequence[int]) -> None:
    """Raises where a server with batching would refuse the warm-up, and with it the version.

    Args:
        base: Folder of the model, whose sub-folders are the versions.
        batch_sizes: Sizes of the batches that are warmed up, if any.

    Raises:
        ValueError: If one is larger than the `batching_parameters.txt` in `base` lets a batch be.
    """
    path = Path(base) / BATCHING_FILE
    if not path.exists():
        return
    text = re.sub("#.*", "", path.read_text(encoding="utf-8", errors="replace"))
    found = re.search(r"\bmax_batch_size\s*:?\s*[{<]\s*value\s*:\s*(\d+)", text)
    if found and max(batch_sizes, default=0) > int(found[1]):
        raise ValueError(
            f"A warm-up request of {max(batch_sizes)} rows is larger than the batches of {path}: "
            f"its max_batch_size is {found[1]}, and a server with batching refuses what is larger. "
            "Raise it there, or warm up smaller batches (`warmup_batch_sizes`)."
        )


def _replace(path, text):
    with replaced_file(path, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")
