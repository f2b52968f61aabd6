"""The activations of published Vision Transformers, by unambiguous names."""

import math

import keras
from keras import ops

from keras_vit.layers.light_gradients import light_gradient
from keras_vit.layers.nearest import nearest_names
from keras_vit.layers.one_pass import widened


def gelu(x):
    """Exact GELU (Hendrycks & Gimpel, arXiv 1606.08415)."""
    wide = widened(x)
    short = wide.dtype != x.dtype
    if keras.backend.backend() == "torch" or (keras.backend.backend() == "tensorflow" and short):
        return ops.gelu(x, approximate=False)
    # By the error function, as PyTorch: by its complement, as TensorFlow and JAX, it takes XLA
    # nearly twice as long. Of this form TensorFlow makes a part of the product before, and LiteRT
    # knows no other one.
    return ops.cast((wide * 0.5) * (1.0 + ops.erf(wide * math.sqrt(0.5))), x.dtype)


def gelu_tanh(x):
    """GELU's tanh approximation, the default of Flax."""
    return ops.gelu(x, approximate=True)


def quick_gelu(x):
    """`x * sigmoid(1.702 x)`, OpenAI CLIP's GELU."""
    return x * ops.sigmoid(1.702 * x)


def silu(x):
    """`x * sigmoid(x)`, the gate of SwiGLU (Shazeer, arXiv 2002.05202)."""
    return ops.silu(x)


def _gelu_gradient(x, upstream):
    # By the error function of -x, as TensorFlow and XLA would keep that of x.
    share = 0.5 - 0.5 * ops.erf(x * -math.sqrt(0.5))
    density = ops.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return upstream * (share + x * density)


def _gelu_tanh_gradient(x, upstream):
    # By the sigmoid, as TensorFlow and XLA would keep the tanh.
    x = ops.clip(x, -_SATURATED, _SATURATED)
    square = x * x
    share = ops.sigmoid(x * (_TANH_SCALE + _TANH_SCALE * _TANH_CUBE * square))
    slope = _TANH_SCALE + 3 * _TANH_SCALE * _TANH_CUBE * square
    return upstream * (share + x * share * (1 - share) * slope)


# The others consist of an operation or two.
_GRADIENTS = {"gelu": _gelu_gradient, "gelu_tanh": _gelu_tanh_gradient}
# From here on the share is 0 or 1 in any float, and far from here squares overflow.
_SATURATED = 100.0
# The tanh of z is twice the sigmoid of 2 z, less one.
_TANH_SCALE = 2 * math.sqrt(2 / math.pi)
_TANH_CUBE = 0.044715

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "silu": silu}


def get_activation(name):
    """The activation called `name`.

    Args:
        name: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"` or `"silu"`.

    Raises:
        ValueError: For an unknown name.

    Example:

    >>> get_activation("gelu") is gelu
    True
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"Unknown activation. {nearest_names(name, ACTIVATIONS)} Received: activation={name!r}"
        )
    return ACTIVATIONS[name]


def training_activation(name):
    """The activation called `name` for training: its gradient keeps little.

    Example:

    >>> training_activation("silu") is silu
    True
    """
    if name not in _GRADIENTS:
        return get_activation(name)
    return light_gradient(ACTIVATIONS[name], _GRADIENTS[name])
