"""Models built anew of a model's graph."""

import keras


def uncompiled_clone(model, **functions):
    """`keras.models.clone_model(model, **functions)`, which is not compiled if `model` is.

    Keras compiles such a clone from the model's config: without a loss that is a plain function,
    which no config holds, and with an optimizer of its own. A sequential model, whose layers Keras
    calls anew by no function, becomes a functional one.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(loss=lambda y, outputs: outputs)
    >>> uncompiled_clone(model).compiled
    False
    """
    if isinstance(model, keras.Sequential):
        outputs = inputs = model.inputs[0]
        for layer in model.layers:  # `model.outputs` has lost their structure.
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs, name=model.name)
    elif model.compiled:
        model = keras.Model(model.input, model.output, name=model.name)
    return keras.models.clone_model(model, **functions)
