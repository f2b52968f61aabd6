"""Checks of a SavedModel that run it, by tensor names, without Keras."""

from collections import Counter

import numpy as np

from keras_vit.serving.checked_model import (
    IMAGE_SIZE,
    NOT_APPLICABLE,
    CheckFailed,
    count,
    first_line,
)
from keras_vit.serving.client import Signature
from keras_vit.serving.files import WARMUP_FILE
from keras_vit.serving.made_up_requests import image_request, made_up_images
from keras_vit.serving.pictures import bad_pictures
from keras_vit.serving.prediction_log import read_warmup_requests
from keras_vit.serving.server_checks import is_bad_row

TIMEOUT_SECONDS = 300


def load_model(model, stack):
    """Restores and initialises the model as cc/saved_model/loader.cc does."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(model.graph.graph_def, name="")
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    session = tf.compat.v1.Session(graph=graph, config=config)
    stack.callback(session.close)
    options = tf.compat.v1.RunOptions(timeout_in_ms=TIMEOUT_SECONDS * 1000)
    feeds = {
        asset.tensor_info.name: str(model.folder / "assets" / asset.filename)
        for asset in model.graph.asset_file_def
    }
    saver, prefix = model.graph.saver_def, model.folder / "variables" / "variables"
    if saver.restore_op_name and prefix.with_name("variables.index").is_file():
        path = {saver.filename_tensor_name: str(prefix)}
        session.run(saver.restore_op_name.split(":")[0], {**path, **feeds}, options=options)
    initialise = _initialisation(model.graph)
    if initialise:
        session.run(initialise, feeds, options=options)

    def run(signature, inputs):
        """The outputs of a signature, by name."""
        rows = model.signatures[signature]
        feeds = {rows["inputs"][name]["tensor"]: value for name, value in inputs.items()}
        fetches = {name: row["tensor"] for name, row in rows["outputs"].items()}
        return session.run(fetches, feeds, options=options)

    return "variables restored, tables and resources initialised", run


def _initialisation(graph):
    """The name of the operation that a server runs after restoring, None without one."""
    if "__saved_model_init_op" in graph.signature_def:
        outputs = graph.signature_def["__saved_model_init_op"].outputs
        return next(iter(outputs.values())).name.split(":")[0]
    for key in ("saved_model_main_op", "legacy_init_op"):
        if key in graph.collection_def and graph.collection_def[key].node_list.value:
            return graph.collection_def[key].node_list.value[0].split(":")[0]
    return None


def _answers(run, name, inputs, good=True):
    """The outputs of a call, held to what any answer must be."""
    rows = len(next(iter(inputs.values())))
    try:
        outputs = run(name, inputs)
    except Exception as error:
        raise CheckFailed(
            f"{name!r} fails for {count(rows, 'row')}: {type(error).__name__}: {first_line(error)}"
        ) from None
    for output, value in outputs.items():
        if np.shape(value)[:1] != (rows,):
            raise CheckFailed(
                f"{name!r} gives {output!r} of shape {np.shape(value)} for {count(rows, 'row')}"
            )
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise CheckFailed(f"{name!r} gives {output!r} that is not a number (NaN)")
        if value.dtype.kind == "f" and value.size and np.isinf(value).all():
            raise CheckFailed(f"{name!r} gives {output!r} that is infinite")
    if good and "error" in outputs and any(outputs["error"]):
        raise CheckFailed(
            f"{name!r} says of a good image: {next(filter(None, outputs['error']))!r}"
        )
    return outputs


def _warmup(model, run):
    path = model.folder / WARMUP_FILE
    if not path.is_file():
        return f"{NOT_APPLICABLE} there is no {WARMUP_FILE}"
    counts: Counter[bool] = Counter()
    for request in read_warmup_requests(path):
        if request.inputs:
            _answers(run, request.signature, request.inputs)
        counts[bool(request.inputs)] += 1
    left = f"; {counts[False]} of other kinds not tried" if counts[False] else ""
    return f"{count(counts[True], 'request')} answered{left}"


def _batches(model, run):
    done, left = [], []
    for name, signature in model.signatures.items():
        if model.request(signature, 1) is None:
            left.append(name)
            continue
        request = model.request(signature, 3)
        together = _answers(run, name, request)
        for row in range(3):
            alone = {key: value[row : row + 1] for key, value in request.items()}
            _check_same(name, together, row, _answers(run, name, alone), 0, "alone")
        done.append(name)
    unknown = f"what {', '.join(left)} takes cannot be guessed"
    if not done:
        return f"{NOT_APPLICABLE} {unknown}"
    return f"1 and 3 rows: {', '.join(done)}" + (f"; not tried: {unknown}" if left else "")


def _mixed_sizes(model, run):
    done = []
    for name, signature in model.image_signatures().items():
        images = made_up_images(3, IMAGE_SIZE, **model.limits())
        together = _answers(run, name, image_request(signature, images))
        for row, image in enumerate(images):
            alone = _answers(run, name, image_request(signature, [image]))
            _check_same(name, together, row, alone, 0, "alone")
        done.append(f"{name} (in one batch)")
    for name, signature in model.signatures.items():
        shapes = [row["shape"] for row in signature["inputs"].values()]
        if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1:3] == [None, None]:
            for image_size in (IMAGE_SIZE, (31, 17)):
                _answers(run, name, model.request(signature, 2, image_size))
            done.append(f"{name} (in two calls)")
    return ", ".join(done) or f"{NOT_APPLICABLE} no signature takes images of open size"


def _bad_image(model, run):
    signatures = model.image_signatures()
    if not signatures:
        return f"{NOT_APPLICABLE} no signature takes encoded images"
    if model.facts().get("on_error") == "fail":
        return f"{NOT_APPLICABLE} exported with on_error='fail', a bad image fails its whole call"
    first, second, third = made_up_images(3, IMAGE_SIZE, **model.limits())
    # What an export promises; of other models it is not known how they mark a row.
    must_mark = model.facts().get("on_error") == "row"
    bad_images = bad_pictures()
    for name, signature in signatures.items():
        asked = Signature(name, signature["method_name"], {}, {})
        good = _answers(run, name, image_request(signature, [first, second, third]))
        for kind, bad in bad_images.items():
            images = image_request(signature, [first, bad, third])
            try:
                outputs = _answers(run, name, images, good=False)
            except CheckFailed as error:
                raise CheckFailed(
                    f"{error} A bad image ({kind}) fails the whole batch, which the server may "
                    "have joined from several clients."
                ) from None
            for row in (0, 2):
                _check_same(name, outputs, row, good, row, f"without {kind} beside it")
            if not outputs.get("error", [b"", b"not said", b""])[1]:
                raise CheckFailed(f"{name!r} says no error for {kind}")
            if must_mark and not is_bad_row(asked, outputs, 1):
                raise CheckFailed(f"{name!r} answers {kind} as if it were a picture")
            if any(outputs.get("error", np.array([b"", b"", b""]))[[0, 2]]):
                raise CheckFailed(f"{name!r} says an error for the neighbours of {kind}")
    return f"{', '.join(bad_images)} between two good images: {', '.join(signatures)}"


def _check_same(name, left, left_row, right, right_row, than):
    """Floats of two rows, but for the last bits of a bfloat16 network."""
    for output, value in left.items():
        if value.dtype.kind != "f":
            continue
        a, b = value[left_row].astype("float64"), right[output][right_row].astype("float64")
        if a.shape != b.shape or np.abs(a - b).max(initial=0) > 0.03 * np.abs(b).max(initial=0):
            raise CheckFailed(f"{name!r} answers {output!r} otherwise than {than}")


RUNNING_CHECKS = {
    "warm-up": _warmup,
    "batches": _batches,
    "mixed sizes": _mixed_sizes,
    "bad image": _bad_image,
}
