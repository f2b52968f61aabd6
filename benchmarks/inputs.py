"""The same images, labels and weights for every contender, and where they lie."""

from pathlib import Path

import numpy as np

NUM_CLASSES = 1000


def images_of(job):
    """Images as all models here take them: normalised floats, channels last."""
    return (
        np.random.default_rng(1)
        .normal(size=(job["batch_size"], job["image_size"], job["image_size"], 3))
        .astype("float32")
    )


def labels_of(job):
    """A class for each image."""
    return np.random.default_rng(2).integers(0, NUM_CLASSES, job["batch_size"])


def write_weights(job):
    """Draws weights with keras_vit and writes them in the formats of all peers.

    The folder holds `timm/`, `hf/` and keras_vit.npz, and reference.npy: the logits of `images_of`
    by a plain call of the model in float32.
    """
    import keras

    import keras_vit
    from benchmarks.keras_models import build_keras_vit
    from benchmarks.worker import Step

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    model = build_keras_vit({**job, "weights": None}, "float32")
    draw_what_starts_at_zero(model)
    for format in ("timm", "hf"):
        keras_vit.save_checkpoint(
            model, folder / format, format, preprocessing="inception", overwrite=True
        )
    to_numpy = keras.ops.convert_to_numpy
    np.savez(
        folder / "keras_vit.npz", **{weight.path: to_numpy(weight) for weight in model.weights}
    )
    return Step(
        launch=lambda: None,
        outputs=lambda: to_numpy(model(images_of(job), training=False)),
    )


def draw_what_starts_at_zero(model):
    """Biases, the class token and the head would hide mistakes if they stayed (nearly) zero."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        name = weight.path.rpartition("/")[2]
        if name in ("bias", "beta", "class_token") or weight.path == "head/kernel":
            weight.assign(random.normal(0, 0.02, weight.shape))
        elif name == "gamma":
            weight.assign(random.normal(1, 0.1, weight.shape))
