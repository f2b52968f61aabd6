"""Data sets of TFDS, read once and kept in a form that needs no TensorFlow."""

from __future__ import annotations

import contextlib
import csv
import difflib
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vit.data.array_files import SPLIT_NAMES, read_arrays, write_arrays
from keras_vit.data.image_set import ImageSet
from keras_vit.data.images import decode_image
from keras_vit.data.manifests import read_manifest
from keras_vit.data.refused_files import raise_refused
from keras_vit.data.vtab import find_task

# Sets whose images all have one size, up to this side, and that take up to this many bytes are
# kept as arrays, others as files.
LARGEST_SIDE_IN_MEMORY = 96
LARGEST_BYTES_IN_MEMORY = 2**31

NETWORK_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class _Reading:
    """What is read of a prepared set, by which features, and what it is called in the cache."""

    name: str
    instructions: dict[str, str]
    image_key: str
    features: Mapping[str, Any]
    label: Callable[[Mapping[str, Any]], int]
    class_names: tuple[str, ...]
    binary_pixels: bool = False


def read_tfds(
    source: str, data_dir: str | Path | None, cache_dir: Path
) -> tuple[dict[str, ImageSet], str, str]:
    """The splits, name and version of a TFDS image classification set, through the cache.

    Args:
        source: Name as TFDS knows it, with `/config` and `:version` where wanted, or
            `vtab/TASK`.
        data_dir: Folder of prepared sets; None: the default of TFDS.
        cache_dir: Where arrays or files are kept. What lies there is used without TFDS.
    """
    name, _, version = source.partition(":")
    task = find_task(name)
    tfds_name = task.tfds if task else name
    version = version or _newest_prepared(tfds_name, data_dir)
    cached = _cached(name, version, cache_dir)
    if cached is not None and data_dir is not None:
        print(f"{source} is read from {cached}; delete that to have it made anew of {data_dir}")
    if cached is None:
        builder = _open_builder(tfds_name, version, data_dir)
        if task is None:
            # Before a long download.
            _classification_keys(builder.info)
        if not builder.is_prepared():
            _prepare(builder)
        reading = _vtab_reading(builder, name, task) if task else _whole_reading(builder)
        cached = _write_cache(builder, reading, cache_dir)
    if cached.is_file():
        return read_arrays(cached)
    class_names = (cached / "class_names.txt").read_text("utf-8").splitlines()
    name, _, version = cached.name.rpartition("-")
    splits, refused = read_manifest(cached / "manifest.csv", class_names, by_index=True)
    if refused:
        raise_refused(cached, refused, splits)
    return splits, name, version


def _newest_prepared(name, data_dir):
    """The newest version that lies prepared in a folder that was named."""
    found = Path(data_dir).expanduser().glob(f"{name}/*/dataset_info.json") if data_dir else ()
    newest = max((path.parent for path in found), key=_version_number, default=None)
    return newest.name if newest else ""


def _cached(name, version, cache_dir):
    """The newest version in the cache, or the one that is asked for.

    A set that is asked for without a config is the one config of it that is there.
    """
    stem, found = name.replace("/", "-"), {}
    for path in cache_dir.glob(f"{stem}-*"):
        known, _, number = path.name.removesuffix(".npz").rpartition("-")
        if (path.is_dir() or path.suffix == ".npz") and version in ("", number):
            found.setdefault(known, []).append(path)
    # All of VTAB's tasks are not configs of one set.
    if stem not in found and len(found) == 1 and "/" not in name and name != "vtab":
        (stem,) = found
        print(f"{name} is read as {stem}, the only config of it in {cache_dir}")
    return max(found.get(stem, ()), key=_version_number, default=None)


def _version_number(path):
    version = path.name.removesuffix(".npz").rpartition("-")[2]
    return [int(part) for part in version.split(".") if part.isdigit()]


def _open_builder(name, version, data_dir):
    source = f"{name}:{version}" if version else name
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{source!r} is no file or folder here, and reading it as a TFDS data set needs "
            f"`pip install 'keras-vit[recipes]'` ({error})"
        ) from error
    try:
        return tfds.builder(source, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        names = [*tfds.list_builders(with_community_datasets=False), "digits"]
        near = difflib.get_close_matches(name.partition("/")[0], names)
        raise ValueError(
            f"{source!r} is no file or folder here, not 'digits' and no TFDS data set. "
            + (
                f"Did you mean {' or '.join(near)}?"
                if near
                else "TFDS lists its own in its catalog"
            )
        ) from None
    except Exception as error:
        raise ValueError(f"TFDS cannot open {source!r}: {error}") from error


def _prepare(builder):
    import tensorflow_datasets as tfds

    name = builder.info.full_name
    print(f"Preparing {name} in {builder.data_dir}", flush=True)
    try:
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is None:
            for url in list(builder.url_infos)[:1]:
                _check_reachable(url)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except Exception as error:
        raise RuntimeError(
            f"{name} is not prepared in {builder.data_dir} and cannot be downloaded: {error}\n"
            f"Run `tfds build {name.rpartition('/')[0]}` on a machine with a network, copy its "
            f"folder ~/tensorflow_datasets/{name} to DIR/{name}, and say data_dir=DIR"
        ) from error


def _check_reachable(url):
    """Raises where there is no network: TFDS would try again for many minutes."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        # Some servers refuse HEAD, but they are there.
        pass
    except OSError as error:
        raise ConnectionError(f"{url} cannot be reached ({error})") from error


def _classification_keys(info):
    """The names of the image and the label in an example."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    if info.supervised_keys:
        candidates = [(key,) for key in info.supervised_keys]
    else:
        features = info.features.items()
        candidates = [[key for key, part in features if type(part) is kind] for kind in kinds]
    keys = [keys[0] for keys in candidates if len(keys) == 1 and isinstance(keys[0], str)]
    if tuple(type(info.features[key]) for key in keys) != kinds:
        raise ValueError(
            f"The TFDS data set {info.full_name} is not for image classification: it has no pair "
            f"of one image and one class label, but {', '.join(info.features)}"
        )
    return keys


def _whole_reading(builder):
    """All labelled images of the splits that a classifier is trained and tested on."""
    image_key, label_key = _classification_keys(builder.info)
    _check_splits(builder, SPLIT_NAMES, any)
    return _Reading(
        builder.info.full_name.rpartition("/")[0],
        {split: split for split in SPLIT_NAMES if split in builder.info.splits},
        image_key,
        {label_key: True},
        lambda example: example[label_key],
        tuple(builder.info.features[label_key].names),
    )


def _vtab_reading(builder, name, task):
    parts = {"train": task.train, "validation": task.validation, "test": task.test}
    _check_splits(builder, {part.split for part in parts.values()}, all)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    for part in parts.values():
        _, end = part.bounds(sizes[part.split])
        if end > sizes[part.split]:
            raise ValueError(
                f"{builder.info.full_name} in {builder.data_dir} has {sizes[part.split]:,} "
                f"{part.split} images. Expected {end:,} or more for {name}: delete it to have it "
                "prepared anew"
            )
    return _Reading(
        name,
        {split: part.instruction(sizes[part.split]) for split, part in parts.items()},
        "image",
        task.features,
        task.label,
        task.class_names or tuple(builder.info.features[task.label_key].names),
        task.binary_pixels,
    )


def _check_splits(builder, names, any_or_all):
    if not any_or_all(name in builder.info.splits for name in names):
        raise ValueError(
            f"{builder.info.full_name} in {builder.data_dir} has the splits "
            f"{', '.join(builder.info.splits) or '(none)'}. "
            f"Expected {any_or_all.__name__} of {', '.join(sorted(names))}"
        )


def _write_cache(builder, reading, cache_dir):
    shape = builder.info.features[reading.image_key].shape
    version = str(builder.info.version)
    path = cache_dir / f"{reading.name.replace('/', '-')}-{version}"
    if path.is_dir():
        return path
    splits = {split: _examples(builder, reading, split) for split in reading.instructions}
    # Pixels of 0 and 1 are not yet those of an image file.
    if not (reading.binary_pixels or _fits_in_memory(builder, reading, shape)):
        _write_files(path, splits, reading.class_names)
        return path
    path = path.with_name(f"{path.name}.npz")
    if path.is_file():
        return path
    read = {split: _as_arrays(examples, shape[:2], reading) for split, examples in splits.items()}
    write_arrays(
        path,
        {split: part for split, part in read.items() if len(part)},
        name=reading.name,
        version=version,
    )
    return path


def _fits_in_memory(builder, reading, shape):
    if None in shape or max(shape[:2]) > LARGEST_SIDE_IN_MEMORY:
        return False
    count = sum(builder.info.splits[part].num_examples for part in reading.instructions.values())
    return count * shape[0] * shape[1] * 3 <= LARGEST_BYTES_IN_MEMORY


def _examples(builder, reading, split) -> Iterator[tuple[bytes, int]]:
    """Encoded images and labels of a split in its own order, without those that have no label."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # Or TensorFlow takes the memory that the backend needs; if it runs already, it has it.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    dataset = builder.as_dataset(
        split=reading.instructions[split],
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding(
            {reading.image_key: True, **reading.features},
            decoders={reading.image_key: tfds.decode.SkipDecoding()},
        ),
    )
    for example in tfds.as_numpy(dataset):
        label = int(reading.label(example))
        if label >= 0:
            yield example[reading.image_key], label


def _as_arrays(examples, image_size, reading):
    # One buffer that grows: a list of images beside their array would take twice the memory.
    pixels, labels = bytearray(), []
    for encoded, label in examples:
        image = decode_image(encoded)
        pixels += (np.minimum(image, 1) * 255 if reading.binary_pixels else image).tobytes()
        labels.append(label)
    images = np.frombuffer(pixels, "uint8").reshape(-1, *image_size, 3)
    return ImageSet(images, np.array(labels, "int32"), reading.class_names)


def _write_files(folder, splits, class_names):
    """Encoded images as files with a manifest; the folder is there whole or not at all."""
    left_over = sorted(map(str, folder.parent.glob(f".{folder.name}.*.partial")))
    if left_over:
        print(f"Left over by a run that was killed, or being written: {', '.join(left_over)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The leading dot keeps it out of the cache's names.
    names = {"prefix": f".{folder.name}.", "suffix": ".partial", "dir": folder.parent}
    with tempfile.TemporaryDirectory(**names) as partial:
        # Not the folder itself, which nobody else may read.
        beside = Path(partial, folder.name)
        beside.mkdir()
        (beside / "class_names.txt").write_text("\n".join(class_names) + "\n", "utf-8")
        with (beside / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
            manifest = csv.writer(file)
            manifest.writerow(["file", "label", "split"])
            for split, examples in splits.items():
                (beside / split).mkdir()
                for number, (encoded, label) in enumerate(examples):
                    suffix = ".jpg" if encoded.startswith(b"\xff\xd8") else ".png"
                    name = f"{split}/{number:07d}{suffix}"
                    (beside / name).write_bytes(encoded)
                    manifest.writerow([name, label, split])
        try:
            beside.rename(folder)
        except OSError:
            # Another process may have made it meanwhile.
            if not folder.is_dir():
                raise
