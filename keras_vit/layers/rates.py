"""Layers that a rate of zero leaves out."""


def unless_zero(layer_class, rate, **options):
    """`layer_class(rate, …)`; where the rate is zero, a function that hands its input on.

    A large model has a hundred such layers, and each takes time to make and to call.

    Args:
        layer_class: `keras.layers.Dropout` or `DropPath`.
        rate: Its rate.
        **options: Its other arguments.

    Example:

    >>> unless_zero(None, 0.0)(3, training=True)
    3
    """
    return layer_class(rate, **options) if rate else _hand_on


def _hand_on(inputs, training=None):
    return inputs
