"""Every checkpoint of the shared folder, written by the published code itself, and its figures."""

import keras
import numpy as np

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


def outputs(model, images, name):
    """What the figures call by this name."""
    config = keras_vit.models.config_of(model)
    layer = {"tokens": "encoder_norm", "pre_logits": "pre_logits"}.get(name)
    if name == "tokens" and config.pool_norm:
        layer = f"block_{config.depth - 1}"
    if name.startswith("block"):
        layer = f"block_{name.removeprefix('block')}"
    if name == "pre_logits" and config.representation_size is None:
        tensor = model.get_layer("head").input
    else:
        tensor = model.get_layer(layer).output
    found = keras.ops.convert_to_numpy(keras.Model(model.input, tensor)(images))
    # Figures of blocks are of the patches alone.
    return found[:, config.prefix_tokens :] if name.startswith("block") else found


def differences(path, figures):
    """Name of a figure → how far it is from the model's, by the largest of its values."""
    figures = dict(figures)
    images = figures.pop("images")
    model = load(path, images.shape[1:3])
    found = {"logits": keras.ops.convert_to_numpy(model(images))}
    if "logits_cls" in figures:
        both = load(path, images.shape[1:3], head_output="both")(images)
        found |= {name: keras.ops.convert_to_numpy(logits) for name, logits in both.items()}
    for name in figures.keys() - found:
        found[name] = outputs(model, images, name)
    return {
        name: np.abs(found[name] - value).max() / np.abs(value).max()
        for name, value in figures.items()
    }


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
