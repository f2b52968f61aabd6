"""Random initialisation as in google-research/vision_transformer."""

import keras


def kernel_initializer(columns=1):
    """Xavier uniform; `columns` equal matrices that share a fused kernel are drawn as if apart.

    Example:

    >>> kernel_initializer(columns=3).scale
    2.0
    """
    # Fan-in d, fan-out columns * d: the scale restores the limit sqrt(6 / (d + d)).
    return keras.initializers.VarianceScaling(
        scale=(1.0 + columns) / 2.0, mode="fan_avg", distribution="uniform"
    )


def bias_initializer():
    """Normal with standard deviation 1e-6."""
    return keras.initializers.RandomNormal(stddev=1e-6)
