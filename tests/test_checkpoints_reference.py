"""Every checkpoint of the shared folder, written by the published code itself, and its figures."""

import keras
import numpy as np
from parameters import slow_on_jax

import keras_vit

TOLERANCE = 2e-5


def checkpoints(folder):
    """(checkpoint, its figures) of the folder, by name."""
    for figures in sorted(folder.glob("*.io.npz")):
        checkpoint = figures.with_name(figures.name.replace(".io.npz", ".ckpt.npz"))
        if checkpoint.exists():  # Figures of trained weights have theirs elsewhere.
            yield checkpoint, figures
    for figures in sorted(folder.glob("*/io.npz")):
        yield figures.parent, figures


def load(path, image_size, **fields):
    """The model; of a file that stores no positions, for this image size."""
    fields["include_preprocessing"] = False
    try:
        return keras_vit.from_checkpoint(path, **fields)
    except ValueError as error:
        if "pass `image_size`" not in str(error):
            raise
        return keras_vit.from_checkpoint(path, image_size=image_size, **fields)


def inside(model, name):
    """The tensor inside the model that the figures call by this name."""
    config = keras_vit.models.config_of(model)
    if name == "pre_logits" and config.representation_size is None:
        return model.get_layer("head").input
    if name == "tokens":
        name = f"block_{config.depth - 1}" if config.pool_norm else "encoder_norm"
    elif name.startswith("block"):
        name = f"block_{name.removeprefix('block')}"
    return model.get_layer(name).output


def differences(path, figures):
    """Name of a figure → how far it is from the model's, by the largest of its values."""
    figures = dict(figures)
    images = figures.pop("images")
    model = load(path, images.shape[1:3])
    found = {}
    if "logits_cls" in figures:
        found = load(path, images.shape[1:3], head_output="both")(images)
    tensors = {"logits": model.output}
    tensors |= {name: inside(model, name) for name in figures if name not in {*found, "logits"}}
    found = dict(found) | keras.Model(model.input, tensors)(images)
    found = {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}
    prefix = keras_vit.models.config_of(model).prefix_tokens
    for name in (name for name in figures if name.startswith("block")):
        found[name] = found[name][:, prefix:]  # Figures of blocks are of the patches alone.
    return {
        name: np.abs(found[name] - value).max() / np.abs(value).max()
        for name, value in figures.items()
    }


@slow_on_jax
def test_every_checkpoint_gives_the_figures_of_the_code_that_wrote_it(shared):
    tried, wrong = 0, []
    for path, figures in checkpoints(shared / "reference"):
        with np.load(figures) as data:
            for name, difference in differences(path, data).items():
                tried += 1
                if not difference <= TOLERANCE:
                    wrong.append(f"{path.name}: {name} differs by {difference:.1e}")
    assert not wrong, "\n".join(wrong)
    assert tried
