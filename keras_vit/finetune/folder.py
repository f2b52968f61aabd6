"""A run's folder: what it says it holds, and whether another run may go on in it."""

import dataclasses
import hashlib
import json
from pathlib import Path

from keras_vit.data import DataSource
from keras_vit.finetune.recipe import FREE_FIELDS, Recipe, differing_fields, recipe_fields
from keras_vit.models import VisionTransformerConfig


def describe_run(
    recipe: Recipe, source: DataSource, architecture: VisionTransformerConfig | None = None
) -> dict:
    """What recipe.json holds: everything that decides what a run computes, as plain values.

    Args:
        recipe: The options; `precision` resolved.
        source: The data set.
        architecture: The architecture, where `recipe.model` does not name it.
    """
    configuration = {
        "recipe": recipe_fields(recipe),
        "architecture": dataclasses.asdict(architecture) if architecture else None,
        "data": {
            "name": source.name,
            "version": source.version,
            "digest": source.digest,
            "classes": len(source.class_names),
        },
        "weights_sha256": weights_digest(recipe.weights) if recipe.weights else None,
    }
    # Through JSON, so that it equals what is read back: tuples become lists.
    return json.loads(json.dumps(configuration))


def deciding_options(configuration: dict) -> dict:
    """The options that no two sessions of a run may differ in, on one level.

    Files count by their content, not by their path.
    """
    options = {**configuration["recipe"], "weights": configuration["weights_sha256"]}
    options["architecture"] = configuration["architecture"]
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
    there = json.loads(recipe_file.read_text())
    lines = differing_fields(deciding_options(configuration), deciding_options(there))
    if lines:
        raise ValueError(
            f"{folder} holds another run. It differs in:\n  "
            + "\n  ".join(lines)
            + "\nChoose another --name, or delete the folder to start anew"
        )


def weights_digest(path: str | Path) -> str:
    """The sha256 of a checkpoint: of the file, or of the weights in a hub folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no checkpoint at {path}. Expected a .npz, .safetensors or .keras file, or "
            "a folder with a model.safetensors in it"
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
