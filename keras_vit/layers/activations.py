"""The activations of published Vision Transformers, by unambiguous names."""

from keras import ops

from keras_vit.layers.nearest import nearest_names


def gelu(x):
    """Exact GELU (Hendrycks & Gimpel, arXiv 1606.08415)."""
    return ops.gelu(x, approximate=False)


def gelu_tanh(x):
    """GELU's tanh approximation, the default of Flax."""
    return ops.gelu(x, approximate=True)


def quick_gelu(x):
    """`x * sigmoid(1.702 x)`, OpenAI CLIP's GELU."""
    return x * ops.sigmoid(1.702 * x)


def silu(x):
    """`x * sigmoid(x)`, the gate of SwiGLU (Shazeer, arXiv 2002.05202)."""
    return ops.silu(x)


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
