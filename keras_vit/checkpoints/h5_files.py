"""Opens the HDF5 files that Keras writes: .weights.h5, sharded ones, and the .h5 of Keras 2.

Keras 3 numbers variables, `layers/dense/vars/0`, and keeps a layer's name beside them. Here a
tensor is called by names, `head/kernel`: those of the layers, of the attributes that hold inner
layers, and of the variable. In a file of Keras 2 it is called by its path.
"""

import contextlib
import json
import math
import re
import reprlib

import h5py
import numpy as np

from keras_vit.checkpoints.safetensors_files import read_json_object
from keras_vit.checkpoints.tensor_file import CheckpointError, TensorFile, as_float, check_shape

INDEX_SUFFIX = ".weights.json"
SUFFIXES = (".h5", ".hdf5", INDEX_SUFFIX)
# The files of a keras-hub preset: those of its weights, of which the head's lies apart, and the
# configs, which the `hub_config` of the open file holds under these names.
PRESET_WEIGHTS = ("model.weights.h5", "model.weights.json")
_TASK_WEIGHTS = "task.weights.h5"
_CONFIGS = {"backbone": "config.json", "task": "task.json", "converter": "image_converter.json"}


@contextlib.contextmanager
def open_h5(path):
    """Opens a file of weights that Keras wrote.

    Args:
        path: A .h5 file, or the .weights.json of a sharded one, a `pathlib.Path`. With the
            model.weights.h5 of a keras-hub preset, its task.weights.h5 is opened too.

    Yields:
        A `TensorFile`. Its `hub_config` holds the JSON files beside it, under `"backbone"`,
        `"task"` and `"converter"`; for a file of Keras 2 the model's config if it is there, under
        `"model"`.

    Raises:
        CheckpointError: If it is no HDF5 file, is damaged, or points to data elsewhere.
    """
    with contextlib.ExitStack() as stack:
        datasets, layer_names, model = {}, {}, None
        for part in _parts(path):
            file = stack.enter_context(_open(part))
            with _damage_named(str(part)):
                found, names = _contents(part, file)
                model = _model_config(file)
            twice = sorted(datasets.keys() & found.keys())
            if twice:
                raise CheckpointError(f"{part} holds {twice[0]}, as another file of {path} does")
            datasets |= {name: (part, dataset) for name, dataset in found.items()}
            layer_names |= names
        with _damage_named(str(path)):
            tensors = _named(path, datasets, layer_names)

        def read(name, index=None):
            return _read(*tensors[name], name, index)

        shapes = {name: tuple(dataset.shape) for name, (_, dataset) in tensors.items()}
        yield TensorFile(path, shapes, read, _configs(path) | ({"model": model} if model else {}))


@contextlib.contextmanager
def _damage_named(what):
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Whatever the bytes made HDF5 stumble over.
        raise CheckpointError(
            f"{what} is damaged ({error!s:.200}); fetch the file again"
        ) from error


def _parts(path):
    """The files that make up a checkpoint."""
    parts = [path]
    if path.name.endswith(INDEX_SUFFIX):
        parts = [path.with_name(name) for name in _shard_names(path)]
    task = path.with_name(_TASK_WEIGHTS)
    if path.name in PRESET_WEIGHTS and task.is_file():
        parts.append(task)
    return parts


def _shard_names(path):
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} is no index of shards: it has no object `weight_map`")
    names = set()
    for weights, place in places.items():
        for name in place if isinstance(place, list) else [place]:
            valid = isinstance(name, str) and name.endswith(".h5")
            if not valid or any(character in name for character in "/\\:\0"):
                raise CheckpointError(
                    f"{path}: {weights} is said to be in {reprlib.repr(name)}; expected the name "
                    "of a .h5 file in the same folder"
                )
            if not path.with_name(name).is_file():
                raise CheckpointError(
                    f"{path}: the shard {name}, which holds {weights}, is missing; fetch it too"
                )
            names.add(name)
    return sorted(names)


def _open(path):
    try:
        return h5py.File(path, "r")
    except Exception as error:
        raise CheckpointError(
            f"{path} is no HDF5 file of Keras, or a truncated one ({error!s:.200}); fetch it again"
        ) from error


def _contents(path, file):
    """Data sets by their paths, and the names of layers by the paths of their groups."""
    datasets, layer_names = {}, {}
    seen, waiting = {_address(file)}, [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            where = prefix + name
            # Soft and external links, as external and virtual data sets, can point to other files.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(
                    f"{path}: {where} is a link to elsewhere, and is not followed"
                )
            item = group[name]
            if _address(item) in seen:
                raise CheckpointError(f"{path}: {where} is there under another name too")
            seen.add(_address(item))
            if isinstance(item, h5py.Group):
                if prefix.endswith("/vars/"):
                    raise CheckpointError(f"{path}: {where} is a group; expected a data set")
                waiting.append((f"{where}/", item))
                if name == "vars" and isinstance(item.attrs.get("name"), str):
                    layer_names[prefix.removesuffix("/")] = item.attrs["name"]
            else:
                _check_dataset(path, where, item)
                datasets[where] = item
    return datasets, layer_names


def _address(item):
    return h5py.h5o.get_info(item.id).addr


def _check_dataset(path, name, dataset):
    if not isinstance(dataset, h5py.Dataset):
        raise CheckpointError(f"{path}: {name} is no data set")
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{path}: the data of {name} lie in another file, and are not read")
    if dataset.id.get_create_plist().get_nfilters():
        raise CheckpointError(
            f"{path}: {name} is compressed, which Keras's files are not; rewrite the file without "
            "filters (h5repack -f NONE)"
        )
    size = math.prod(check_shape(path, name, dataset.shape)) * dataset.dtype.itemsize
    if dataset.id.get_storage_size() < size:
        raise CheckpointError(
            f"{path}: {name} is damaged: {dataset.dtype} {dataset.shape} takes {size} bytes, "
            f"the file holds {dataset.id.get_storage_size()}"
        )


def _read(path, dataset, name, index):
    # A dtype that is refused here is one that might run on reading: of references, or of text.
    as_float(path, name, np.empty(0, dataset.dtype))
    if index is not None and not 0 <= index < dataset.shape[0]:
        raise IndexError(f"{name} holds {dataset.shape[0]} slices. Received: index={index}")
    with _damage_named(f"{path}: tensor {name}"):
        array = np.asarray(dataset[() if index is None else index])
    return as_float(path, name, array)


def _configs(path):
    beside = {key: path.with_name(name) for key, name in _CONFIGS.items()}
    return {key: read_json_object(file) for key, file in beside.items() if file.is_file()}


def _model_config(file):
    text = file.attrs.get("model_config")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    config = json.loads(text) if isinstance(text, str) else None
    return config if isinstance(config, dict) else None


def _named(path, datasets, layer_names):
    """Name → (file, data set), without the states of optimizers and of random numbers."""
    tensors = {}
    variables: dict[str, dict[str, tuple]] = {}
    for where, item in datasets.items():
        if re.fullmatch(r"layers/.+/vars/\w+", where) and "/seed_generator/" not in where:
            layer, _, number = where.rpartition("/vars/")
            variables.setdefault(layer, {})[number] = item
        elif where.partition("/")[0] not in ("layers", "optimizer", "optimizer_weights"):
            name = where.removeprefix("model_weights/").removesuffix(":0")
            tensors[name] = item
    for layer, numbered in variables.items():
        if not any(map(str.isdecimal, numbered)):
            # Our own layers whose variables are not always all there store them by name.
            path_of = _layer_path(layer, layer_names)
            tensors |= {f"{path_of}/{name}": item for name, item in numbered.items()}
            continue
        missing = [str(n) for n in range(len(numbered)) if str(n) not in numbered]
        if missing:
            raise CheckpointError(f"{path}: {layer}/vars/{missing[0]} is missing")
        items = [numbered[str(number)] for number in range(len(numbered))]
        names = _variable_names(layer, [tuple(dataset.shape) for _, dataset in items])
        for name, item in zip(names, items, strict=True):
            name = f"{_layer_path(layer, layer_names)}/{name}"
            if name in tensors:
                raise CheckpointError(f"{path}: two layers are called {name.rpartition('/')[0]}")
            if name.endswith("/position_ids"):
                _check_position_ids(*item, name)
            tensors[name] = item
    return tensors


def _check_position_ids(path, dataset, name):
    """Positions are taken in their order, as in all published files."""
    if dataset.dtype.kind not in "iu" or dataset.ndim != 2:
        raise CheckpointError(f"{path}: {name} must hold integers (1, positions)")
    if not np.array_equal(np.asarray(dataset[()])[0], np.arange(dataset.shape[1])):
        raise CheckpointError(
            f"{path}: {name} must be 0, 1, 2, …; a model of keras-hub that was made without "
            "weights has zeros there, and gives all patches one position"
        )


def _layer_path(layer, layer_names):
    parts = layer.split("/")
    names = []
    for index, part in enumerate(parts):
        if part in ("layers", "units"):
            continue
        is_named = index > 0 and parts[index - 1] in ("layers", "units")
        where = "/".join(parts[: index + 1])
        names.append(layer_names.get(where, part) if is_named else part)
    return "/".join(names)


# Variables of layers that have more than a kernel and a bias, by the layer's class or attribute.
_VARIABLES = {
    "pool": ("probe",),
    "attention_pooling": ("probe",),
    "attention": ("query_value_bias",),
    "relative_position_bias": ("table",),
    "position_embedding": ("embeddings",),
    "class_token": ("cls",),
    "add_position_embs": ("pos_embedding",),
    "vi_t_patching_and_embedding": ("class_token",),
    "dei_t_embeddings": ("class_token", "distillation_token", "position_embedding"),
    "clip_vision_embedding": ("class_token", "position_ids"),
    "sig_lip_vision_embedding": ("position_ids",),
    "sig_lip_multi_head_attention_pooling": ("probe",),
}


def _variable_names(layer, shapes):
    kind = re.sub(r"_\d+$", "", layer.rpartition("/")[2])
    if kind in ("dinov2_embedding", "dinov3_embedding"):
        names = _token_names(kind, shapes)
    elif kind in _VARIABLES:
        names = _VARIABLES[kind]
    else:
        names = ("kernel", "bias") if len(shapes[0]) > 1 else ("gamma", "beta")
    names = tuple(names)[: len(shapes)]
    return names + tuple(str(number) for number in range(len(names), len(shapes)))


def _token_names(kind, shapes):
    """Names of tokens and positions, of which each may be absent."""
    positions = ("position_embedding", "source_positions") if kind == "dinov2_embedding" else ()
    names = ["class_token", *positions]
    if len(shapes) > len(names) and (len(shapes[1]) == 2 or shapes[1][1] == 1):
        names.insert(1, "mask_token")
    if len(shapes) > len(names):
        names.insert(len(names) - len(positions), "register_tokens")
    return names
