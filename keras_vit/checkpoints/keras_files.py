"""Our own .keras and .weights.h5 files, seen as files of named tensors."""

import contextlib
import dataclasses
import zipfile

import keras

from keras_vit.checkpoints.h5_files import open_h5
from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, as_float
from keras_vit.models import config_of

FORMAT = "keras"
POSITIONS = "patch_encoder/position_embedding"
PATCHES = "patch_encoder/projection/kernel"
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
    with open_h5(path) as file:
        if not recognises(file.shapes):
            raise CheckpointError(
                f"{path} holds no weights of a keras_vit model (no {PATCHES} among its "
                f"{len(file.shapes)} tensors)"
            )
        yield file, weights_facts(file.shapes)


def recognises(names):
    """Whether the `names` are those of a keras_vit model's weights."""
    return PATCHES in names


def weights_facts(shapes):
    """What the names and shapes of a .weights.h5 file tell of its model."""
    known = {
        "class_token": "patch_encoder/class_token" in shapes,
        "pool_norm": "pool_norm/gamma" in shapes,
    }
    for fact, weight in (("num_classes", "head"), ("representation_size", "pre_logits")):
        if f"{weight}/bias" in shapes:
            known[fact] = shapes[f"{weight}/bias"][0]
    return known


def published_name(name, file_names):
    """A tensor is called as the weight is."""
    return name


def rules(shapes):
    """Each weight is stored under its own path."""
    return [Rule(name, (name,)) for name in shapes]
