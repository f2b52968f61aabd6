"""The data set of a run: what of it is left out, and that it stays so when the run goes on."""

import dataclasses
from pathlib import Path

from keras_vit.data import DataSource, LeftOut, load_data
from keras_vit.finetune.log import ProgressLine
from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.state import read_json, write_json

MOST_PRINTED = 20


def load_source(recipe: Recipe, folder: str | Path) -> DataSource:
    """The data set that a recipe names, without the images that an earlier session left out.

    Args:
        recipe: The options; `damaged_images` says whether images may be left out.
        folder: The run's folder; it may be absent.

    Raises:
        ValueError: As `load_data` does, or if left_out.json in the folder is damaged.
    """
    known = read_left_out(folder) if recipe.damaged_images == "skip" else None
    line = None

    def show(done, total):
        nonlocal line
        line = line or ProgressLine(total, " files looked at")
        line.show(done, "")

    source = load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        damaged_images=recipe.damaged_images,
        left_out=known,
        progress=show,
    )
    if line is not None:
        line.end()
    gone = sorted({item.file for item in known or ()} - {item.file for item in source.left_out})
    if gone:
        print(
            f"{Path(folder) / 'left_out.json'} lists {len(gone)} images that {recipe.data} does "
            f"not have any more, the first is {gone[0]}. The run goes on without them, as before."
        )
    print_left_out(source)
    return source


def print_left_out(source: DataSource) -> None:
    """Prints how many images were left out, and the first 20 with the reason."""
    if not source.left_out:
        return
    splits = (source.train, source.validation, source.test)
    used = sum(len(split) for split in splits if split is not None)
    print(f"{len(source.left_out):,} images are left out, {used:,} are used:")
    for item in source.left_out[:MOST_PRINTED]:
        print(f"  {item.file}: {item.reason}")
    if len(source.left_out) > MOST_PRINTED:
        print("  …")


def write_left_out(folder: str | Path, recipe: Recipe, source: DataSource) -> None:
    """Writes left_out.json into a run's folder, once, where a recipe allows to leave images out."""
    path = Path(folder) / "left_out.json"
    if recipe.damaged_images == "skip" and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"left_out": [dataclasses.asdict(item) for item in source.left_out]})


def read_left_out(folder: str | Path) -> tuple[LeftOut, ...] | None:
    """What `write_left_out` wrote; None where there is no such file.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    path = Path(folder) / "left_out.json"
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return tuple(LeftOut(**item) for item in content["left_out"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it holds no list of images ({error!r})") from error
