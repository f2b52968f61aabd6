"""Features of images, computed once and kept, for training the head alone."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vit.checkpoints.replaced_file import replaced_file
from keras_vit.data import Augmentation, ImageSet, TrainingBatches
from keras_vit.finetune.evaluation import predict_outputs
from keras_vit.finetune.log import ProgressLine


def cached_features(
    backbone: keras.Model, image_set: ImageSet, *, batch_size: int, folder: str | Path
) -> list[np.ndarray]:
    """The features of images, prepared as for evaluation, from a file where it was made before.

    The file is named by what decides its content: the backbone's weights and graph, and the
    images. So runs that differ in how the head is trained share it.

    Args:
        backbone: A model from raw pixels to a list of features, see `split_at_head`.
        image_set: The images.
        batch_size: Images a batch.
        folder: Folder of the files; made when absent.

    Returns:
        float32 arrays `(count, width)` in the set's order, one for each output of the backbone.
    """
    path = Path(folder) / f"{_digest(backbone, image_set)}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[f"features_{i}"] for i in range(len(arrays.files))]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged ({error}); the features are computed again.")
    line = ProgressLine(len(image_set), " images, features")
    outputs = predict_outputs(
        backbone, image_set, batch_size=batch_size, progress=lambda done: line.show(done, "")
    )
    line.end()
    path.parent.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = {f"features_{i}": array for i, array in enumerate(outputs)}
    with replaced_file(path, shared=True) as beside:
        np.savez(beside, **named)
    return outputs


def _digest(backbone, image_set):
    digest = hashlib.sha256(backbone.to_json().encode())
    for weight in backbone.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    if isinstance(image_set.images, np.ndarray):
        digest.update(np.ascontiguousarray(image_set.images).data)
    else:
        for path in image_set.images:
            facts = path.stat()
            digest.update(f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


class FeatureBatches:
    """The endless stream of training batches of features; each is a function of its index.

    Args:
        features: Arrays `(count, width)`, one an input of the classifier.
        image_set: The images that they are of; gives the labels.
        batch_size: Images a batch.
        seed: Seed of the order, which is that of `TrainingBatches`.
    """

    def __init__(
        self, features: Sequence[np.ndarray], image_set: ImageSet, *, batch_size: int, seed: int
    ):
        self._features = list(features)
        self._order = TrainingBatches(
            image_set, batch_size=batch_size, seed=seed, augmentation=Augmentation(1)
        )

    def __getitem__(self, step: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Features `(batch, width)` and int32 labels `(batch,)` of a step."""
        indices = self._order.indices(step)
        labels = self._order.image_set.labels[indices]
        return [features[indices] for features in self._features], labels
