"""The images of a run: what is trained on, chosen by, and looked at once."""

from dataclasses import dataclass

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
    if recipe.train_images is not None and recipe.train_images < len(train):
        train = subset(train, recipe.train_images, seed=recipe.seed)
    if validation is None and recipe.validation_fraction:
        # Of a small set at least as many images as there are classes.
        fraction = max(recipe.validation_fraction, len(train.class_names) / len(train))
        if fraction > 0.5:
            raise ValueError(
                f"{len(train)} training images of {len(train.class_names)} classes are too few to "
                "hold some out for validation: pass --validation-fraction 0"
            )
        train, validation = split_images(train, fraction, seed=recipe.seed)
        if fraction > recipe.validation_fraction:
            print(
                f"{len(validation)} of {len(train) + len(validation)} training images are held out "
                "for validation, as many as there are classes: --validation-fraction "
                f"{recipe.validation_fraction:g} would be fewer, and 0 holds none out."
            )
    if recipe.test_images is not None and recipe.test_images < len(test):
        test = subset(test, recipe.test_images, seed=recipe.seed)
    return Splits(train, validation, test, source.left_out)
