"""How a weight of the model is laid out in the tensors of a published file.

A `Layout` says which shapes a weight has in the file, so that a file is checked before any
data is read, and how the weight is made of the tensors.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to store a weight.

    Args:
        shape: Function from (shape of the weight, config) to the shape of one tensor of the file.
        combine: Function from (list of tensors, shape of the weight) to the weight.
    """

    shape: Callable
    combine: Callable


def _reshaped(tensors, shape):
    return tensors[0].reshape(shape)


def _side_by_side(tensors, shape):
    rows = (*shape[:-1], -1)
    return np.concatenate([tensor.reshape(rows) for tensor in tensors], axis=-1)


def _head_shape(config):
    return (config.num_heads, config.hidden_size // config.num_heads)


LAYOUTS = {
    # The same shape in the file.
    "same": Layout(lambda shape, config: shape, _reshaped),
    # PyTorch's linear layers: (outputs, inputs).
    "transposed": Layout(lambda shape, config: shape[::-1], lambda tensors, _: tensors[0].T),
    # Flax's patch convolution: (height, width, channels, filters).
    "flax_patches": Layout(
        lambda shape, config: (*config.patch_size, 3, shape[-1]),
        _reshaped,
    ),
    # PyTorch's patch convolution: (filters, channels, height, width).
    "torch_patches": Layout(
        lambda shape, config: (shape[-1], 3, *config.patch_size),
        lambda tensors, shape: tensors[0].transpose(2, 3, 1, 0).reshape(shape),
    ),
    # Flax's attention: queries, keys and values apart, (inputs, heads, head size) each.
    "flax_query_key_value_kernel": Layout(
        lambda shape, config: (shape[0], *_head_shape(config)), _side_by_side
    ),
    "flax_query_key_value_bias": Layout(lambda shape, config: _head_shape(config), _side_by_side),
    # (heads, head size, outputs).
    "flax_attention_projection": Layout(
        lambda shape, config: (*_head_shape(config), shape[-1]), _reshaped
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one weight of the model is found in a file.

    Args:
        weight: Path of the weight in the model.
        tensors: Names of the tensors that make it up.
        layout: A key of `LAYOUTS`.
    """

    weight: str
    tensors: tuple[str, ...]
    layout: str = "same"
