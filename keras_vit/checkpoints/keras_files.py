"""Our own .keras and .weights.h5 files, seen as files of named tensors."""

import contextlib
import dataclasses
import zipfile

import keras

from keras_vit.checkpoints.architecture import architecture
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, as_float
from keras_vit.models import added_layers, config_of

FORMAT = "keras"
PATCHES = "patch_encoder/projection/kernel"
WEIGHTS_ONLY_NOTE = (
    "a .weights.h5 file does not tell patch size, heads, activation, epsilon, preprocessing and "
    "pooling: those of the model are taken"
)


@contextlib.contextmanager
def open_keras_model(path):
    """Opens a .keras file of a keras_vit model, in safe mode.

    Yields:
        The `TensorFile`, whose tensors are called as the weights are; what the file tells: all
        fields of the model's config that say something of it; and the layers that were added.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no .keras file, or a truncated one; write it again")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        config = config_of(model)
    except (ValueError, TypeError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} holds no keras_vit model ({error})") from error
    if any(layer.quantization_mode is not None for layer in model._flatten_layers()):
        raise CheckpointError(
            f"{path} holds a quantised model, whose weights fit no other; load it as it is: "
            "keras.saving.load_model(path)"
        )
    weights = {weight.path: weight for weight in model.weights}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}

    def read(name):
        return as_float(path, name, keras.ops.convert_to_numpy(weights[name]))

    yield TensorFile(path, shapes, read), _facts(config), added_layers(model)


def _facts(config):
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if not config.include_preprocessing:
        del known["preprocessing"]
    if not config.include_top:
        # A head of so many classes can be put on it.
        del known["num_classes"], known["include_top"]
    return known


def recognises(names):
    """Whether the `names` are those of a keras_vit model's weights."""
    return PATCHES in names


def weights_facts(path, shapes):
    """What the names and shapes of a .weights.h5 file tell of its model.

    Raises:
        CheckpointError: If they are not those of a Vision Transformer.
    """
    try:
        known = architecture(shapes)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} holds no weights of a keras_vit model ({error} is missing)"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} holds no weights of a keras_vit model: {error}") from error
    if "learned" not in (known["positions"] or ""):
        del known["positions"]  # Fixed or rotary ones leave no trace.
    return known
