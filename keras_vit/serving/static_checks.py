"""Checks of a SavedModel that only read it."""

import importlib.resources
from collections import Counter

from keras_vit.serving.checked_model import NOT_APPLICABLE, CheckFailed, count, first_line, some
from keras_vit.serving.files import MAX_WARMUP_RECORDS, WARMUP_FILE, check_warmup_fits
from keras_vit.serving.made_up_requests import CLASSIFY
from keras_vit.serving.prediction_log import EXAMPLES_INPUT, read_warmup_requests

METHODS = (CLASSIFY, "tensorflow/serving/predict", "tensorflow/serving/regress")
# What tensorflow_serving/util/json_tensor.cc reads from JSON; gRPC takes these as well.
TYPES = (
    "string",
    "bool",
    "float32",
    "float64",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint32",
    "uint64",
)
# They call back into the Python process that made them.
PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
VARIABLES = {"VarHandleOp", "VariableV2", "Variable", "_VarHandlesOp"}


def _signatures(model):
    if not model.signatures:
        raise CheckFailed(
            "there are no signatures, so there is nothing to ask the server for. Save with "
            "`signatures=`."
        )
    wrong = [
        f"{name!r}: {finding}"
        for name, signature in model.signatures.items()
        for finding in _wrong_signature(signature)
    ]
    nodes = {node.name for node in model.graph.graph_def.node}
    for where, tensor in model.tensors():
        if not tensor["tensor"]:
            wrong.append(f"{where} is made of several tensors, such as a ragged or sparse one")
        elif tensor["tensor"].split(":")[0] not in nodes:
            wrong.append(f"{where} is the tensor {tensor['tensor']!r}, which the graph lacks")
    if wrong:
        raise CheckFailed(some(wrong))
    if "serving_default" not in model.signatures:
        return f"{', '.join(model.signatures)}; no serving_default, so requests must name one"
    return ", ".join(model.signatures)


def _wrong_signature(signature):
    inputs, outputs = signature["inputs"], signature["outputs"]
    if signature["method_name"] not in METHODS:
        yield f"method {signature['method_name']!r} is none of {', '.join(METHODS)}"
    if not inputs or not outputs:
        yield f"{count(len(inputs), 'input')}, {count(len(outputs), 'output')}; at least one each"
    if signature["method_name"] != CLASSIFY:
        return
    if {name: row["dtype"] for name, row in inputs.items()} != {EXAMPLES_INPUT: "string"}:
        yield f"classify takes one string input {EXAMPLES_INPUT!r}; found {sorted(inputs)}"
    kinds = {name: row["dtype"] for name, row in outputs.items()}
    if not kinds.items() <= {"classes": "string", "scores": "float32"}.items():
        yield f"classify gives `classes` (string) and `scores` (float32) only; found {kinds}"


def _batch_axis(model):
    wrong = []
    for where, tensor in model.tensors():
        shape = tensor["shape"]
        if shape is None or shape[:1] != [None]:
            found = "any rank" if shape is None else tuple(shape)
            wrong.append(f"{where} has the shape {found}")
    if wrong:
        raise CheckFailed(
            "the server's batching joins requests along the first axis, which must be open (None): "
            + some(wrong)
        )
    return f"open in all {sum(1 for _ in model.tensors())} inputs and outputs"


def _types(model):
    wrong = [
        f"{where} is {row['dtype']}" for where, row in model.tensors() if row["dtype"] not in TYPES
    ]
    if wrong:
        raise CheckFailed(
            f"{some(wrong)}. The server's REST interface knows {', '.join(TYPES)}: cast to one."
        )
    return ", ".join(sorted({row["dtype"] for _, row in model.tensors()}))


def serving_operations() -> frozenset[str]:
    """Names of the operations that a stock TensorFlow Serving runs, out of `serving_ops.txt`.

    Example:

    >>> {"DecodeJpeg", "MatMul"} <= serving_operations()
    True
    """
    text = importlib.resources.files(__package__).joinpath("serving_ops.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def _where(node, function):
    return f"{node.op} ({node.name!r} in " + (
        f"function {function!r})" if function else "the graph)"
    )


def _operations(model):
    functions = {function.signature.name for function in model.graph.graph_def.library.function}
    known = serving_operations() | functions
    used = Counter(node.op for node, _ in model.nodes())
    if not used.keys() <= known:
        findings = [_where(*place) for place in model.nodes() if place[0].op not in known]
        raise CheckFailed(f"a stock server does not have: {some(findings)}")
    return f"{count(len(used), 'kind')} of operations, all known to a stock server"


def _xla(model):
    wrong = [
        f"function {function.signature.name!r}"
        for function in model.graph.graph_def.library.function
        if function.attr["_XlaMustCompile"].b
    ]
    # Indexing a map of messages would put the key in.
    wrong += [
        _where(node, function)
        for node, function in model.nodes()
        if "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b
    ]
    if wrong:
        raise CheckFailed(
            f"the stock server has no XLA compiler, and these must be compiled: {some(wrong)}. "
            "Export without jit_compile=True."
        )
    return "nothing must be compiled"


def _python_functions(model):
    wrong = [_where(*place) for place in model.nodes() if place[0].op in PYTHON_OPERATIONS]
    if wrong:
        raise CheckFailed(
            f"the server has no Python, which these call: {some(wrong)}. Write them with "
            "TensorFlow's operations instead of tf.numpy_function or tf.py_function."
        )
    return "none"


def _assets(model):
    names = [asset.filename for asset in model.graph.asset_file_def]
    assets = (model.folder / "assets").resolve()
    wrong = [
        f"{name!r} is missing"
        if (assets / name).resolve().is_relative_to(assets)
        else f"{name!r} lies outside of the folder assets"
        for name in names
        if not (assets / name).is_file() or not (assets / name).resolve().is_relative_to(assets)
    ]
    if wrong:
        raise CheckFailed(f"{some(wrong)}. Copy the whole folder {model.folder}, or export again.")
    classes = model.facts().get("classes")
    if isinstance(classes, int) and "class_names.txt" in names:
        found = len((assets / "class_names.txt").read_text("utf-8").splitlines())
        if found != classes:
            raise CheckFailed(
                f"class_names.txt has {count(found, 'line')} for {count(classes, 'class')}"
            )
    return ", ".join(names) or f"{NOT_APPLICABLE} the graph reads no files"


def _variables(model):
    import tensorflow as tf

    prefix = model.folder / "variables" / "variables"
    has_variables = any(node.op in VARIABLES for node, _ in model.nodes())
    if not prefix.with_name("variables.index").is_file():
        if has_variables:
            raise CheckFailed(f"{prefix}.index is missing. Copy the whole folder, or export again.")
        return f"{NOT_APPLICABLE} the graph has none"
    total, names = 0, []
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        for name in names:
            value = reader.get_tensor(name)
            total += getattr(value, "nbytes", 0)
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise CheckFailed(
            f"the files {prefix}.* are damaged or not complete: {first_line(error)} Copy the whole "
            "folder, or export again."
        ) from None
    return f"{count(len(names), 'tensor')}, {total / 1e6:.1f} MB, every checksum right"


def _warmup_file(model):
    path = model.folder / WARMUP_FILE
    if not path.is_file():
        return f"{NOT_APPLICABLE} there is no {WARMUP_FILE}"
    kinds: Counter[str] = Counter()
    wrong, batch_sizes = [], []
    try:
        for index, request in enumerate(read_warmup_requests(path)):
            kinds[request.kind or "empty record"] += 1
            batch_sizes += [len(array) for array in request.inputs.values() if array.ndim]
            wrong += [f"record {index}: {finding}" for finding in _wrong_request(model, request)]
    except ValueError as error:
        raise CheckFailed(f"{error} A server refuses to load the model.") from None
    if kinds.total() > MAX_WARMUP_RECORDS:
        wrong.append(f"{kinds.total()} records; a server takes {MAX_WARMUP_RECORDS}")
    try:
        check_warmup_fits(model.folder.absolute().parent, batch_sizes)
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise CheckFailed(some(wrong))
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no records"


def _wrong_request(model, request):
    if request.kind == "session_run_log":
        yield "session_run_log, which a server cannot warm up with"
    if not request.inputs and not request.signature:
        return
    signature = model.signatures.get(request.signature)
    if signature is None:
        yield f"signature {request.signature!r} is none of {', '.join(model.signatures)}"
        return
    method = f"tensorflow/serving/{request.kind.removesuffix('_log')}"
    if request.kind != "predict_log" and signature["method_name"] != method:
        yield f"{request.kind} for {request.signature!r}, whose method is another"
    if request.inputs.keys() != signature["inputs"].keys():
        yield f"inputs {sorted(request.inputs)}, not {sorted(signature['inputs'])}"
        return
    for name, array in request.inputs.items():
        kind = "string" if array.dtype.kind in "OSU" else array.dtype.name
        shape, expected = array.shape, signature["inputs"][name]["shape"]
        fits = expected is None or (
            len(shape) == len(expected)
            and all(size in (None, found) for size, found in zip(expected, shape, strict=True))
        )
        if kind != signature["inputs"][name]["dtype"] or not fits or 0 in shape[:1]:
            yield f"{name!r} is {kind} {shape}, not {signature['inputs'][name]['dtype']} {expected}"


STATIC_CHECKS = {
    "signatures": _signatures,
    "batch axis": _batch_axis,
    "types": _types,
    "operations": _operations,
    "XLA": _xla,
    "Python functions": _python_functions,
    "assets": _assets,
    "variables": _variables,
    "warm-up file": _warmup_file,
}
