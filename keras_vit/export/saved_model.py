"""SavedModel for TensorFlow Serving: encoded images in, named classes out."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_vit._version import __version__
from keras_vit.export.classifier import (
    checked_class_names,
    in_one_level,
    logits_model,
    model_image_size,
    precision_name,
    preprocessing_layer,
    preprocessing_policy,
    with_precision,
)
from keras_vit.export.limits import DEFAULT_LIMITS, ImageLimits
from keras_vit.export.signatures import ServingOptions, trace_signatures
from keras_vit.export.versions import put_in_place, version_folder, written_beside
from keras_vit.serving.files import (
    WARMUP_BATCH_SIZES,
    check_warmup_fits,
    write_descriptions,
    write_server_files,
    write_warmup,
)
from keras_vit.serving.model_checks import check_saved_model


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str],
    version: int | None = None,
    top: int = 5,
    limits: ImageLimits = DEFAULT_LIMITS,
    on_error: str = "row",
    attention: bool = False,
    precision: str = "float32",
    token_parts: int = 1,
    warmup_batch_sizes: Sequence[int] = WARMUP_BATCH_SIZES,
) -> Path:
    """Writes a classifier as a SavedModel that TensorFlow Serving can mount.

    The SavedModel decodes images, brings them to the model's size as the model's `preprocessing`
    layer says (see `keras_vit.layers.ImagePreprocessing`) and classifies them. It needs neither
    keras nor keras_vit to run. The first axis of every input and output is the batch, of any
    size. `image_bytes` are JPEG or PNG files whose sizes may differ within the batch:

    - `serving_default`: `image_bytes`, string `(batch,)` → the best classes, best first:
      `classes`, string `(batch, top)`, and `scores`, their probabilities; `probabilities` and
      `logits`, float32 `(batch, num_classes)`; `error`, string `(batch,)`.
    - `pixels`: `pixels`, uint8 `(batch, height, width, 3)` of any height and width → the same
      without `error`.
    - `classify`: `inputs`, string `(batch,)`, serialised `tf.Example`s with the feature
      `image/encoded` → `classes` and `scores`.
    - `embed`: `image_bytes` → `embedding`, float32 `(batch, width)`, what the head reads; `error`.
    - `attention`: `image_bytes` → `attention`, float32 `(batch, rows, columns)`, see
      `keras_vit.inspection.attention_rollout`; `error`.

    An image that cannot be taken (empty, no JPEG or PNG, damaged, beyond the limits) answers for
    its own row with zeros, empty class names and `error`, which is empty in good rows; in
    `classify` the first class name carries it. Its neighbours are not touched.

    Beside the model lie `README.md` and `signatures.json`, which describe it, its class names as
    an asset, and requests for the server's warm-up; in `path`, where they are not there yet,
    `models.config` and `batching_parameters.txt` for the server. All is written beside and then
    renamed: a server that watches `path` sees a whole version or none. An export that fails
    leaves nothing behind, and what a killed one left is removed by the next.

    Args:
        model: A model with a `preprocessing` layer and a classifier as its last layer, whose
            activation is None (logits) or `"softmax"`; or one that calls the former on its images,
            such as `keras.Sequential([base, keras.layers.Dense(7)])`.
        path: Folder of the exported model; the version is a sub-folder of it.
        class_names: Name of each class, in the order of the model's outputs.
        version: Positive number of the version. None takes the one after the highest present, also
            where several exports end at the same time.
        top: Number of `classes` and `scores`; at most all classes are given.
        limits: What is taken of an encoded image.
        on_error: `"row"` as above; with `"fail"` a bad image fails the whole call.
        attention: Whether to export the signature `attention`; Vision Transformers of keras_vit
            only.
        precision: `"float32"`, where a model of mixed precision stays so; `"bfloat16"` for weights
            and products of 16 bits; `"int8-dynamic"` for Keras' weights of 8 bits, a smaller file
            that is not faster. The outputs are float32.
        token_parts: For a server whose operations take one thread each
            (`--tensorflow_intra_op_parallelism=1`): number of parts of an image's tokens, at least
            24 each, that its threads compute beside each other. For models whose blocks have
            neither positions nor windows and keep all tokens.
        warmup_batch_sizes: Sizes of the batches that a server runs before it takes requests, for
            each signature; empty for no warm-up.

    Returns:
        The folder written, `path/version`.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow.
        ValueError: If the model or an argument cannot be exported.
        FileExistsError: If the version exists, or `path` is no folder, or one of another engine's
            versions.

    Example:

    ```python
    folder = keras_vit.export_saved_model(model, "saved_models/pets", class_names=["cat", "dog"])
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    serve(image_bytes=tf.constant([Path("cat.jpg").read_bytes()]))["classes"]
    ```
    """
    _check_backend()
    image_size, model = model_image_size(model), in_one_level(model)
    preprocessing = preprocessing_layer(model)
    logits_model(model)
    class_names = checked_class_names(class_names, model.output_shape[-1])
    options = ServingOptions(top, limits, on_error, attention, token_parts)
    batch_sizes = _checked_batch_sizes(warmup_batch_sizes)
    destination = version_folder(Path(path), version, is_saved_model=True)
    check_warmup_fits(destination.parent, batch_sizes)
    # As given, not what a link leads to.
    name = Path(os.path.abspath(path)).name
    facts = {
        "keras_vit": __version__,
        "model": model.name,
        "image_size": list(image_size),
        "preprocessing": preprocessing_policy(preprocessing),
        "precision": precision_name(model, precision),
        "classes": len(class_names),
        "top": min(top, len(class_names)),
        "on_error": on_error,
        "token_parts": token_parts,
        "limits": dataclasses.asdict(limits),
    }
    with written_beside(destination) as folder:

        def describe(number):
            write_descriptions(folder, name=name, version=number, facts=facts)

        _save(with_precision(model, precision), folder, class_names, options)
        describe(int(destination.name))
        if batch_sizes:
            write_warmup(
                folder,
                name=name,
                batch_sizes=batch_sizes,
                image_size=image_size,
                **dataclasses.asdict(limits),
            )
        _refuse_what_no_server_runs(folder)
        # Before a server may see the version.
        written = write_server_files(destination.parent, name=name, batch_sizes=batch_sizes)
        try:
            return put_in_place(folder, destination, describe if version is None else None)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise


def _check_backend():
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "A SavedModel can be exported on the TensorFlow backend only; the backend is "
            f"{keras.backend.backend()!r}. Save the model with `model.save('model.keras')` and "
            "export that file in a process with KERAS_BACKEND=tensorflow."
        )


def _refuse_what_no_server_runs(folder):
    """Raises where a check that only reads the folder fails."""
    wrong = [verdict for verdict in check_saved_model(folder, run=False) if not verdict.passed]
    if wrong:
        findings = "; ".join(f"{verdict.check}: {verdict.detail}" for verdict in wrong)
        raise ValueError(f"TensorFlow Serving could not run the exported model. {findings}")


def _checked_batch_sizes(sizes):
    sizes = tuple(sizes)
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(
            "`warmup_batch_sizes` must be positive integers. "
            f"Received: warmup_batch_sizes={sizes!r}"
        )
    return sizes


def _save(model, folder, class_names, options):
    import tensorflow as tf

    module = tf.Module()
    with tempfile.TemporaryDirectory() as temporary:
        # Copied into the assets of the SavedModel.
        labels = Path(temporary, "class_names.txt")
        labels.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
        module.class_names = tf.saved_model.Asset(str(labels))
        module.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                module.class_names,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
            ),
            default_value="",
        )
        signatures = trace_signatures(model, module.table, options)
        # What the graphs read and no more; a tracked keras object would bring keras into the file.
        module.weights = list({id(v): v for f in signatures.values() for v in f.variables}.values())
        tf.saved_model.save(module, os.fspath(folder), signatures=signatures)
    # The saver calls every method predict.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(os.fspath(folder))
    updater.replace_method_name("classify", tf.compat.v1.saved_model.CLASSIFY_METHOD_NAME, "serve")
    updater.save()
