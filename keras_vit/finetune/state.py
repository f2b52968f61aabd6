"""Training checkpoints: everything a run needs to go on, in files that are whole or absent."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

KEPT_CHECKPOINTS = 2
_FILE_NAME = re.compile(r"step_(\d+)\.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Number of optimizer steps done.
        seconds: Wall time spent so far, over all sessions.
    """

    step: int = 0
    seconds: float = 0.0


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes a file beside its place, forces it to disk and renames it into place.

    Whoever reads `path` sees the old content or the new one, never a part.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: str | Path, content: dict) -> None:
    """Writes plain values as JSON, whole or not at all."""
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: str | Path) -> dict:
    """Reads what `write_json` wrote; a ValueError names the file where it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected an object, found {type(content).__name__}")
    return content


def save_training_state(
    folder: str | Path, model: keras.Model, progress: Progress, identity: str
) -> Path:
    """Writes all variables of a compiled model and its optimizer; keeps the last two files.

    Seed generators, the loss scale, accumulated gradients and the step counter are among the
    variables, so a run that goes on from here computes what it would have computed.

    Args:
        folder: Folder of the training checkpoints.
        model: The compiled training model.
        progress: How far the run has come; `progress.step` names the file.
        identity: What says that a checkpoint belongs to a run, such as a digest of its recipe.

    Returns:
        The path of the new file.

    Raises:
        FloatingPointError: If a variable is not finite; nothing is written then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: _storable(variable) for name, variable in _state_variables(model)}
    variable_names = {name: variable.path for name, variable in _state_variables(model)}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"The variable {variable_names[name]} is not finite after step {progress.step}."
            )
    metadata = {
        "step": str(progress.step),
        "seconds": repr(progress.seconds),
        "identity": identity,
    }
    metadata["sha256"] = _digest(arrays, metadata)
    path = folder / f"step_{progress.step:08d}.safetensors"
    replace_file(path, save(arrays, metadata))
    for old in _checkpoint_files(folder)[KEPT_CHECKPOINTS:]:
        old.unlink()
    return path


def restore_training_state(
    folder: str | Path, model: keras.Model, identity: str, warn=print
) -> Progress:
    """Sets a compiled model and its optimizer to the newest checkpoint that is whole.

    Args:
        folder: Folder of the training checkpoints; it may be absent.
        model: The compiled training model, its optimizer built.
        identity: What the checkpoint must have been saved with.
        warn: Called with one line for each checkpoint that is passed over.

    Returns:
        How far the run has come; step 0 where there is no checkpoint.
    """
    for path in _checkpoint_files(Path(folder)):
        try:
            arrays, metadata = _read(path)
            _check_fits(arrays, metadata, model, identity)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            warn(f"Passing over the training checkpoint {path}: {error}")
            continue
        for name, variable in _state_variables(model):
            variable.assign(arrays[name])
        return Progress(int(metadata["step"]), float(metadata["seconds"]))
    return Progress()


def identity_digest(identity: dict) -> str:
    """A digest of plain values, the same for equal values.

    >>> identity_digest({"a": 1, "b": 2}) == identity_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _checkpoint_files(folder):
    """Newest first."""
    files = [path for path in folder.glob("step_*.safetensors") if _FILE_NAME.fullmatch(path.name)]
    return sorted(files, reverse=True)


def _state_variables(model):
    # Names that Keras gives count up within a process, so the place in the list is the key.
    for kind, variables in (("model", model.variables), ("optimizer", model.optimizer.variables)):
        for index, variable in enumerate(variables):
            yield f"{kind}.{index:04d}", variable


def _storable(variable):
    array = np.asarray(variable.numpy(), order="C")
    # safetensors cannot hand bfloat16 back to NumPy; float32 holds every bfloat16 number.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _digest(arrays, metadata):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path):
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    if metadata.pop("sha256") != _digest(arrays, metadata):
        raise ValueError("its checksum does not match its content")
    return arrays, metadata


def _check_fits(arrays, metadata, model, identity):
    if metadata["identity"] != identity:
        raise ValueError("it belongs to another run")
    expected = {name: tuple(variable.shape) for name, variable in _state_variables(model)}
    found = {name: array.shape for name, array in arrays.items()}
    if expected != found:
        raise ValueError(f"it holds {len(found)} variables that do not fit the model's")
