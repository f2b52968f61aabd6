"""Whether another engine computes what the Keras model does."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_vit.data.images import prepare_image
from keras_vit.export.classifier import model_image_size, preprocessing_layer

# Largest difference to the Keras model at which an export is taken for right: of a probability in
# float32, and below it of the logits, as a share of their spread. A wrong graph is off by more than
# the whole spread.
_FLOAT32_BOUND = 1e-4
_BOUNDS = {"float16": 0.05, "bfloat16": 0.2, "int8": 0.7, "int8-dynamic": 0.7}


def check_pictures(image_size: tuple[int, int]) -> list[np.ndarray]:
    """Waves with an edge: of the model's size twice in one batch, and of two others."""
    height, width = image_size
    pictures = []
    for seed, (rows, columns) in enumerate(
        [(height, width), (height * 3 // 2 + 1, width * 2), (height // 2 + 3, width * 2 // 3 + 1)]
    ):
        row, column = np.mgrid[:rows, :columns] * 1.0
        phase = np.random.default_rng(seed).uniform(0, 6, 3)
        wave = np.sin(row[..., None] * 9 / rows + phase) + np.cos(
            column[..., None] * 16 / columns - phase
        )
        wave[rows // 3 :, columns // 2 :] *= -1
        picture = np.clip(127.5 + 90 * wave, 0, 255).astype("uint8")
        pictures.append(np.stack([picture, picture[::-1]][: 2 - bool(seed)]))
    return pictures


def compare(
    run: Callable, model: keras.Model, pictures: Sequence[np.ndarray], precision: str
) -> dict[str, float]:
    """Compares an engine with the Keras model that it was written from.

    Args:
        run: The function of pixels that computes `probabilities` and `logits`.
        model: The Keras model, its output logits.
        pictures: Batches of images, uint8 `(batch, height, width, 3)`.
        precision: What the engine's model was written in; the bound depends on it.

    Returns:
        What was found, as `signatures.json` says it.

    Raises:
        RuntimeError: If the engine computes something else.
    """
    preprocessing, image_size = preprocessing_layer(model), model_image_size(model)
    answers: dict[str, list[Any]] = {"probabilities": [], "logits": []}
    expected = []
    for pixels in pictures:
        outputs = run(pixels)
        for name, rows in answers.items():
            rows.append(outputs[name])
        batch = np.stack([prepare_image(image, image_size, preprocessing) for image in pixels])
        expected.append(np.asarray(model(batch, training=False)))
    logits, here = np.concatenate(expected).astype("float64"), np.concatenate(answers["logits"])
    probabilities, found = _softmax(logits), np.concatenate(answers["probabilities"])
    difference = float(np.abs(found - probabilities).max())
    spread = np.sqrt(np.mean((logits - logits.mean(axis=1, keepdims=True)) ** 2))
    logit_difference = float(np.sqrt(np.mean((here - logits) ** 2)) / max(spread, 1e-2))
    # Of two classes as good as equal, either may be the best.
    chosen = np.take_along_axis(probabilities, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    behind = probabilities.max(axis=1) - chosen
    same = int((behind <= 2 * _FLOAT32_BOUND).sum())
    facts = {
        "images": len(found),
        "max_probability_difference": difference,
        "relative_logit_difference": logit_difference,
        "same_best_class": same,
    }
    if precision == "float32":
        wrong = not difference <= _FLOAT32_BOUND or same < len(found)
        bound = f"at most {_FLOAT32_BOUND} of a probability, and the same best class"
    else:
        consistent = np.abs(_softmax(here) - found).max() <= 1e-3
        wrong = not (logit_difference <= _BOUNDS[precision] and consistent)
        bound = f"a relative difference of the logits of at most {_BOUNDS[precision]}"
    if wrong:
        raise RuntimeError(
            f"The exported model differs from the Keras model: {facts}. Expected {bound}. Nothing "
            "was written."
        )
    return facts


def _softmax(logits):
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)
