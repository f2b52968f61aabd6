"""SavedModel for TensorFlow Serving: encoded images in, named classes out."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_vit.export.classifier import (
    checked_class_names,
    logits_model,
    model_image_size,
    preprocessing_layer,
)
from keras_vit.export.image_graph import decode_and_prepare, prepare
from keras_vit.export.versions import version_folder, written_whole


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str],
    version: int | None = None,
    top: int = 5,
) -> Path:
    """Writes a classifier as a SavedModel that TensorFlow Serving can mount.

    The SavedModel decodes images, brings them to the model's size as the model's `preprocessing`
    layer says (see `keras_vit.layers.ImagePreprocessing`) and classifies them. It needs neither
    keras nor keras_vit to run. It has two signatures; the first axis of every input and output is
    the batch, of any size:

    - `serving_default`: `image_bytes`, string `(batch,)`, JPEG or PNG files whose sizes may differ
      within the batch → `probabilities` and `logits`, float32 `(batch, num_classes)`, and the best
      classes, best first: `classes`, string `(batch, top)`, and `scores`, their probabilities.
    - `pixels`: `pixels`, uint8 `(batch, height, width, 3)` of any height and width →
      `probabilities` and `logits`.

    It is written beside and then renamed: a server that watches `path` sees a whole version or
    none, and an export that fails leaves nothing behind.

    Args:
        model: A model with a `preprocessing` layer and a classifier as its last layer, whose
            activation is None (logits) or `"softmax"`.
        path: Folder of the exported model; the version is a sub-folder of it.
        class_names: Name of each class, in the order of the model's outputs.
        version: Positive number of the version. None takes the one after the highest present.
        top: Number of `classes` and `scores`; at most all classes are given.

    Returns:
        The folder written, `path/version`.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow.
        ValueError: If the model or an argument cannot be exported.
        FileExistsError: If the version exists, or `path` is no folder.

    Example:

    ```python
    folder = keras_vit.export_saved_model(model, "saved_models/pets", class_names=["cat", "dog"])
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    serve(image_bytes=tf.constant([Path("cat.jpg").read_bytes()]))["classes"]
    ```
    """
    _check_backend()
    preprocessing = preprocessing_layer(model)
    image_size = model_image_size(model)
    classifier = logits_model(model)
    class_names = checked_class_names(class_names, model.output_shape[-1])
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"`top` must be a positive integer. Received: top={top!r}")
    destination = version_folder(Path(path), version)
    signatures = _trace(classifier, preprocessing, image_size, class_names, top)
    _refuse_compiled_functions(signatures)
    _write(signatures, destination)
    return destination


def _check_backend():
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "A SavedModel can be exported on the TensorFlow backend only; the backend is "
            f"{keras.backend.backend()!r}. Save the model with `model.save('model.keras')` and "
            "export that file in a process with KERAS_BACKEND=tensorflow."
        )


def _trace(model, preprocessing, image_size, class_names, top):
    import tensorflow as tf

    names = tf.constant(class_names)

    def classify(images):
        logits = tf.cast(model(images, training=False), tf.float32)
        return {"probabilities": tf.nn.softmax(logits), "logits": logits}

    def classify_bytes(image_bytes):
        outputs = classify(decode_and_prepare(image_bytes, image_size, preprocessing))
        scores, best = tf.math.top_k(outputs["probabilities"], min(top, len(class_names)))
        return {**outputs, "classes": tf.gather(names, best), "scores": scores}

    def classify_pixels(pixels):
        return classify(prepare(pixels, image_size, preprocessing))

    def traced(function, shape, dtype):
        # TensorFlow Serving cannot run a function with jit_compile=True.
        function = tf.function(function, autograph=False, jit_compile=False)
        return function.get_concrete_function(tf.TensorSpec(shape, dtype))

    return {
        "serving_default": traced(classify_bytes, (None,), tf.string),
        "pixels": traced(classify_pixels, (None, None, None, 3), tf.uint8),
    }


def _refuse_compiled_functions(signatures):
    for signature, function in signatures.items():
        for inner in function.graph.as_graph_def().library.function:
            if inner.attr["_XlaMustCompile"].b:
                raise ValueError(
                    f"Signature {signature!r} calls {inner.signature.name!r}, a function with "
                    "jit_compile=True, which TensorFlow Serving cannot run. Remove jit_compile "
                    "from the layer that defines it."
                )


def _write(signatures, destination):
    import tensorflow as tf

    module = tf.Module()
    # What the graphs read and no more; a tracked keras object would bring keras into the file.
    module.weights = list(signatures["serving_default"].variables)
    with written_whole(destination) as folder:
        tf.saved_model.save(module, os.fspath(folder), signatures=signatures)
