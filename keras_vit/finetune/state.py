"""Training checkpoints: everything a run needs to go on, in files that are whole or absent."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_vit.checkpoints.replaced_file import replaced_file
from keras_vit.finetune.optimizer import gradient_accumulators

KEPT_CHECKPOINTS = 2
_FILE_NAME = re.compile(r"(step|best)_(\d+)\.safetensors")
# Stands for the digest while it is computed: the digest is in the file that it is of.
_NO_DIGEST = "0" * 64
_ACCUMULATOR = "accumulator."
# What reading a damaged file, or one of another run, raises.
_UNUSABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Number of optimizer steps done.
        seconds: Wall time spent so far, over all sessions.
        best_accuracy: The highest accuracy on the validation split so far; below 0: none yet.
        best_step: The first step that had it.
        evaluations_since_best: Evaluations after that step.
        since_row: Loss, accuracy and learning rate of each step since the last row of the log.
    """

    step: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_step: int = 0
    evaluations_since_best: int = 0
    since_row: tuple[tuple[float, float, float], ...] = ()

    def evaluated(self, step: int, accuracy: float) -> "Progress":
        """What becomes of it by an evaluation.

        >>> Progress().evaluated(5, 0.9).evaluated(10, 0.9).evaluations_since_best
        1
        """
        if accuracy > self.best_accuracy:
            return dataclasses.replace(
                self, best_accuracy=accuracy, best_step=step, evaluations_since_best=0
            )
        return dataclasses.replace(self, evaluations_since_best=self.evaluations_since_best + 1)


def replace_file(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all, see `replaced_file`."""
    with replaced_file(path) as beside:
        beside.write_bytes(data)


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
    with CheckpointWriter(folder, identity) as writer:
        return writer.save(model, progress).result()


class CheckpointWriter:
    """Writes training checkpoints while the training goes on.

    The variables are copied before `save` returns; checksum, file and disk take their time in
    a thread. Files come into being in the order of the calls.

    Args:
        folder: Folder of the training checkpoints.
        identity: As for `save_training_state`.
    """

    def __init__(self, folder: str | Path, identity: str):
        self._folder = Path(folder)
        self._identity = identity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: list[Future] = []

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.check()

    def save(self, model: keras.Model, progress: Progress) -> Future:
        """Saves what `save_training_state` saves; waits where the last one is not written yet."""
        path = self._folder / f"step_{progress.step:08d}.safetensors"
        return self._submit(path, dict(_state_variables(model)), progress)

    def save_best(self, model: keras.Model, progress: Progress) -> Future:
        """Saves the model's weights alone, as those of the best step so far."""
        path = _best_file(self._folder, progress)
        return self._submit(path, dict(_model_variables(model)), progress)

    def check(self) -> None:
        """Raises what went wrong in writing, if anything did."""
        done, self._pending = (
            [future for future in self._pending if future.done()],
            [future for future in self._pending if not future.done()],
        )
        for future in done:
            future.result()

    def _submit(self, path, variables, progress):
        # One copy of the state waits at most.
        for future in self._pending:
            future.result()
        arrays = {name: _storable(variable) for name, variable in variables.items()}
        paths = {name: variable.path for name, variable in variables.items()}
        self._pending = [self._thread.submit(_write, path, arrays, paths, progress, self._identity)]
        return self._pending[0]


def restore_training_state(
    folder: str | Path,
    model: keras.Model,
    identity: str | None,
    warn: Callable[[str], object] = print,
) -> Progress:
    """Sets a compiled model and its optimizer to the newest checkpoint that is whole.

    Args:
        folder: Folder of the training checkpoints; it may be absent.
        model: The compiled training model, its optimizer built.
        identity: What the checkpoint must have been saved with; None: any, as long as it fits. It
            may then be of other micro-batches: what they have accumulated is nothing between two
            steps.
        warn: Called with one line for each checkpoint that is passed over.

    Returns:
        How far the run has come; step 0 where there is no checkpoint.

    Raises:
        ValueError: If there are checkpoints, and none can be used.
    """
    files = _checkpoint_files(Path(folder))
    variables = dict(_state_variables(model))
    for path in files:
        try:
            arrays, progress = _read_fitting(path, variables, identity)
        except _UNUSABLE as error:
            warn(f"Passing over the training checkpoint {path}: {error}")
            continue
        for name, variable in variables.items():
            # Other micro-batches may have accumulated nothing.
            variable.assign(arrays[name] if name in arrays else np.zeros(variable.shape, "float32"))
        return progress
    if files:
        raise ValueError(
            f"None of the {len(files)} training checkpoints in {folder} can be used, see above. "
            "Start over in a new folder with --fresh"
        )
    return Progress()


def restore_best(folder: str | Path, model: keras.Model, progress: Progress, identity: str) -> None:
    """Sets a model to the weights that `CheckpointWriter.save_best` saved for a progress.

    Raises:
        ValueError: If the file is damaged or absent.
    """
    path, variables = _best_file(Path(folder), progress), dict(_model_variables(model))
    try:
        arrays, _ = _read_fitting(path, variables, identity)
    except _UNUSABLE as error:
        raise ValueError(
            f"{path}, the weights of the best step, cannot be used: {error}. Start over in a new "
            "folder with --fresh"
        ) from error
    for name, variable in variables.items():
        variable.assign(arrays[name])


def hand_on_best(folder: str | Path, model: keras.Model, progress: Progress, identity: str) -> bool:
    """Gives the weights that `restore_best` would take another identity; whether they are there."""
    path, variables = _best_file(Path(folder), progress), dict(_model_variables(model))
    try:
        arrays, saved = _read_fitting(path, variables, None)
    except _UNUSABLE:
        return False
    paths = {name: variable.path for name, variable in variables.items()}
    _write(path, arrays, paths, saved, identity)
    return True


def identity_digest(identity: dict) -> str:
    """A digest of plain values, the same for equal values.

    >>> identity_digest({"a": 1, "b": 2}) == identity_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _checkpoint_files(folder, kind="step"):
    """Newest first."""
    return sorted(
        (path for path in folder.glob(f"{kind}_*.safetensors") if _FILE_NAME.fullmatch(path.name)),
        reverse=True,
    )


def _best_file(folder, progress):
    return folder / f"best_{progress.best_step:08d}.safetensors"


def _model_variables(model):
    for index, variable in enumerate(model.variables):
        yield f"model.{index:04d}", variable


def _state_variables(model):
    # Names that Keras gives count up within a process, so the place in the list is the key.
    yield from _model_variables(model)
    accumulators = gradient_accumulators(model.optimizer)
    apart = set(map(id, accumulators))
    others = [variable for variable in model.optimizer.variables if id(variable) not in apart]
    for index, variable in enumerate(others):
        yield f"optimizer.{index:04d}", variable
    # So that the others have the same keys whether there are any.
    for index, variable in enumerate(accumulators):
        yield f"{_ACCUMULATOR}{index:04d}", variable


def _storable(variable):
    # `numpy` copies: the next step changes the variable, or gives its memory away.
    array = np.asarray(variable.numpy(), order="C")
    # safetensors cannot hand bfloat16 back to NumPy; float32 holds every bfloat16 number.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _write(path, arrays, variable_paths, progress, identity):
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"The variable {variable_paths[name]} is not finite after step {progress.step}."
            )
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(progress).items()}
    metadata |= {"identity": identity, "sha256": _NO_DIGEST}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as beside:
        save_file(arrays, beside, metadata)
        digest, place = _digest(beside, _NO_DIGEST)
        with open(beside, "r+b") as file:
            file.seek(place)
            file.write(digest.encode())
    _remove_old(path.parent)
    return path


def _remove_old(folder):
    """Keeps the last checkpoints, and the weights of the best step that they or later ones name."""
    files = _checkpoint_files(folder)
    for old in files[KEPT_CHECKPOINTS:]:
        old.unlink()
    best = _checkpoint_files(folder, "best")
    if not (files and best):
        return
    oldest_named = min(_named_best(path) for path in files[:KEPT_CHECKPOINTS])
    for old in best:
        if int(_FILE_NAME.fullmatch(old.name)[2]) < oldest_named:
            old.unlink()


def _named_best(path):
    try:
        with safe_open(path, "numpy") as file:
            return int(json.loads((file.metadata() or {})["best_step"]))
    except _UNUSABLE:
        return 0  # Damaged: nothing more is removed than must be.


def _digest(path, known):
    """The sha256 of a file in which no digest stands yet, and the place for it.

    Args:
        path: The file.
        known: The digest that stands in it.
    """
    with open(path, "rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > os.fstat(file.fileno()).st_size:
            raise ValueError("its header is damaged")
        header = file.read(size)
        entry = f'"sha256":"{known}"'.encode()
        if header.count(entry) != 1:
            raise ValueError("its header is damaged")
        digest = hashlib.sha256(length)
        digest.update(header.replace(entry, f'"sha256":"{_NO_DIGEST}"'.encode()))
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest(), 8 + header.index(entry) + len(b'"sha256":"')


def _read_fitting(path, variables, identity):
    """The arrays of a file whose checksum is right and whose shapes are the variables', and how far
    the run had come."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
    if "sha256" not in metadata or _digest(path, metadata["sha256"])[0] != metadata["sha256"]:
        raise ValueError("its checksum does not match its content")
    if identity is not None and metadata["identity"] != identity:
        raise ValueError("it belongs to another run")
    with safe_open(path, "numpy") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        expected = {name: tuple(variable.shape) for name, variable in variables.items()}
        if identity is None:
            found, expected = (
                {name: shape for name, shape in shapes.items() if not name.startswith(_ACCUMULATOR)}
                for shapes in (found, expected)
            )
        if expected != found:
            raise ValueError(f"it holds {len(found)} variables that do not fit the model's")
        arrays = {name: file.get_tensor(name) for name in found}
    names = {field.name for field in dataclasses.fields(Progress)}
    values = {name: json.loads(metadata[name]) for name in names}
    values["since_row"] = tuple(map(tuple, values["since_row"]))
    return arrays, Progress(**values)
