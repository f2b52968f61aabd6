"""Data sets of TFDS, read once and kept in a form that needs no TensorFlow."""

from __future__ import annotations

import csv
import difflib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from keras_vit.data.array_files import SPLIT_NAMES, read_arrays, write_arrays
from keras_vit.data.image_files import read_manifest
from keras_vit.data.image_set import ImageSet
from keras_vit.data.images import decode_image

# Sets whose images all have one size, up to this side, and that take up to this many bytes are
# kept as arrays, others as files.
LARGEST_SIDE_IN_MEMORY = 96
LARGEST_BYTES_IN_MEMORY = 2**31

NETWORK_TIMEOUT_SECONDS = 20


def read_tfds(
    source: str, data_dir: str | Path | None, cache_dir: Path
) -> tuple[dict[str, ImageSet], str, str]:
    """The splits, name and version of a TFDS image classification set, through the cache.

    Args:
        source: Name as TFDS knows it, with `/config` and `:version` where wanted.
        data_dir: Folder of prepared sets; None: the default of TFDS.
        cache_dir: Where arrays or files are kept. What lies there is used without TFDS.
    """
    source = _pinned(source, data_dir)
    cached = _cached(source, cache_dir)
    if cached is None:
        cached = _write_cache(_prepared_builder(source, data_dir), cache_dir)
    if cached.is_file():
        return read_arrays(cached)
    class_names = (cached / "class_names.txt").read_text("utf-8").splitlines()
    name, _, version = cached.name.rpartition("-")
    return read_manifest(cached / "manifest.csv", class_names), name, version


def _pinned(source, data_dir):
    """With the newest version that lies prepared in a folder that was named."""
    if data_dir is None or ":" in source:
        return source
    found = Path(data_dir).expanduser().glob(f"{source}/*/dataset_info.json")
    newest = max((path.parent for path in found), key=_version_number, default=None)
    return f"{source}:{newest.name}" if newest else source


def _cached(source, cache_dir):
    """The newest version in the cache, or the one that is asked for."""
    name, _, version = source.replace("/", "-").partition(":")
    found = [
        path
        for path in cache_dir.glob(f"{name}-{version or '*'}")
        if path.is_dir() and path.name.rpartition("-")[0] == name
    ] + [
        path
        for path in cache_dir.glob(f"{name}-{version or '*'}.npz")
        if path.stem.rpartition("-")[0] == name
    ]
    return max(found, key=_version_number, default=None)


def _version_number(path):
    version = path.name.removesuffix(".npz").rpartition("-")[2]
    return [int(part) for part in version.split(".") if part.isdigit()]


def _prepared_builder(source, data_dir):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{source!r} is no file or folder here, and reading it as a TFDS data set needs "
            f"`pip install 'keras-vit[recipes]'` ({error})"
        ) from error
    try:
        builder = tfds.builder(source, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        names = [*tfds.list_builders(with_community_datasets=False), "digits"]
        near = difflib.get_close_matches(source.partition("/")[0].partition(":")[0], names)
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
    _classification_keys(builder.info)
    if not builder.is_prepared():
        _prepare(builder)
    return builder


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
            f"Run `tfds build {builder.name}` on a machine with a network, copy its folder "
            f"~/tensorflow_datasets/{name} to DIR/{name}, and say data_dir=DIR"
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


def _write_cache(builder, cache_dir):
    image_key, label_key = _classification_keys(builder.info)
    class_names = tuple(builder.info.features[label_key].names)
    shape = builder.info.features[image_key].shape
    splits = [split for split in SPLIT_NAMES if split in builder.info.splits]
    name, _, version = builder.info.full_name.rpartition("/")
    path = cache_dir / f"{name.replace('/', '-')}-{version}"
    if path.is_dir():
        return path
    in_memory = (
        None not in shape
        and max(shape[:2]) <= LARGEST_SIDE_IN_MEMORY
        and sum(builder.info.splits[split].num_examples for split in splits)
        * (shape[0] * shape[1] * 3)
        <= LARGEST_BYTES_IN_MEMORY
    )
    if not in_memory:
        _write_files(path, {split: _examples(builder, split) for split in splits}, class_names)
        return path
    path = path.with_name(f"{path.name}.npz")
    if path.is_file():
        return path
    read = {split: _as_arrays(_examples(builder, split), class_names) for split in splits}
    write_arrays(
        path, {split: part for split, part in read.items() if len(part)}, name=name, version=version
    )
    return path


def _examples(builder, split) -> Iterator[tuple[bytes, int]]:
    """Encoded images and labels of a split in its own order, without those that have no label."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # Or TensorFlow takes the memory that the backend needs.
        tf.config.set_visible_devices([], "GPU")
    image_key, label_key = _classification_keys(builder.info)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding(
            {image_key: True, label_key: True},
            decoders={image_key: tfds.decode.SkipDecoding()},
        ),
    )
    for example in tfds.as_numpy(dataset):
        if example[label_key] >= 0:
            yield example[image_key], int(example[label_key])


def _as_arrays(examples, class_names):
    pairs = [(decode_image(encoded), label) for encoded, label in examples]
    images = [image for image, _ in pairs] or np.zeros((0, 1, 1, 3), "uint8")
    return ImageSet(np.stack(images), np.array([label for _, label in pairs], "int32"), class_names)


def _write_files(folder, splits, class_names):
    """Encoded images as files with a manifest; the folder is there whole or not at all."""
    # The leading dot keeps what an interrupted run leaves out of the cache's names.
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        beside.mkdir(parents=True)
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
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
