"""What an export needs to know of a classifier: its images, its logits, its class names."""

import dataclasses

import keras

from keras_vit.export.copying import copy_with_weights
from keras_vit.export.quantization import quantize_int8
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.models.cloning import uncompiled_clone
from keras_vit.models.preprocessing import Preprocessing

PRECISIONS = ("float32", "bfloat16", "int8-dynamic")


def in_one_level(model):
    """`model`, or the same graph in one level where it calls another model on its images.

    For `keras.Model(images, head(base(images)))` and `keras.Sequential([base, head])`, where `base`
    has the `preprocessing` layer, that is `keras.Model(base.input, head(base.output))`. The layers
    of `base` are shared, the others are copies.
    """
    base = next((layer for layer in model.layers if _has_preprocessing(layer)), None)
    if base is None:
        return model
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)

    def call(layer, *arguments, **options):
        if layer is not base:
            return layer(*arguments, **options)
        if arguments[0] is not base.input:
            raise ValueError(
                f"The `preprocessing` layer of model {model.name!r} is inside of the model "
                f"{base.name!r} that it calls on something else than its images. Build what comes "
                "after it on its output: `keras.Model(base.input, head(base.output))`."
            )
        return base.output

    def copy(layer):
        return layer if layer is base else type(layer).from_config(layer.get_config())

    flat = uncompiled_clone(
        model, input_tensors=base.input, clone_function=copy, call_function=call
    )
    for layer in model.layers:
        if layer is not base and layer.weights:
            flat.get_layer(layer.name).set_weights(layer.get_weights())
    return flat


def _has_preprocessing(layer):
    return isinstance(layer, keras.Model) and any(map(_is_preprocessing, layer.layers))


def _is_preprocessing(layer):
    return layer.name == "preprocessing" and isinstance(layer, ImagePreprocessing)


def preprocessing_layer(model):
    for layer in model.layers:
        if _is_preprocessing(layer):
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
    check_has_classes(model)
    name = _activation_name(head)
    if head.output is not model.outputs[0] or name not in ("linear", "softmax"):
        raise ValueError(
            "The model's output must come from a layer whose activation is None (logits) or "
            f"'softmax', such as the head of a Vision Transformer. The last layer of model "
            f"{model.name!r} is {head.name!r} ({type(head).__name__}), its activation {name!r}."
        )
    if name == "linear":
        _check_is_made_of_logits(model)
        return model
    if isinstance(head, keras.layers.Softmax):
        return keras.Model(model.input, head.input, name=model.name)
    linear_head = type(head).from_config({**head.get_config(), "activation": "linear"})
    logits_model = keras.Model(model.input, linear_head(head.input), name=model.name)
    linear_head.set_weights(head.get_weights())
    return logits_model


def _activation_name(head):
    # The mean of a distilled model's two heads.
    if isinstance(head, keras.layers.Average):
        return "linear"
    if isinstance(head, keras.layers.Softmax) and head.axis in (-1, 1):
        return "softmax"
    activation = getattr(head, "activation", "not there")
    return getattr(activation, "__name__", activation)


# Sums, means and parts of probabilities are no logits either.
_MERGING_LAYERS = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Concatenate,
    keras.layers.Maximum,
    keras.layers.Minimum,
)


def _check_is_made_of_logits(model):
    """Raises a ValueError for linear last layers that hand on probabilities."""
    head, waiting = model.layers[-1], [model.layers[-1]]
    while waiting:
        layer = waiting.pop()
        name = _activation_name(layer)
        if name in ("softmax", "sigmoid"):
            raise ValueError(
                f"The last layer {head.name!r} ({type(head).__name__}) of model {model.name!r} "
                f"must be given logits. It is given the probabilities of {layer.name!r}, whose "
                f"activation is {name!r}. Build the model anew with the activation None there, and "
                "a softmax after the last layer if it is to give probabilities; "
                "`anew.set_weights(model.get_weights())` gives it these weights."
            )
        if isinstance(layer, keras.Model):
            waiting.append(layer.layers[-1])
        elif isinstance(layer, _MERGING_LAYERS) or (
            isinstance(layer, keras.layers.Activation) and name == "linear"
        ):
            waiting += _layers_before(layer)


def check_has_classes(model):
    """Raises a ValueError for a model of one output, whose softmax is 1 whatever it is."""
    if model.output_shape[-1] == 1:
        raise ValueError(
            f"Model {model.name!r} has one output, of which no probabilities can be made: they are "
            "the softmax of one logit a class. Train it with two classes: `num_classes=2` and a "
            "cross-entropy of both, instead of a binary one."
        )


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
            waiting += _layers_before(layer)
    return list(found.values())


def _layers_before(layer):
    return [node.operation for node in layer._inbound_nodes[0].parent_nodes]


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
    if precision == "int8-dynamic":
        return quantize_int8(model)
    kept = {layer.name for layer in _last_layers(model)}

    def copy(layer):
        config = layer.get_config()
        return type(layer).from_config(
            config if layer.name in kept else {**config, "dtype": precision}
        )

    return copy_with_weights(model, clone_function=copy)


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
