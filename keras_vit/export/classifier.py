"""What an export needs to know of a classifier: its images, its logits, its class names."""

import dataclasses

import keras

from keras_vit.export.quantization import quantize_int8
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.models.cloning import uncompiled_clone
from keras_vit.models.preprocessing import Preprocessing

PRECISIONS = ("float32", "bfloat16", "int8-dynamic")


def preprocessing_layer(model):
    for layer in model.layers:
        if layer.name == "preprocessing" and isinstance(layer, ImagePreprocessing):
            return layer
    raise ValueError(
        f"Model {model.name!r} has no `preprocessing` layer, which says how images are resized and "
        "scaled. Build it anew with `include_preprocessing=True`, or with "
        "`keras_vit.layers.ImagePreprocessing(mean, std, name='preprocessing')` as its first "
        "layer, and give it these weights: `anew.set_weights(model.get_weights())`."
    )


def preprocessing_policy(layer):
    """How a `preprocessing` layer wants images resized, cropped and scaled."""
    return {field.name: getattr(layer, field.name) for field in dataclasses.fields(Preprocessing)}


def model_image_size(model):
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        raise ValueError(
            f"Model {model.name!r} must take one input of shape (batch, height, width, 3) with "
            f"known height and width. Its input shape is {shape}."
        )
    return shape[1:3]


def logits_model(model):
    """The model itself, or for a softmax head one that ends before the softmax."""
    head = model.layers[-1]
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            f"Model {model.name!r} must be a classifier with one output of shape "
            f"(batch, num_classes). Its output shape is {shape}."
        )
    # The mean of a distilled model's two heads.
    is_mean = isinstance(head, keras.layers.Average)
    activation = "linear" if is_mean else getattr(head, "activation", "not there")
    name = getattr(activation, "__name__", activation)
    if head.output is not model.outputs[0] or name not in ("linear", "softmax"):
        raise ValueError(
            "The model's output must come from a layer whose activation is None (logits) or "
            f"'softmax', such as the head of a Vision Transformer. The last layer of model "
            f"{model.name!r} is {head.name!r} ({type(head).__name__}), its activation {name!r}."
        )
    if name == "linear":
        return model
    linear_head = type(head).from_config({**head.get_config(), "activation": "linear"})
    logits_model = keras.Model(model.input, linear_head(head.input), name=model.name)
    linear_head.set_weights(head.get_weights())
    return logits_model


def heads(model):
    """The layers that give the logits: one, or the two that a distilled model takes the mean of."""
    return [layer for layer in _last_layers(model) if getattr(layer, "weights", None)]


def _last_layers(model):
    """What the output comes from, as far back as the last layers with weights."""
    found, waiting = {}, [model.layers[-1]]
    while waiting:
        layer = waiting.pop(0)
        found[id(layer)] = layer
        if not getattr(layer, "weights", None):
            waiting += [node.operation for node in layer._inbound_nodes[0].parent_nodes]
    return list(found.values())


def features_model(model):
    """A model from images to what the head of `model` reads: `(batch, width)`.

    Of a distilled model, whose two heads read two tokens, it is the mean of both.
    """
    features = [head.input for head in heads(model)]
    if len(features) == 2:
        features = [keras.ops.mean(keras.ops.stack(features), axis=0)]
    return keras.Model(model.input, features[0], name=f"{model.name}_features")


def with_precision(model, precision):
    """`model`, or a copy of it whose weights and products are of 16 or 8 bits.

    In bfloat16 the head stays as it is, and both heads of a distilled model with their mean.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. Received: precision={precision!r}"
        )
    if precision == "float32":
        return model
    if any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers()):
        raise ValueError(
            f"Model {model.name!r} has adapters (LoRA) that are not merged: it cannot be exported "
            f"as {precision}. Save and load it, which merges them, or export it in float32."
        )
    if precision == "int8-dynamic":
        return quantize_int8(model)
    kept = {layer.name for layer in _last_layers(model)}

    def copy(layer):
        config = layer.get_config()
        return type(layer).from_config(
            config if layer.name in kept else {**config, "dtype": precision}
        )

    shorter = uncompiled_clone(model, clone_function=copy)
    shorter.set_weights(model.get_weights())
    return shorter


def precision_name(model, precision):
    """`precision`, or for `"float32"` the policies of the model's layers that are none of it."""
    policies = {
        layer.dtype_policy.name
        for layer in model.layers
        if keras.backend.is_float_dtype(layer.compute_dtype) and layer.compute_dtype != "float32"
    }
    return ", ".join(sorted(policies)) if policies and precision == "float32" else precision


def checked_class_names(class_names, num_classes):
    names = class_names if isinstance(class_names, str) else tuple(class_names)
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            "`class_names` must be a sequence of non-empty strings, one a class. "
            f"Received: class_names={class_names!r}"
        )
    for name in names:
        if len(name.splitlines()) > 1 or name != name.strip("\r\n"):
            raise ValueError(
                "A class name must be one line: the exported names are a text file with one a "
                f"line. Received: {name!r}"
            )
    if len(names) != num_classes:
        raise ValueError(
            f"`class_names` must name each of the model's {num_classes} classes. Received "
            f"{len(names)} names."
        )
    return names
