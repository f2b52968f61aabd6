"""Other inference engines than TensorFlow: a table, one function that writes, one that runs."""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vit._version import __version__
from keras_vit.export import litert_model, onnx_model, openvino_model
from keras_vit.export.classifier import (
    checked_class_names,
    in_one_level,
    logits_model,
    model_image_size,
    preprocessing_layer,
    preprocessing_policy,
)
from keras_vit.export.copying import check_not_quantized, copy_with_weights
from keras_vit.export.engine_check import check_pictures, compare
from keras_vit.export.engine_files import describe_engine
from keras_vit.export.pruning import prune
from keras_vit.export.quantization import calibration_arrays
from keras_vit.export.versions import put_in_place, version_folder, written_beside
from keras_vit.models import without_unread_tokens


@dataclasses.dataclass(frozen=True)
class Engine:
    """How to write for an engine and how to run what was written.

    Args:
        title: What a reader calls it.
        file: Name of the model file.
        precisions: What it can be written in, float32 first.
        write: `write(model, file, precision, calibration_images)`; the model gives logits.
        load: `load(file, precision, threads)`: a function from pixels to the named outputs.
        converters: Packages that write, by their installed names.
        runtime: Package that runs.
        example: `example(precision)`: Python that computes `probabilities` of `cat.jpg` with the
            runtime alone.
        takes_quantized: Whether in float32 it computes what layers do that Keras has quantised.
    """

    title: str
    file: str
    precisions: tuple[str, ...]
    write: Callable
    load: Callable
    converters: tuple[str, ...]
    runtime: str
    example: Callable
    takes_quantized: bool = False


FORMATS: Mapping[str, Engine] = {
    "onnx": Engine(
        "ONNX",
        "model.onnx",
        ("float32", "int8", "int8-dynamic"),
        onnx_model.write_onnx,
        onnx_model.load_onnx,
        ("tensorflow", "tf2onnx", "onnx"),
        "onnxruntime",
        onnx_model.onnx_example,
        takes_quantized=True,
    ),
    "openvino": Engine(
        "OpenVINO",
        "model.xml",
        ("float32", "float16", "bfloat16", "int8"),
        openvino_model.write_openvino,
        openvino_model.load_openvino,
        ("tensorflow", "nncf"),
        "openvino",
        openvino_model.openvino_example,
    ),
    "litert": Engine(
        "LiteRT",
        "model.tflite",
        ("float32", "float16", "int8-dynamic"),
        litert_model.write_litert,
        litert_model.load_litert,
        ("tensorflow",),
        "ai-edge-litert",
        litert_model.litert_example,
    ),
}


def export_engine(
    model: keras.Model,
    path: str | os.PathLike,
    format: str,
    *,
    class_names: Sequence[str],
    version: int | None = None,
    precision: str = "float32",
    calibration_images: str | os.PathLike | Sequence[np.ndarray] | None = None,
    sparsity: float = 0.0,
) -> Path:
    """Writes a classifier for another inference engine than TensorFlow, and tries it there.

    What is written has one input, `pixels`, uint8 `(batch, height, width, 3)`: decoded RGB images
    of any height and width, which the graph itself resizes, crops and scales as the model's
    `preprocessing` layer says. Its outputs are `probabilities` and `logits`, float32 `(batch,
    num_classes)`. Beside the model lie `class_names.txt`, `signatures.json` and a `README.md` with
    an example that needs the engine, NumPy and Pillow only.

    Before the folder gets its name, the engine answers a few pictures: in float32 every probability
    must be that of the Keras model within 1e-4 with the same best class. In fewer bits the
    difference is written to `signatures.json`, and must be that of rounding.

    | format | precision |
    |---|---|
    | `"onnx"` | `"float32"`, `"int8"`, `"int8-dynamic"` |
    | `"openvino"` | `"float32"`, `"float16"`, `"bfloat16"`, `"int8"` |
    | `"litert"` | `"float32"`, `"float16"`, `"int8-dynamic"` |

    `"int8"` quantises weights and what they are multiplied with, whose ranges it takes from
    calibration images; `"int8-dynamic"` takes them at run time from each batch. `"float16"` stores
    weights in 16 bits and computes in float32. `"bfloat16"` stores float32 and has the engine
    compute in bfloat16 where the processor can.

    Args:
        model: A model with a `preprocessing` layer and a classifier as its last layer, whose
            activation is None (logits) or `"softmax"`; or one that calls the former on its images,
            such as `keras.Sequential([base, keras.layers.Dense(7)])`.
        path: Folder of the exported model; the version is a sub-folder of it.
        format: `"onnx"`, `"openvino"` or `"litert"`.
        class_names: Name of each class, in the order of the model's outputs.
        version: Positive number of the version. None takes the one after the highest present.
        precision: One of the format's, see above.
        calibration_images: For `"int8"`: a folder of JPEG and PNG files, or a sequence of uint8
            arrays `(height, width, 3)`; about 100 of the training images.
        sparsity: Share of each kernel's weights, the smallest, that are set to zero before; see
            `keras_vit.export.pruning.prune`.

    Returns:
        The folder written, `path/version`.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow, or the engine computes something else
            than the model.
        ModuleNotFoundError: If a package of the format is not installed.
        ValueError: If the model or an argument cannot be exported.
        FileExistsError: If the version exists, or `path` is no folder, or a model server's.

    Example:

    ```python
    folder = export_engine(model, "pets-onnx", "onnx", class_names=["cat", "dog"])
    classify = load_engine(folder)
    classify(np.asarray(Image.open("cat.jpg").convert("RGB"))[None])["probabilities"]
    ```
    """
    engine = _checked_engine(format, precision, calibration_images)
    image_size, model = model_image_size(model), in_one_level(model)
    preprocessing = preprocessing_layer(model)
    if not engine.takes_quantized or precision != "float32":
        check_not_quantized(model)
    classifier = _float32(logits_model(model))
    class_names = checked_class_names(class_names, model.output_shape[-1])
    images = calibration_arrays(calibration_images) if precision == "int8" else []
    destination = version_folder(Path(path), version, is_saved_model=False)
    # As given, not what a link leads to.
    name = Path(os.path.abspath(path)).name
    if sparsity:
        classifier = prune(classifier, sparsity)
    facts = {
        "keras_vit": __version__,
        "model": model.name,
        "format": format,
        "precision": precision,
        "sparsity": sparsity,
        "runtime": _versions(engine.runtime),
        "written_with": _versions("keras", *engine.converters),
        "image_size": list(image_size),
        "preprocessing": preprocessing_policy(preprocessing),
        "classes": len(class_names),
        "calibration_images": len(images),
    }
    with written_beside(destination) as folder:

        def describe(number):
            describe_engine(folder, engine, name, str(number), facts)

        file = folder / engine.file
        engine.write(without_unread_tokens(classifier), file, precision, images)
        pictures = [*check_pictures(image_size), *images[:4]]
        facts["check"] = compare(
            engine.load(file, precision, None), classifier, pictures, precision
        )
        labels = "".join(f"{name}\n" for name in class_names)
        (folder / "class_names.txt").write_text(labels, encoding="utf-8")
        describe(int(destination.name))
        return put_in_place(folder, destination, describe if version is None else None)


def load_engine(
    folder: str | os.PathLike, *, threads: int | None = None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Loads what `export_engine` wrote into its engine, on the CPU.

    Args:
        folder: The folder of a version.
        threads: Number of threads of the engine; None leaves it to the engine.

    Returns:
        A function of pixels, uint8 `(batch, height, width, 3)`, that returns a dict of
        `probabilities` and `logits`, float32 `(batch, num_classes)`.

    Raises:
        FileNotFoundError: If the folder holds no `signatures.json`.
        ValueError: If what it describes is for none of the engines, such as a SavedModel.
    """
    facts = json.loads(Path(folder, "signatures.json").read_text(encoding="utf-8"))
    if facts.get("format") not in FORMATS:
        raise ValueError(
            "`folder` must hold what `export_engine` wrote, whose format is one of "
            f"{', '.join(FORMATS)}. By its signatures.json, {folder} has the format "
            f"{facts.get('format')!r}. Load a SavedModel with `tf.saved_model.load`."
        )
    engine = FORMATS[facts["format"]]
    return engine.load(Path(folder, engine.file), facts["precision"], threads)


def _checked_engine(format, precision, calibration_images):
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Models are converted for other engines on the TensorFlow backend only; the backend is "
            f"{keras.backend.backend()!r}. Save the model with `model.save('model.keras')` and "
            "export that file in a process with KERAS_BACKEND=tensorflow."
        )
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}. Received: format={format!r}"
        )
    engine = FORMATS[format]
    if precision not in engine.precisions:
        raise ValueError(
            f"`precision` must be one of {', '.join(engine.precisions)} for {engine.title}. "
            f"Received: precision={precision!r}"
        )
    if calibration_images is not None and precision != "int8":
        raise ValueError(
            f"`calibration_images` are read for int8 only. Received: precision={precision!r}"
        )
    needed = {engine.runtime, *engine.converters} - ({"nncf"} if precision != "int8" else set())
    for package in sorted(needed):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModuleNotFoundError(
                f"To write {engine.title}, install {package}: "
                f"`pip install {package}`, or all formats with `pip install keras-vit[export]`."
            ) from error
    return engine


def _float32(model):
    """`model`, or for one of 16-bit precision a copy that computes in float32."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def copy(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    return copy_with_weights(model, clone_function=copy)


def _versions(*packages):
    return {package: importlib.metadata.version(package) for package in packages}
