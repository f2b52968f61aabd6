"""A model at another resolution, its weights kept."""

import dataclasses

import keras

from keras_vit.checkpoints.grids import PATCH_KERNEL, POSITIONS, RELATIVE_POSITIONS
from keras_vit.checkpoints.patch_kernels import resample_patch_kernel
from keras_vit.checkpoints.positions import check_resampling, resample_positions
from keras_vit.checkpoints.relative_positions import resample_relative_positions
from keras_vit.models import vision_transformer, whole_config_of


def resize(model, image_size=None, patch_size=None, resampling=None):
    """Builds the same model for images, or patches, of another size.

    Learned positions and relative position tables are resampled to the new grid, sin-cos and
    rotary positions follow from it, the kernel of other patches is resampled
    ([FlexiViT](https://arxiv.org/abs/2212.08013)), and all other weights are copied: what
    `from_checkpoint` makes of a file at this size by the same `resampling`. Without one it follows
    the file's format, while the model does not know where its weights came from; and of Google's
    files it then takes positions of the right number as they are, where this resamples them.
    `model` is left as it is; the new one is not compiled.

    Args:
        model: A model built by keras_vit.
        image_size: Size of the images in pixels: an int, or (height, width), each a multiple of
            the patch's; None keeps the model's.
        patch_size: Side of a patch in pixels: an int, or (height, width); None keeps the model's.
        resampling: `"google"`, `"timm"`, `"hf"`, `"torchvision"` or `"siglip2"`: whose rule
            resamples positions; None for timm's.

    Returns:
        A functional `keras.Model` of the same name, dtype policy and `trainable` flags.

    Raises:
        ValueError: If `model` is no Vision Transformer of keras_vit, a size does not fit, or for an
            unknown rule.

    Example:

    >>> import keras_vit
    >>> model = keras_vit.ViTTi16(num_classes=10, image_size=32)
    >>> resize(model, image_size=(48, 64)).input_shape
    (None, 48, 64, 3)
    """
    rule = "timm" if resampling is None else resampling
    check_resampling(rule)
    config = whole_config_of(model)
    sizes = {"image_size": image_size, "patch_size": patch_size}
    target = dataclasses.replace(
        config, **{name: size for name, size in sizes.items() if size is not None}
    )
    policy = model.get_layer("patch_encoder").dtype_policy
    resized = vision_transformer(target, dtype=policy, name=model.name)
    weights = {weight.path: weight for weight in model.weights}
    _check_weights(model, weights, resized)
    for weight in resized.weights:
        weight.assign(_resampled(weights[weight.path], config, target, rule))
    _copy_trainable(model, resized)
    return resized


def _check_weights(model, weights, resized):
    differing = sorted(weights.keys() ^ {weight.path for weight in resized.weights})
    if differing:
        raise ValueError(
            "Expected a model with the weights that keras_vit gave it. Received: "
            f"model={model.name!r}, where weights were added or left out: {', '.join(differing)}; "
            "resize the model before you change its layers"
        )


def _resampled(weight, config, target, rule):
    """The values of the model's `weight` for the model of `target`."""
    values = keras.ops.convert_to_numpy(weight)
    if weight.path == PATCH_KERNEL and config.patch_size != target.patch_size:
        kernel = values.reshape(*config.patch_size, -1, values.shape[-1])
        patch_rule = "google" if rule == "google" else "timm"
        kernel = resample_patch_kernel(kernel, target.patch_size, patch_rule)
        return kernel.reshape(-1, values.shape[-1])
    if config.grid == target.grid:
        return values
    if weight.path == POSITIONS:
        return resample_positions(values, config.grid, target.grid, rule, config.prefix_positions)
    if weight.path.endswith(RELATIVE_POSITIONS):
        table_rule = "hf" if rule == "hf" else "timm"
        return resample_relative_positions(values, config.grid, target.grid, table_rule)
    return values


def _copy_trainable(model, resized):
    resized.trainable = model.trainable
    for layer in model.layers:
        # A layer precedes those inside it, which its own flag would overwrite.
        inside = layer._flatten_layers(), resized.get_layer(layer.name)._flatten_layers()
        for old, new in zip(*inside, strict=True):
            new.trainable = old.trainable
