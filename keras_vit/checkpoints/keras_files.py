"""Our own .keras and .weights.h5 files, seen as files of named tensors."""

import contextlib
import dataclasses
import zipfile

import h5py
import keras

from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, as_float, resolve_path
from keras_vit.models import config_of, vision_transformer

FORMAT = "keras"


@contextlib.contextmanager
def open_keras_file(path, config=None):
    """Opens a .keras or .weights.h5 file of a keras_vit model.

    Args:
        path: The file.
        config: The config of the model to load into; a .weights.h5 file stores weights only, the
            rest of the architecture is taken from here.

    Yields:
        A pair: the `TensorFile`, whose tensors are called as the weights are, and the config of
        the model in the file.
    """
    path = resolve_path(path)
    twin = _load_keras(path) if path.suffix == ".keras" else _load_weights(path, config)
    weights = {weight.path: weight for weight in twin.weights}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}

    def read(name):
        return as_float(path, name, keras.ops.convert_to_numpy(weights[name]))

    yield TensorFile(path, shapes, read), config_of(twin)


def _load_keras(path):
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        config_of(model)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no keras_vit model ({error})") from error
    return model


def _load_weights(path, config):
    if config is None:
        raise CheckpointError(
            f"{path} stores weights without the architecture. Build the model "
            "(keras_vit.create) and pass the file as `weights`, or use a .keras file"
        )
    try:
        with h5py.File(path, "r") as file:
            # Keras names a saved layer after its class, in order: the head is the only Dense
            # layer but `pre_logits`, which precedes it.
            encoder = file["layers/patch_encoder/vars"]
            positions = encoder[str(len(encoder) - 1)].shape[1]
            last = "dense_1" if config.representation_size is not None else "dense"
            head = file.get(f"layers/{last}/vars/1")
            include_top, num_classes = head is not None, None if head is None else head.shape[0]
    except (OSError, KeyError) as error:
        raise CheckpointError(f"{path} holds no weights of a keras_vit model ({error})") from error
    stored = dataclasses.replace(
        config, include_top=include_top, num_classes=num_classes or config.num_classes
    )
    if positions != stored.prefix_tokens + stored.grid[0] * stored.grid[1]:
        side = round((positions - stored.prefix_tokens) ** 0.5)
        if side * side != positions - stored.prefix_tokens:
            raise CheckpointError(
                f"{path} holds {positions} positions, which are no square grid; build the model at "
                "the image size of the file first"
            )
        size = tuple(side * patch for patch in stored.patch_size)
        stored = dataclasses.replace(stored, image_size=size)
    twin = vision_transformer(stored)
    try:
        twin.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} does not fit the model ({error})") from error
    return twin


def rules(shapes):
    """Each weight is stored under its own path."""
    return [Rule(name, (name,)) for name in shapes]


def facts(config):
    """All that the config says: a model's own file leaves nothing open."""
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in ("dropout", "attention_dropout", "drop_path", "classifier_activation"):
        del known[name]
    if not config.include_preprocessing:
        del known["preprocessing"]
    if not config.include_top:
        del known["num_classes"]
    return known
