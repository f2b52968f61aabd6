"""Image folders, and whether their files can be decoded."""

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_vit.data.class_names import index_of_names
from keras_vit.data.image_set import SPLIT_OF, ImageSet, files_of
from keras_vit.data.images import FORMATS, undecodable
from keras_vit.data.refused_files import leads_outside, printable, refused_files

SUFFIXES = tuple(sorted(suffix for suffixes in FORMATS.values() for suffix in suffixes))
MOST_FILES_NAMED = 20
MOST_KINDS_NAMED = 5
# More than one, so that a large set does not become as many tasks as it has images.
FILES_PER_TASK = 16
# Words that tell of a split where a folder's name has other words too, or an unusual one.
_SPLIT_WORD = re.compile(
    "(train|training|trn|test|testing|tst|val|valid|validate|validation|dev|development|eval|"
    "evaluation|holdout)(s|set|sets|data|images)?"
)


def read_folder(
    folder: Path, class_names: Sequence[str] | None = None
) -> tuple[dict[str, ImageSet], dict[Path, str]]:
    """Image files in one folder a class, or in such folders in `train`, `val` and `test`.

    `train` may be called `training`, `val` `validation` or `valid`, and `test` `testing`; upper and
    lower case are the same. Hidden folders and `__MACOSX` are not read. Links may lead to other
    places in the folder. A warning counts the files of class folders that are passed over, as their
    names do not end as those of images, and one the images that lie beside the class folders.

    Args:
        folder: The folder.
        class_names: Names in the order of their index; None: the folders' names, sorted. With
            those of ImageNet, folders may be called by their WordNet ids.

    Returns:
        The splits by name, one called `""` where the folder is not divided; and why each file that
        leads outside of the folder, or is none, is refused, and each link to a folder in a class.

    Raises:
        ValueError: For a folder without images or a class without them, or a class that is not
            among `class_names` or not in `train`, or for other folders beside `train`, or for
            splits by names that are not known, as `train_images`, or for a class or a split that is
            a link to a place outside of the folder.
    """
    folders = _subfolders(folder, folder)
    if not folders:
        raise ValueError(
            f"{folder} has no folders in it. Expected one folder of images a class, or train/ and "
            "test/ with those in them; for images in one flat folder write a .csv file with the "
            "columns file,label"
        )
    parts = _splits_of(folder, folders)
    if not parts:
        _check_are_classes(folder, folders)
        parts = {"": folder}
    others: list[Path] = []
    files = {split: _files_by_class(folder, path, others) for split, path in sorted(parts.items())}
    if others:
        _warn_of_other_files(folder, others)
    loose = [path for part in parts.values() for path in _loose_images(part)]
    if loose:
        _warn_of_loose_images(folder, loose)
    # Where there is train/, it says what the classes are.
    first = files.get("train") or next(iter(files.values()))
    names = tuple(class_names or sorted(first))
    splits = {
        split: _from_classes(parts[split], by_class, names) for split, by_class in files.items()
    }
    classes = [path for by_class in files.values() for path in by_class.values()]
    refused = refused_files(folder, (file for paths in classes for file in paths))
    return splits, refused


def _splits_of(folder, folders):
    """The folder of each split, or none where the folders are classes."""
    parts: dict[str, Path] = {}
    others = []
    for path in folders:
        split = SPLIT_OF.get(path.name.lower())
        if split is None:
            others.append(f"{path.name}/")
        elif split in parts:
            raise ValueError(
                f"{folder} has both {parts[split].name}/ and {path.name}/. Expected one of them"
            )
        else:
            parts[split] = path
    if not others:
        return parts
    # A lone test/ or valid/ among other folders may be a class.
    if "train" in parts or len(parts) > 1:
        more = f", … ({len(others)} in all)" if len(others) > 5 else ""
        raise ValueError(
            f"{folder} is divided into {', '.join(f'{path.name}/' for path in parts.values())}, "
            f"but beside them has {', '.join(others[:5])}{more}. Expected no folders but train/ "
            "(or training/), val/ (or valid/, validation/) and test/ (or testing/): rename the "
            "others or move them away"
        )
    return {}


def _check_are_classes(folder, folders):
    """Refuses splits by names that are not known, and warns of what may be some.

    Splits have folders of the same names in them and no images of their own. So may classes have
    it, by year for example: the names of the folders decide.
    """
    within = {path: names for path in folders if (names := _folders_within(path))}
    splits = [path for path in within if _split_word(path.name)]
    largest = max((within[path] for path in splits), key=len, default=frozenset())
    alike = [path for path in splits if 2 * len(within[path] & largest) > len(within[path])]
    # One word in all names, as in test_positive/ and test_negative/, tells no splits apart.
    if len({_split_word(path.name) for path in alike}) > 1 and len(largest) > 1:
        raise ValueError(
            f"{_alike(folder, alike, largest)} They look like splits and not like classes. "
            "Expected them to be called train/, val/ and test/, or one folder of images a class, "
            "or a .csv file with the columns file,label,split"
        )
    by_names = defaultdict(list)
    for path, names in within.items():
        by_names[names].append(path)
    names, alike = max(by_names.items(), key=lambda item: len(item[1]), default=(frozenset(), []))
    if len(within) == len(folders) and len(alike) > 1 and len(names) > 1:
        warnings.warn(
            f"{_alike(folder, alike, names)} They are taken for classes. Where they are splits, "
            "call them train/, val/ and test/; where the folders in them are the classes, move "
            "those into one folder",
            stacklevel=5,
        )


def _alike(folder, paths, names):
    listed = [f"{printable(path.name)}/" for path in paths]
    inner = [f"{printable(name)}/" for name in sorted(names)]
    return (
        f"{folder}: {_first(listed)} have no images of their own, and folders of the same names in "
        f"them: {_first(inner)}."
    )


def _first(names):
    more = f", … ({len(names)} in all)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _split_word(name):
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
    matches = (_SPLIT_WORD.fullmatch(word.lower()) for word in words)
    return next((match[1] for match in matches if match), None)


def _folders_within(folder):
    """The names of the folders in one without images; where it is one alone, of those in that."""
    found = frozenset()
    while True:
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    return found
        found = frozenset(names) or found
        if len(names) != 1:
            return found
        folder = folder / names[0]


def _subfolders(root, folder):
    """The folders in one, none of which may lead outside of the data set."""
    paths = sorted(path for path in folder.iterdir() if not _is_ignored(path.name))
    for path in paths:
        if path.is_symlink() and not path.suffix and not path.exists():
            raise ValueError(f"{path} is a link to nothing: {path.readlink()}. Take it away")
        outside = path.is_dir() and leads_outside(root, path)
        if outside:
            raise ValueError(
                f"{printable(str(path))} is not read: {outside}. Expected folders in the folder "
                "itself; for images in several places write a .csv file with the columns "
                "file,label in a folder that all of them are in"
            )
    return [path for path in paths if path.is_dir()]


def _is_ignored(name):
    """Hidden, or what macOS adds to its .zip files."""
    return name.startswith(".") or name == "__MACOSX"


def _files_by_class(root, folder, others):
    files = {path.name: sorted(_image_files(path, others)) for path in _subfolders(root, folder)}
    empty = [name for name, paths in files.items() if not paths]
    loose = [] if files else _loose_images(folder)
    if loose:
        raise ValueError(
            f"{folder} has {len(loose):,} images in it, which lie in no class folder, the first is "
            f"{printable(loose[0].name)}. Expected one folder of images a class in it: move them "
            "into such folders, or write a .csv file with the columns file,label,split; where "
            f"their classes are not known, move {folder.name}/ away"
        )
    if empty or not files:
        raise ValueError(
            f"{folder / empty[0] if empty else folder} has no images in it. Expected one folder a "
            f"class with files that end in {', '.join(SUFFIXES)}"
        )
    return files


def _image_files(folder, others):
    """What ends as images do, at any depth, and links to folders, which are not followed.

    The other files are added to a list.
    """

    def fail(error):
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_ignored(name)]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not _is_ignored(name):
                yield Path(place, name)
            elif not _is_ignored(name):
                others.append(Path(place, name))
        for name in links:
            yield Path(place, name)


def _loose_images(folder):
    """Images beside the class folders, by their names."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES) and not _is_ignored(path.name) and not path.is_dir()
    )


def _warn_of_loose_images(folder, loose):
    warnings.warn(
        f"{folder}: {len(loose):,} images beside the folders of classes are passed over, the first "
        f"is {printable(str(loose[0].relative_to(folder)))}. Expected each in the folder of its "
        "class: move them there, or away",
        stacklevel=5,
    )


def _warn_of_other_files(folder, others):
    counts = Counter(path.suffix.lower() or "without a suffix" for path in others)
    kinds = [f"{count:,} {printable(suffix)}" for suffix, count in counts.most_common()]
    more = ["…"] if len(kinds) > MOST_KINDS_NAMED else []
    warnings.warn(
        f"{folder}: {len(others):,} files in the folders of classes are passed over, as their "
        f"names do not end as those of images: {', '.join(kinds[:MOST_KINDS_NAMED] + more)}. "
        f"Expected {', '.join(SUFFIXES)}; convert or rename those that are images",
        stacklevel=5,
    )


def _from_classes(folder, by_class, class_names):
    index = index_of_names(folder, by_class, class_names)
    pairs = [(path, index[name]) for name, paths in by_class.items() for path in paths]
    paths, labels = zip(*pairs, strict=True)
    return ImageSet(paths, np.array(labels, "int32"), class_names)


def check_images(*image_sets: ImageSet, progress: Callable[[int, int], None] | None = None) -> None:
    """Decodes every image on disk once, so that a damaged file is found before long work.

    Images in memory pass at once.

    Args:
        image_sets: The sets whose files are read; a file in several of them is read once.
        progress: Called as `progress(done, total)` after every few images.

    Raises:
        ValueError: If `decode_image` would refuse files; the message counts them and names the
            first 20 with the reason.

    Example:

    >>> images = np.zeros((4, 8, 8, 3), "uint8")
    >>> check_images(ImageSet(images, np.array([0, 1, 0, 1], "int32"), ("cat", "dog")))
    """
    paths = files_of(image_sets)
    reasons = undecodable_files(paths, progress=progress)
    if reasons:
        refused = [f"{printable(str(path))}: {printable(why)}" for path, why in reasons.items()]
        more = ["…"] if len(refused) > MOST_FILES_NAMED else []
        raise ValueError(
            f"{len(refused)} of {len(paths)} images cannot be decoded. Expected complete BMP, GIF, "
            "JPEG, PNG, PPM, TIFF or WebP files; replace them, or leave them out with "
            "damaged_images='skip':\n" + "\n".join(refused[:MOST_FILES_NAMED] + more)
        )


def undecodable_files(
    files: Iterable[Path], *, progress: Callable[[int, int], None] | None = None
) -> dict[Path, str]:
    """The files that `decode_image` would refuse, and why; each is read once.

    Args:
        files: The files.
        progress: Called as `progress(done, total)` after every few files.
    """
    paths = list(dict.fromkeys(files))
    tasks = [paths[i : i + FILES_PER_TASK] for i in range(0, len(paths), FILES_PER_TASK)]
    executor = ThreadPoolExecutor(min(os.cpu_count() or 1, 8), thread_name_prefix="check_images")
    refused: dict[Path, str] = {}
    done = 0
    try:
        for task, reasons in zip(tasks, executor.map(_undecodable, tasks), strict=True):
            refused |= {path: why for path, why in zip(task, reasons, strict=True) if why}
            done += len(task)
            if progress:
                progress(done, len(paths))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return refused


def _undecodable(paths):
    return [undecodable(path) for path in paths]
