"""The images of a run: what is trained on, chosen by, and looked at once."""

from dataclasses import dataclass

import numpy as np

from keras_vit.data import DataSource, ImageSet, LeftOut, join, split_images, subset
from keras_vit.finetune.recipe import Recipe


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: What is trained on.
        validation: What choices are made by; None where nothing is held out.
        test: What is looked at once, at the end.
        left_out: What the data set names and `load_data` was told to leave out.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    left_out: tuple[LeftOut, ...] = ()


def split_source(source: DataSource, recipe: Recipe) -> Splits:
    """Divides a data set as a recipe says: first the subset of what may be trained on, from it the
    validation split.

    A run with `train_images=5000` therefore sees 5,000 labelled images in all, and besides them the
    data set's own validation images where these are held out.

    Raises:
        ValueError: If there are no images to train on or to test, fewer than `train_images` or
            `test_images`, or too few to hold some out.
    """
    train, validation, test = source.train, source.validation, source.test
    if train is None or test is None:
        missing = "train" if train is None else "test"
        raise ValueError(
            f"The data set {source.name!r} has no {missing} images. Expected both train and test "
            "splits, or one set that can be divided"
        )
    if validation is not None and recipe.own_validation != "hold_out":
        if recipe.own_validation == "train":
            train = join(train, validation)
        validation = None
    train = _some(train, "train_images", recipe)
    if validation is None and recipe.validation_fraction:
        train, validation = _hold_out(train, recipe)
    return Splits(train, validation, _some(test, "test_images", recipe), source.left_out)


def _some(images, option, recipe):
    """As many images as an option of the recipe says; all where it says nothing."""
    count = getattr(recipe, option)
    if count is None:
        return images
    if count > len(images):
        raise ValueError(
            f"`{option}` is more than there are. Expected {len(images)} at most, or None for all. "
            f"Received: {option}={count}"
        )
    return subset(images, count, seed=recipe.seed)


def _hold_out(train, recipe):
    """What stays to be trained on, and the images to choose by."""
    asked, classes = recipe.validation_fraction, len(train.class_names)
    if max(asked, classes / len(train)) > 0.5:
        raise ValueError(
            f"{len(train)} training images of {classes} classes are too few to hold some out for "
            "validation: pass --validation-fraction 0"
        )
    # Of a small set at least one image for each class; the only one of a class is trained on.
    divisible = np.count_nonzero(np.bincount(train.labels) > 1)
    fraction = max(asked, divisible / len(train))
    kept, validation = split_images(train, fraction, seed=recipe.seed)
    held_out = f"{len(validation)} of {len(train)} training images are held out for validation"
    if fraction > asked:
        of_several = "" if divisible == classes else " of several images"
        print(
            f"{held_out}, as many as there are classes{of_several}: --validation-fraction "
            f"{asked:g} would be fewer, and 0 holds none out."
        )
    elif len(validation) < round(fraction * len(train)):
        print(f"{held_out}, fewer than --validation-fraction {asked:g}: each class keeps one.")
    return kept, validation
