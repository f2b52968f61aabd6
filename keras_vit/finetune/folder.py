"""A run's folder: what it says it holds, and whether another run may go on in it."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_vit.checkpoints.reading import checkpoint_files
from keras_vit.data import DataSource
from keras_vit.finetune.hosts import agree
from keras_vit.finetune.recipe import FREE_FIELDS, Recipe, differing_fields, recipe_fields
from keras_vit.finetune.state import read_json
from keras_vit.models import VisionTransformerConfig
from keras_vit.zoo import weights_path
from keras_vit.zoo.file_lock import file_lock

_DISK_FULL = ("no space left on device", "disk quota exceeded")
# What decides which images a run trains on, and which it is judged by.
DIVISION = ("data digest", "seed", "train_images", "validation_fraction", "own_validation")
_NOT_WRITABLE = ("read-only file system", "permission denied", "operation not permitted")


def describe_run(
    recipe: Recipe, source: DataSource, architecture: VisionTransformerConfig | None = None
) -> dict:
    """What recipe.json holds: everything that decides what a run computes, as plain values.

    Args:
        recipe: The options; `precision` resolved.
        source: The data set.
        architecture: The architecture, where `recipe.model` does not name it.
    """
    weights = weights_path(recipe.weights) if recipe.weights else None
    configuration = {
        "recipe": recipe_fields(recipe),
        "architecture": dataclasses.asdict(architecture) if architecture else None,
        "data": {
            "name": source.name,
            "version": source.version,
            "digest": source.digest,
            "classes": len(source.class_names),
        },
        "backend": keras.backend.backend(),
        "weights_sha256": weights_digest(weights) if weights else None,
        "weights_config_sha256": weights_config_digest(weights) if weights else None,
    }
    # Through JSON, so that it equals what is read back: tuples become lists.
    return json.loads(json.dumps(configuration))


def deciding_options(configuration: dict) -> dict:
    """The options that no two sessions of a run may differ in, on one level.

    Files count by their content, not by their path.
    """
    options = {**configuration["recipe"], "weights": configuration["weights_sha256"]}
    for name in ("architecture", "weights_config_sha256", "backend"):
        options[name] = configuration.get(name)
    data = {f"data {name}": value for name, value in configuration["data"].items()}
    if options.get("early_stopping") or options.get("keep") == "best":
        # Evaluations decide then.
        data["evaluate-every"] = options["evaluate_every"]
    del options["data"]  # The name as given may be a path.
    return {name: value for name, value in {**options, **data}.items() if name not in FREE_FIELDS}


def with_unused_name(recipe: Recipe) -> Recipe:
    """The recipe, no longer `fresh`, under its name or that with the first number from 2 on whose
    folder does not exist yet; all hosts come to the same."""
    name, number = recipe.name, 2
    while Path(recipe.output, name).exists():
        name, number = f"{recipe.name}-{number}", number + 1
    agree("name that is free", name)
    return dataclasses.replace(recipe, name=name, fresh=False)


@contextlib.contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Keeps other runs out of a folder; a killed run's lock is none.

    The file is beside the folder, which comes into being only when a run begins in it.
    """
    folder = Path(folder)
    try:
        with file_lock(folder.with_name(f".{folder.name}.lock"), wait=False):
            yield
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{folder} is in use: {error}. Wait until that run ends, or choose another --name"
        ) from error


@contextlib.contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """Says of errors of the disk which disk it is, and how the run goes on."""
    try:
        yield
    except Exception as error:
        named, place = getattr(error, "filename", None), Path(folder).resolve()
        if named and not _is_in_line(Path(os.fsdecode(named)).resolve(), place):
            raise  # A file of the data, for instance.
        text = str(error).lower() if _may_be_the_systems(error) else ""
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in _DISK_FULL):
            raise OSError(
                f"The disk of {folder} is full{_free(folder)}: {error}. Make room; the same "
                "command then goes on from the last checkpoint"
            ) from error
        if number in (errno.EROFS, errno.EACCES, errno.EPERM) or any(
            sign in text for sign in _NOT_WRITABLE
        ):
            raise OSError(
                f"{folder} cannot be written to: {error}. Choose another --output, or see to its "
                "permissions"
            ) from error
        raise


def _may_be_the_systems(error):
    """Whether the text of an error may be a message of the system about the run's own files.

    Libraries in C hand it on in errors of their own, which have no cause. A ValueError is about
    what was given, such as a picture that may not be read.
    """
    return isinstance(error, OSError) or not (isinstance(error, ValueError) or error.__cause__)


def _is_in_line(path, folder):
    """Whether a path is the folder, in it, or above it."""
    return path == folder or folder in path.parents or path in folder.parents


def _free(folder):
    there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    usage = shutil.disk_usage(there)
    return f" ({usage.free / 2**20:,.1f} of {usage.total / 2**20:,.0f} MiB free)"


def check_folder(
    folder: str | Path, configuration: dict, *, accept_changes: bool = False
) -> dict[str, str]:
    """Whether a run may go on in a folder.

    Args:
        folder: The folder; it may be absent.
        configuration: Of the run, from `describe_run`.
        accept_changes: Whether it may differ from the one that the folder holds; never in what
            divides the images, or the run could be judged by some that it was trained on, and not
            in the optimizer, which keeps a state of its own.

    Returns:
        What differs, where that is accepted: `value here, there value` by option.

    Raises:
        ValueError: If the folder holds something else than the run described.
    """
    folder = Path(folder)
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file. Expected a folder; choose another --name")
    recipe_file = folder / "recipe.json"
    if not recipe_file.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds files, but no recipe.json: it is not a run. Choose another --name"
            )
        return {}
    there = read_configuration(folder)
    changes = differing_fields(deciding_options(configuration), deciding_options(there))
    redrawn = [name for name in changes if name in DIVISION]
    if redrawn or "optimizer" in changes or (changes and not accept_changes):
        fresh = "start over in a new folder with --fresh"
        if redrawn:
            advice = (
                f"or {fresh}. With another {' and '.join(redrawn)} the run could be judged by "
                "images that it was trained on"
            )
        elif "optimizer" in changes:
            advice = f"or {fresh}. Another optimizer cannot go on from the state of this one"
        else:
            advice = f"{fresh}, or go on all the same with --accept-changes"
        raise ValueError(
            f"{folder} holds another run. It differs in:\n  "
            + "\n  ".join(change_lines(changes))
            + f"\nChoose another --name, {advice}"
        )
    return changes


def change_lines(changes: dict[str, str]) -> list[str]:
    """What `check_folder` returns, a line an option."""
    return [f"{name}: {values}" for name, values in changes.items()]


def read_configuration(folder: str | Path) -> dict:
    """What `describe_run` wrote into the recipe.json of a run's folder.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    path = Path(folder) / "recipe.json"
    content = read_json(path)
    parts = {"recipe", "data", "architecture", "backend", "weights_sha256"}
    if not parts <= content.keys() or not isinstance(content["recipe"], dict):
        raise ValueError(
            f"{path} is damaged: it does not describe a run. Choose another --name, or delete the "
            "folder to start anew"
        )
    return content


def weights_digest(path: str | Path) -> str:
    """The sha256 of a checkpoint: of the file, or of the weights in a hub's or a run's folder."""
    return _joined([_file_digest(file) for file in checkpoint_files(path)])


def weights_config_digest(path: str | Path) -> str | None:
    """The sha256 of the hub's configs that decide how weights are read; None without any."""
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    is_read = path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json"))
    configs = [folder / name for name in ("config.json", "preprocessor_config.json")]
    digests = [_file_digest(config) for config in configs if is_read and config.is_file()]
    return _joined(digests) if digests else None


def _joined(digests):
    """One digest for several files, in their order; the file's own for one."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
