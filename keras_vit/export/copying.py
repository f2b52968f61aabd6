"""Copies of a model that are changed before they are exported."""

from keras_vit.models.cloning import uncompiled_clone


def copy_with_weights(model, **functions):
    """A copy of a model with its weights, its layers made by `functions` of `clone_model`.

    Raises:
        ValueError: If the model is quantised, or has adapters (LoRA) that its copy has not: its
            weights are not those that its layers are made with.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> copy = copy_with_weights(model)
    >>> bool((copy.get_weights()[0] == model.get_weights()[0]).all())
    True
    """
    check_not_quantized(model)
    copy = uncompiled_clone(model, **functions)
    if has_adapters(model) and len(copy.weights) != len(model.weights):
        raise ValueError(
            f"Model {model.name!r} has adapters (LoRA) that are not merged: it cannot be changed "
            "to another precision or be pruned. Save and load it, which merges them."
        )
    copy.set_weights(model.get_weights())
    return copy


def check_not_quantized(model):
    """Raises a ValueError for a model that was quantised by `keras.Model.quantize`."""
    if modes := quantization_modes(model):
        raise ValueError(
            f"Model {model.name!r} is already quantised ({', '.join(modes)}): it is exported as it "
            "is, as a SavedModel or to ONNX with precision='float32'. For everything else export "
            "the model that it was quantised from."
        )


def quantization_modes(model):
    """How the layers of a model were quantised, such as `["int8"]`; empty for one that was not."""
    modes = {getattr(layer, "quantization_mode", None) for layer in model._flatten_layers()}
    return sorted(modes - {None})


def has_adapters(model):
    """Whether a layer of a model has an adapter (LoRA) that is not merged."""
    return any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers())
