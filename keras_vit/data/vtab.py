"""The 19 tasks of VTAB-1k: which images of which TFDS set, and what their label is.

The benchmark is Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark" (arXiv:1910.04867). Splits and labels are those of its code,
https://github.com/google-research/task_adaptation at commit d7630d3, whose splits `train800`,
`val200` and `test` are called `train`, `validation` and `test` here; `train800val200`, on which
the reported figures are trained, is the first two joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_vit.layers.nearest import nearest_names

PREFIX = "vtab/"


@dataclass(frozen=True)
class Part:
    """Some examples of a TFDS split, in the order in which TFDS stores them.

    Args:
        split: The split of TFDS.
        after: Percentages of the split, each rounded down to whole examples, that lie before.
        count: Number of examples; None: all that are left.

    Example:

    >>> Part("train", after=(60, 20)).instruction(27_001)
    'train[21600:27001]'
    >>> Part("train", after=(90,), count=200).instruction(73_257)
    'train[65931:66131]'
    """

    split: str
    after: tuple[int, ...] = ()
    count: int | None = None

    def bounds(self, size: int) -> tuple[int, int]:
        """The first example and the end, in a split of `size` examples."""
        start = sum(size * percent // 100 for percent in self.after)
        return start, size if self.count is None else start + self.count

    def instruction(self, size: int) -> str:
        """The slice as TFDS writes it, for a split of `size` examples."""
        start, end = self.bounds(size)
        return f"{self.split}[{start}:{end}]"


def _label_feature(example):
    return example["label"]


@dataclass(frozen=True)
class VtabTask:
    """One task of the benchmark.

    Args:
        tfds: The TFDS set, with its config.
        validation: The 200 images to choose by.
        test: The images of the final figure.
        train: The 800 images to train on.
        features: What is read beside the image, as `tfds.decode.PartialDecoding` takes it.
        label: From these features of one example to its class index.
        label_key: The class label whose names are the task's; None where `class_names` are.
        class_names: The names of classes that no feature names.
        binary_pixels: Whether pixels are stored as 0 and 1 instead of 0 and 255.
    """

    tfds: str
    validation: Part = Part("train", after=(90,), count=200)
    test: Part = Part("test")
    train: Part = Part("train", count=800)
    features: Mapping[str, Any] = field(default_factory=lambda: {"label": True})
    label: Callable[[Mapping[str, Any]], int] = _label_feature
    label_key: str | None = "label"
    class_names: tuple[str, ...] | None = None
    binary_pixels: bool = False


def find_task(name: str) -> VtabTask | None:
    """The task of a name such as `"vtab/dtd"`; None for a name without that prefix.

    Raises:
        ValueError: If there is no such task.

    Example:

    >>> find_task("vtab/dtd").tfds, find_task("cifar10")
    ('dtd', None)
    """
    if not name.startswith(PREFIX):
        return None
    task = name.removeprefix(PREFIX)
    if task not in VTAB_TASKS:
        raise ValueError(f"{name!r} is no task of VTAB-1k. {nearest_names(task, VTAB_TASKS)}")
    return VTAB_TASKS[task]


def _number_above(thresholds, value):
    """How many thresholds the value exceeds; one that equals it is not exceeded."""
    return int(np.searchsorted(thresholds, value, side="left"))


def _object_count(example):
    # Every scene of CLEVR has 3 to 10 objects.
    return len(example["objects"]["size"]) - 3


def _closest_object(example):
    # Pixel coordinates are x, y and the distance from the camera.
    return _number_above((8.0, 8.5, 9.0, 9.5, 10.0), min(example["objects"]["pixel_coords"][:, 2]))


def _closest_vehicle(example):
    # The first three types are car, van and truck; location is x, y, z in metres from the camera.
    depth = example["objects"]["location"][:, 2]
    vehicles = depth[example["objects"]["type"] < 3]
    return _number_above((8.0, 20.0), min(vehicles)) if len(vehicles) else 3


def _sixteenths(key, count):
    """A task of dSprites: one of `count` values of an attribute, in 16 groups of neighbours."""
    groups = [[value for value in range(count) if value * 16 // count == i] for i in range(16)]
    return VtabTask(
        "dsprites",
        validation=Part("train", after=(80,), count=200),
        test=Part("train", after=(80, 10)),
        features={key: True},
        label=lambda example: example[key] * 16 // count,
        label_key=None,
        class_names=tuple(f"{group[0]} to {group[-1]}" for group in groups),
        binary_pixels=True,
    )


def _smallnorb(key):
    return VtabTask(
        "smallnorb",
        validation=Part("test", count=200),
        test=Part("test", after=(50,)),
        features={key: True},
        label=lambda example: example[key],
        label_key=key,
    )


def _clevr(feature, label, class_names):
    return VtabTask(
        "clevr",
        # The published test images of CLEVR have no annotations.
        test=Part("validation"),
        features={"objects": {feature: True}},
        label=label,
        label_key=None,
        class_names=class_names,
    )


_VALIDATION = Part("validation", count=200)
# Where the set is one split: 60, 20 and 20 per cent of it.
_AFTER_60 = Part("train", after=(60,), count=200)
_LAST_20 = Part("train", after=(60, 20))

# In the order of the paper's table: natural, specialized, structured.
VTAB_TASKS: dict[str, VtabTask] = {
    "caltech101": VtabTask("caltech101"),
    "cifar100": VtabTask("cifar100"),
    "dtd": VtabTask("dtd", _VALIDATION),
    "flowers102": VtabTask("oxford_flowers102", _VALIDATION),
    "pets": VtabTask("oxford_iiit_pet", Part("train", after=(80,), count=200)),
    "sun397": VtabTask("sun397/tfds", _VALIDATION),
    "svhn": VtabTask("svhn_cropped"),
    "eurosat": VtabTask("eurosat/rgb", _AFTER_60, _LAST_20),
    "resisc45": VtabTask("resisc45", _AFTER_60, _LAST_20),
    "patch_camelyon": VtabTask("patch_camelyon", _VALIDATION),
    "diabetic_retinopathy": VtabTask("diabetic_retinopathy_detection/btgraham-300", _VALIDATION),
    "clevr_count": _clevr("size", _object_count, tuple(map(str, range(3, 11)))),
    "clevr_distance": _clevr(
        "pixel_coords",
        _closest_object,
        ("up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10"),
    ),
    "dmlab": VtabTask("dmlab", _VALIDATION),
    "dsprites_location": _sixteenths("label_x_position", 32),
    "dsprites_orientation": _sixteenths("label_orientation", 40),
    "kitti_distance": VtabTask(
        "kitti",
        _VALIDATION,
        features={"objects": {"type": True, "location": True}},
        label=_closest_vehicle,
        label_key=None,
        class_names=("up to 8 m", "8 to 20 m", "over 20 m", "no vehicle"),
    ),
    "smallnorb_azimuth": _smallnorb("label_azimuth"),
    "smallnorb_elevation": _smallnorb("label_elevation"),
}
