"""Our own .keras and .weights.h5 files, seen as files of named tensors."""

import contextlib
import dataclasses
import zipfile

import h5py
import keras
import numpy as np

from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, as_float
from keras_vit.models import config_of

FORMAT = "keras"
POSITIONS = "patch_encoder/position_embedding"
WEIGHTS_ONLY_NOTE = (
    "a .weights.h5 file does not tell patch size, heads, activation, epsilon, preprocessing and "
    "pooling: those of the model are taken"
)


@contextlib.contextmanager
def open_keras_model(path):
    """Opens a .keras file of a keras_vit model, in safe mode.

    Yields:
        A pair: the `TensorFile`, whose tensors are called as the weights are, and what the file
        tells: all fields of the model's config.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no .keras file, or a truncated one; write it again")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        config = config_of(model)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no keras_vit model ({error})") from error
    weights = {weight.path: weight for weight in model.weights}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}

    def read(name):
        return as_float(path, name, keras.ops.convert_to_numpy(weights[name]))

    yield TensorFile(path, shapes, read), _facts(config)


def _facts(config):
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if not config.include_preprocessing:
        del known["preprocessing"]
    if not config.include_top:
        del known["num_classes"]
    return known


@contextlib.contextmanager
def open_keras_weights(path):
    """Opens a .weights.h5 file of a keras_vit model.

    Yields:
        A pair: the `TensorFile`, whose tensors are called as the weights are, and what their
        names and shapes tell.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CheckpointError(
            f"{path} is no .weights.h5 file, or a truncated one ({error})"
        ) from error
    with file:
        try:
            datasets = _named_datasets(file)
        except (KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} holds no weights of a keras_vit model ({error})"
            ) from error

        def read(name):
            return as_float(path, name, np.asarray(datasets[name]))

        shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
        known = {
            "class_token": "patch_encoder/class_token" in shapes,
            "pool_norm": "pool_norm/gamma" in shapes,
        }
        for fact, weight in (("num_classes", "head"), ("representation_size", "pre_logits")):
            if f"{weight}/bias" in shapes:
                known[fact] = shapes[f"{weight}/bias"][0]
        yield TensorFile(path, shapes, read), known


def _named_datasets(file):
    """Path of a weight → its data set.

    Keras keeps layers under numbered class names, `layers/dense_1/vars/0`, with the name of the
    layer as an attribute.
    """
    found = {}

    def visit(path, item):
        parts = path.split("/")
        # A compiled model's file holds the optimizer's state too.
        is_layers = parts[0] == "layers" and "seed_generator" not in parts
        if is_layers and isinstance(item, h5py.Dataset):
            layer = file["/".join(parts[:2])]["vars"].attrs["name"]
            inner = parts[2 : parts.index("vars")]
            names = _variable_names([layer, *inner][-1], len(item.parent))
            found["/".join([layer, *inner, names[int(parts[-1])]])] = item

    file.visititems(visit)
    if POSITIONS not in found:
        raise ValueError(f"no {POSITIONS} among its {len(found)} tensors")
    return found


def _variable_names(layer, count):
    if layer == "patch_encoder":
        return ("class_token", "position_embedding")[-count:]
    if layer == "pool":
        return ("probe",)
    return ("gamma", "beta") if layer.endswith("norm") else ("kernel", "bias")


def published_name(name, file_names):
    """A tensor is called as the weight is."""
    return name


def rules(shapes):
    """Each weight is stored under its own path."""
    return [Rule(name, (name,)) for name in shapes]
