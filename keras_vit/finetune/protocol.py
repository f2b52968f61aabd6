"""What a fine-tuning protocol is: a recipe, and what changes with data, model and budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from keras_vit.finetune.recipe import Recipe

BUDGETS = ("quick", "standard", "full")

# arXiv 1910.04867, table 1; the names that `load_data` knows, without "vtab/".
VTAB_TASKS = (
    *("caltech101", "cifar100", "dtd", "flowers102", "pets", "svhn", "sun397"),
    *("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    *("clevr_count", "clevr_distance", "dmlab", "kitti_distance"),
    *("dsprites_location", "dsprites_orientation", "smallnorb_azimuth", "smallnorb_elevation"),
)

# The data sets that a protocol has values of its own for; all others get its general ones.
DATA_SETS = (
    *("cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102", "imagenet2012"),
    *(f"vtab/{task}" for task in VTAB_TASKS),
    "digits",
)

# Patterns of data sets and models.
CIFAR = ("cifar10", "cifar100")
PETS_AND_FLOWERS = ("oxford_iiit_pet", "oxford_flowers102")
IMAGENET = ("imagenet2012",)
VTAB = ("vtab/*",)
# Whose labels a flip or a crop would change.
VTAB_NO_FLIP = ("vtab/dsprites_location", "vtab/dsprites_orientation", "vtab/smallnorb_azimuth")
VTAB_NO_CROP = ("vtab/clevr_*", "vtab/dmlab", "vtab/kitti_distance", "vtab/dsprites_location")
# Of 50,000 images and more; data of unknown size counts as small.
LARGE = (*CIFAR, *IMAGENET)

RATIO = "ours: 1/20 (quick) and 1/10 (standard) of the paper's, as for CIFAR"


@dataclass(frozen=True)
class Change:
    """Options that a protocol sets otherwise for some data, models or budgets.

    Example:

    >>> Change({"steps": 20000}, "table 4", data=("imagenet2012",)).applies(
    ...     "cifar10", model=None, budget="full"
    ... )
    False
    """

    values: Mapping[str, Any]
    """Options of `Recipe` by name."""

    source: str
    """Where the values come from."""

    data: tuple[str, ...] = ("*",)
    """Patterns of the data sets it is for, with * and ?."""

    model: tuple[str, ...] = ("*",)
    """Patterns of the models it is for."""

    budget: tuple[str, ...] = ("*",)
    """The budgets it is for."""

    adapt: tuple[str, ...] = ("*",)
    """The ways to adapt that it is for."""

    above: int = 0
    """It is for image sizes larger than this, in pixels."""

    learning_rates: tuple[float, ...] | None = None
    """The grid that the paper tries; None: the protocol's."""

    def applies(
        self,
        data: str,
        *,
        model: str | None,
        budget: str,
        adapt: str = "full",
        image_size: int = 224,
    ) -> bool:
        """Whether it is for this data set, model (None: an unnamed one), budget, adaptation and
        image size."""
        pairs = (
            (self.data, data),
            (self.model, model or ""),
            (self.budget, budget),
            (self.adapt, adapt),
        )
        return image_size > self.above and all(
            any(fnmatchcase(name, pattern) for pattern in patterns) for patterns, name in pairs
        )


class Published(NamedTuple):
    """An accuracy that the authors of a protocol report."""

    data: str
    model: str
    """The model, with what it was pre-trained on."""

    image_size: int
    accuracy: float
    """Per cent of the test images, top 1."""

    source: str
    budget: str = "full"


@dataclass(frozen=True)
class Protocol:
    """How a paper fine-tunes: one recipe, what changes with data, model and budget, and results."""

    name: str

    title: str
    """What it is, in a few words."""

    source: str
    """Paper, table and code that the recipe was read from."""

    recipe: Recipe
    """The general values, for any data."""

    changes: tuple[Change, ...] = ()
    """What differs for some data, models or budgets; applied in this order."""

    learning_rates: tuple[float, ...] = ()
    """The grid of learning rates that the paper tries; (): one value."""

    published: tuple[Published, ...] = ()

    differences: tuple[str, ...] = ()
    """Where keras_vit does something else than the authors' code."""


def steps(number, warmup):
    """A schedule in optimizer steps."""
    return {"steps": number, "warmup_steps": warmup}


def epochs(number, warmup):
    """A schedule in epochs."""
    return {"epochs": number, "warmup_epochs": warmup}


def schedules(data, **budgets):
    """One change a budget, each given as its values and their source."""
    return tuple(
        Change(values, source, data=data, budget=(budget,))
        for budget, (values, source) in budgets.items()
    )


# For protocols that are published; others choose on 200 of the 1,000.
VTAB_SPLITS = Change(
    {"own_validation": "train", "validation_fraction": 0.0},
    "arXiv 1910.04867: choices are made on 200 of the 1,000, the final run sees them all",
    data=VTAB,
)


def label_geometry(image_size):
    """No flip and no crop where they would change the label."""
    source = "arXiv 1912.11370 (BiT), supplement F"
    whole_image = {
        "crop": "squash",
        "resize_size": image_size,
        "crop_min_area": 0.05,
        "evaluation_crop": "squash",
        "evaluation_crop_fraction": 1.0,
    }
    return (
        Change({"horizontal_flip": False}, source, data=VTAB_NO_FLIP),
        Change(whole_image, source, data=VTAB_NO_CROP),
        Change({"horizontal_flip": False}, "ours: a mirrored digit is none", data=("digits",)),
    )
