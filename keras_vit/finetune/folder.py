"""A run's folder: what it says it holds, and whether another run may go on in it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import keras

from keras_vit.checkpoints.reading import checkpoint_files
from keras_vit.data import DataSource
from keras_vit.finetune.recipe import FREE_FIELDS, Recipe, differing_fields, recipe_fields
from keras_vit.finetune.state import read_json
from keras_vit.models import VisionTransformerConfig
from keras_vit.zoo import weights_path


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
    del options["data"]  # The name as given may be a path.
    return {name: value for name, value in {**options, **data}.items() if name not in FREE_FIELDS}


def check_folder(folder: str | Path, configuration: dict) -> None:
    """Raises a ValueError if a folder holds something other than the run described."""
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file. Expected a folder; choose another --name")
    recipe_file = folder / "recipe.json"
    if not recipe_file.exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds files, but no recipe.json: it is not a run. Choose another --name"
            )
        return
    there = read_configuration(folder)
    lines = differing_fields(deciding_options(configuration), deciding_options(there))
    if lines:
        raise ValueError(
            f"{folder} holds another run. It differs in:\n  "
            + "\n  ".join(lines)
            + "\nChoose another --name, or delete the folder to start anew"
        )


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
