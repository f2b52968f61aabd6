"""Folders of versions: the next free number, and a version that is there whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_vit.checkpoints.replaced_file import to_disk
from keras_vit.zoo.file_lock import file_lock


def version_folder(path: Path, version: int | None, *, is_saved_model: bool) -> Path:
    """The folder of a new version, `path/version`; nothing is written.

    Args:
        path: Folder of the exported model.
        version: Positive number of the version. None takes the one after the highest present.
        is_saved_model: Whether the version is for a model server, or for another engine.

    Raises:
        ValueError: If the version is no positive number.
        FileExistsError: If the version exists, or `path` is no folder, a version itself, or the
            folder of versions that are for a model server where this one is not, or the other way
            round.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file. Give a folder to export to.")
    if (path / "saved_model.pb").exists():
        raise FileExistsError(
            f"{path} is an exported version itself. Give the folder that holds the versions, such "
            f"as {path.parent}."
        )
    _check_are_of_one_kind(path, _versions(path), is_saved_model)
    if version is None:
        version = _next_number(path)
    # TensorFlow Serving reads the version off the folder's name.
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"`version` must be a positive integer. Received: version={version!r}")
    destination = path / str(version)
    if destination.exists():
        raise _taken(destination)
    return destination


def _versions(path):
    return [entry for entry in path.glob("*") if entry.name.isdecimal()]


def _next_number(path):
    return max((int(entry.name) for entry in _versions(path)), default=0) + 1


def _taken(destination):
    return FileExistsError(
        f"{destination} exists, and a version is never overwritten. Give another `version`, "
        "or None for the next one."
    )


def _check_are_of_one_kind(path, versions, is_saved_model):
    """Raises where a model server would find versions that it cannot load."""
    if is_saved_model:
        # The files of all other engines are called so.
        others = [version for version in versions if not (version / "saved_model.pb").exists()]
        found = [file for version in others for file in version.glob("model.*")]
        this, those = "a SavedModel", "another engine"
    else:
        found = [file for version in versions for file in version.glob("saved_model.pb")]
        found += path.glob("models.config")
        this, those = "a model of another engine", "a model server"
    if found:
        names = ", ".join(sorted(str(file.relative_to(path)) for file in found))
        raise FileExistsError(
            f"{path} is for {those}: it holds {names}. A model server takes every version in a "
            f"folder for a SavedModel. Give {this} a folder of its own."
        )


@contextlib.contextmanager
def written_beside(destination: Path) -> Iterator[Path]:
    """An empty folder beside `destination` to write to, until `put_in_place` renames it.

    The folder that contains it is made where needed. When the block raises, what was written is
    removed, the folders made for it too. What a killed process left is removed before.
    """
    folder = destination.parent
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    # A server that watches the folder looks only at names that are numbers.
    partial = folder / f".{destination.name}.partial-{uuid.uuid4().hex}"
    try:
        _remove_left_over(folder)
        # Held before there is anything to remove.
        with _lock(partial):
            partial.mkdir()
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in created:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def put_in_place(
    partial: Path, destination: Path, renumber: Callable[[int], object] | None = None
) -> Path:
    """Renames a folder to that of its version, once it is on the disk.

    Args:
        partial: The folder, of `written_beside`.
        destination: The folder of the version.
        renumber: Where another export has taken the number meanwhile, called with the next one,
            to write it into the folder. None: that is an error.

    Returns:
        The folder of the version, which has another number where it was renumbered.

    Raises:
        FileExistsError: If the number is taken and there is no `renumber`.
    """
    while True:
        for path in (*partial.rglob("*"), partial):
            to_disk(path)
        try:
            # Never takes the place of a folder with content.
            os.rename(partial, destination)
        except OSError:
            if not destination.exists():
                raise
            if renumber is None:
                raise _taken(destination) from None
        else:
            to_disk(destination.parent)
            return destination
        number = _next_number(destination.parent)
        renumber(number)
        destination = destination.with_name(str(number))


def _remove_left_over(folder):
    """Removes what was being written by processes that are no more."""
    for partial in [path for path in folder.glob(".*.partial-*") if path.is_dir()]:
        with contextlib.suppress(BlockingIOError), _lock(partial):
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(partial):
    """Holds the lock beside a folder that is being written, and removes it."""
    path = partial.with_name(f"{partial.name}.lock")
    try:
        with file_lock(path, wait=False):
            yield
    except BlockingIOError:  # It is another's.
        raise
    except BaseException:  # On a full disk it is there, but could not be written to.
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)
