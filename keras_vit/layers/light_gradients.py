"""Gradients that keep a function's input instead of its intermediate results."""

import keras
from keras import ops

from keras_vit.layers.one_pass import in_one_pass


def light_gradient(function, gradient):
    """`function`, whose gradient is computed from its arguments alone.

    TensorFlow keeps for the gradient what each operation of a function had: four tensors of the
    size of GELU's input. Computing them again costs less than to write and read them. PyTorch's
    functions do so by themselves.

    On TensorFlow both are compiled for large tensors, whatever runs around them.

    Args:
        function: Of tensors, to a tensor of the first one's dtype.
        gradient: Of the same tensors and the gradient of the result, to that of each tensor. To
            keep nothing it has to get there by other operations than `function`: equal ones on
            equal inputs are computed once.

    Example:

    >>> cube = light_gradient(lambda x: x * x * x, lambda x, upstream: upstream * 3.0 * x**2)
    >>> float(cube(ops.convert_to_tensor(2.0)))
    8.0
    """
    if keras.backend.backend() == "torch":
        return function

    function, gradient = in_one_pass(function), in_one_pass(gradient)

    @ops.custom_gradient
    def light(*arguments):
        return function(*arguments), lambda upstream: gradient(*arguments, upstream)

    return light
