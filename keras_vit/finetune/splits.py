"""The images of a run: what is trained on, chosen by, and looked at once."""

from dataclasses import dataclass

import numpy as np

from keras_vit.data import DataSource, ImageSet, LeftOut, join, split_images, subset
from keras_vit.data.checks import classes_without, warn_of_missing_classes
from keras_vit.data.image_set import different_labels
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

    A warning tells of classes of which `train_images` or `test_images` take all images away.

    Raises:
        ValueError: If there are no images to train on or to test, fewer than `train_images` or
            `test_images`, or too few to hold some out, or if more than half would be held out.
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
    whole = {"train": train, "test": test}
    taken = {name: _some(images, f"{name}_images", recipe) for name, images in whole.items()}
    for name, images in taken.items():
        if len(classes_without(images)) > len(classes_without(whole[name])):
            option = f"--{name}-images"
            warn_of_missing_classes(
                f"{source.name} with {option} {len(images)}", taken, 3, advice=f"raise {option}"
            )
            break
    train, test = taken["train"], taken["test"]
    if validation is None and recipe.validation_fraction:
        train, validation = _hold_out(train, recipe)
    return Splits(train, validation, test, source.left_out)


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
    # Runs of several seeds are tested on the same images, so that they can be compared.
    return subset(images, count, seed=0 if option == "test_images" else recipe.seed)


def _hold_out(train, recipe):
    """What stays to be trained on, and the images to choose by."""
    asked, classes = recipe.validation_fraction, len(train.class_names)
    if asked > 0.5:
        raise ValueError(
            "`validation_fraction` leaves fewer images to train on than to choose by. Expected 0.5 "
            f"at most. Received: validation_fraction={asked:g}"
        )
    labels = different_labels(train)
    if classes / len(labels) > 0.5:
        raise ValueError(
            f"{len(labels)} training images of {classes} classes are too few to hold some out for "
            "validation: pass --validation-fraction 0"
        )
    # Of a small set at least one image for each class; the only one of a class is trained on.
    divisible = np.count_nonzero(np.bincount(labels) > 1)
    fraction = max(asked, divisible / len(labels))
    kept, validation = split_images(train, fraction, seed=recipe.seed)
    count = len(different_labels(validation))
    held_out = f"{count} of {len(labels)} training images are held out for validation"
    if fraction > asked:
        of_several = "" if divisible == classes else " of several images"
        print(
            f"{held_out}, as many as there are classes{of_several}: --validation-fraction "
            f"{asked:g} would be fewer, and 0 holds none out."
        )
    elif count < round(fraction * len(labels)):
        print(f"{held_out}, fewer than --validation-fraction {asked:g}: each class keeps one.")
    return kept, validation
