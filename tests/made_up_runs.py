"""Results, logs and answers of runs that nobody trained, for what reads them."""

import json

import numpy as np

from keras_vit.data import ImageSet
from keras_vit.finetune import Evaluation, Recipe, wilson_interval
from keras_vit.finetune.log import COLUMNS
from keras_vit.finetune.recipe import recipe_fields
from keras_vit.finetune.report import make_result


def some_images(count, classes, size=(8, 8), seed=0):
    """Noise, its labels 0, 1, 2, … and again."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *size, 3)).astype("uint8")
    labels = (np.arange(count) % classes).astype("int32")
    return ImageSet(images, labels, tuple(f"class {index}" for index in range(classes)))


def some_outputs(image_set, seed=0, strength=3.0):
    """Logits that are right the more often the greater `strength` is."""
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(len(image_set), len(image_set.class_names)))
    outputs[np.arange(len(image_set)), image_set.labels] += strength
    return outputs.astype("float32")


def some_result(image_set, outputs, *, validation=True, recipe=None, test=True):
    """The result of a run that was never trained, on this machine."""
    correct, count = int((outputs.argmax(1) == image_set.labels).sum()), len(image_set)
    test_accuracy = Evaluation(count, correct / count, 0.99, wilson_interval(correct, count), 50.0)
    validation_accuracy = Evaluation(40, 0.725, 1.0, wilson_interval(29, 40), 50.0)
    configuration = {
        "recipe": recipe_fields(recipe or Recipe(name="a run", precision="float32")),
        "architecture": None,
        "data": {
            "name": "digits",
            "version": "1",
            "digest": "d1635f",
            "classes": len(image_set.class_names),
        },
        "backend": "tensorflow",
        "weights_sha256": None,
        "weights_config_sha256": None,
    }
    return make_result(
        configuration=json.loads(json.dumps(configuration)),
        test=test_accuracy if test else None,
        validation=validation_accuracy if validation else None,
        train_images=1200,
        steps=configuration["recipe"]["steps"],
        seconds=90.0,
        images_per_second=123.0,
    )


def write_log(folder, steps=120, validation=True):
    """A log.csv with a row a step and an accuracy of the validation split every 30."""
    lines = [",".join(COLUMNS)]
    for step in range(1, steps + 1):
        accuracy = f"{0.5 + step / 300}" if validation and step % 30 == 0 else ""
        lines.append(f"{step},{2 / step},{1 - 1 / step},{1e-3 * step},{100 + step % 7},{accuracy}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
