"""How a weight of the model is laid out in the tensors of a published file.

A `Layout` says which shapes a weight has in the file, so that a file is checked before any
data is read, how the weight is made of the tensors, and how it is taken apart again.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to store a weight.

    Args:
        tensor_shape: Function from (shape of the weight, number of tensors, config) to the shape
            of each tensor of the file.
        weight_shape: Function from (shapes of the tensors) to the shape of the weight.
        combine: Function from (tensors, shape of the weight) to the weight.
        split: Function from (weight, number of tensors, config) to the tensors.
    """

    tensor_shape: Callable
    weight_shape: Callable
    combine: Callable
    split: Callable


def _columns(shape, count):
    return (*shape[:-1], shape[-1] // count)


def _side_by_side(shapes):
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _parts(weight, count):
    return np.split(weight, count, axis=-1)


def _reshaped(tensors, shape):
    return tensors[0].reshape(shape)


def _joined(tensors, shape):
    rows = (*shape[:-1], -1)
    return _concatenated([tensor.reshape(rows) for tensor in tensors], axis=-1)


def _concatenated(tensors, axis):
    """One tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis)


def _heads(config):
    return (config.num_heads, config.hidden_size // config.num_heads)


def _reshaping(tensor_shape, weight_shape):
    """A layout of one tensor that holds the weight's values in the same order."""
    return Layout(
        lambda shape, count, config: tensor_shape(shape, config),
        lambda shapes: weight_shape(shapes[0]),
        _reshaped,
        lambda weight, count, config: [weight.reshape(tensor_shape(weight.shape, config))],
    )


def _heads_layout(rows):
    """Flax's attention: heads apart, one tensor each for queries, keys and values."""

    def tensor_shape(shape, count, config):
        return (*shape[:rows], *_heads(config))

    return Layout(
        tensor_shape,
        lambda shapes: (*shapes[0][:rows], sum(math.prod(shape[rows:]) for shape in shapes)),
        _joined,
        lambda weight, count, config: [
            part.reshape(tensor_shape(weight.shape, count, config))
            for part in _parts(weight, count)
        ],
    )


LAYOUTS = {
    # As in the model; several tensors lie side by side.
    "same": Layout(
        lambda shape, count, config: _columns(shape, count),
        _side_by_side,
        _joined,
        lambda weight, count, config: _parts(weight, count),
    ),
    # PyTorch's linear layers: (outputs, inputs).
    "transposed": Layout(
        lambda shape, count, config: _columns(shape, count)[::-1],
        lambda shapes: _side_by_side([shape[::-1] for shape in shapes]),
        lambda tensors, shape: _concatenated(tensors, axis=0).T,
        lambda weight, count, config: [part.T for part in _parts(weight, count)],
    ),
    # One row of the weight a tensor.
    "rows": Layout(
        lambda shape, count, config: shape[1:],
        lambda shapes: (len(shapes), *shapes[0]),
        lambda tensors, shape: np.stack(tensors),
        lambda weight, count, config: list(weight),
    ),
    # Nowhere in the file, because it is always zero.
    "zero": Layout(
        lambda shape, count, config: shape,
        lambda shapes: (),
        lambda tensors, shape: np.zeros(shape, "float32"),
        lambda weight, count, config: [],
    ),
    # Without the axis of size one in front.
    "unbatched": _reshaping(lambda shape, config: shape[1:], lambda shape: (1, *shape)),
    "vector": _reshaping(lambda shape, config: shape[-1:], lambda shape: (1, 1, *shape)),
    # Flax's patch convolution: (height, width, channels, filters).
    "flax_patches": _reshaping(
        lambda shape, config: (
            *config.patch_size,
            shape[0] // math.prod(config.patch_size),
            shape[1],
        ),
        lambda shape: (math.prod(shape[:-1]), shape[-1]),
    ),
    # PyTorch's patch convolution: (filters, channels, height, width).
    "torch_patches": Layout(
        lambda shape, count, config: (
            shape[1],
            shape[0] // math.prod(config.patch_size),
            *config.patch_size,
        ),
        lambda shapes: (math.prod(shapes[0][1:]), shapes[0][0]),
        lambda tensors, shape: tensors[0].transpose(2, 3, 1, 0).reshape(shape),
        lambda weight, count, config: [
            weight.reshape(*config.patch_size, -1, weight.shape[-1]).transpose(3, 2, 0, 1)
        ],
    ),
    # PyTorch's convolution: (filters, channels, height, width).
    "torch_convolution": Layout(
        lambda shape, count, config: (shape[3], shape[2], shape[0], shape[1]),
        lambda shapes: (shapes[0][2], shapes[0][3], shapes[0][1], shapes[0][0]),
        lambda tensors, shape: tensors[0].transpose(2, 3, 1, 0),
        lambda weight, count, config: [weight.transpose(3, 2, 0, 1)],
    ),
    "flax_heads_kernel": _heads_layout(1),
    "flax_heads_bias": _heads_layout(0),
    # (heads, head size, outputs).
    "flax_heads_projection": _reshaping(
        lambda shape, config: (*_heads(config), shape[-1]),
        lambda shape: (math.prod(shape[:-1]), shape[-1]),
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one weight of the model is found in a file.

    Args:
        weight: Path of the weight in the model.
        tensors: Names of the tensors that make it up.
        layout: A key of `LAYOUTS`.
        part: (first, end, of): which of the equal parts along the tensor's first axis are this
            weight's, where several weights share a tensor; None for all of it.
    """

    weight: str
    tensors: tuple[str, ...]
    layout: str = "same"
    part: tuple[int, int, int] | None = None

    def tensor_shape(self, weight_shape, config):
        """The shape that each tensor must have in the file."""
        shape = LAYOUTS[self.layout].tensor_shape(weight_shape, len(self.tensors), config)
        if self.part is None:
            return tuple(shape)
        first, end, of = self.part
        return (shape[0] // (end - first) * of, *shape[1:])

    def weight_shape(self, tensor_shapes):
        """The shape of a weight whose tensors have these shapes."""
        if self.part is not None:
            first, end, of = self.part
            tensor_shapes = [
                (shape[0] // of * (end - first), *shape[1:]) for shape in tensor_shapes
            ]
        return tuple(LAYOUTS[self.layout].weight_shape(tensor_shapes))

    def combine(self, tensors, weight_shape):
        """The weight, made of its tensors."""
        if self.part is not None:
            tensors = [tensor[self.rows(tensor.shape)] for tensor in tensors]
        return LAYOUTS[self.layout].combine(tensors, weight_shape)

    def split(self, weight, config):
        """The tensors, or the parts of tensors, that hold the weight."""
        return LAYOUTS[self.layout].split(weight, len(self.tensors), config)

    def rows(self, tensor_shape):
        """Where this weight lies along the first axis of a tensor of this shape."""
        if self.part is None:
            return slice(None)
        first, end, of = self.part
        return slice(tensor_shape[0] // of * first, tensor_shape[0] // of * end)


def flax_norm(weight, tensor):
    """The rules of a norm in Flax's names."""
    return [
        Rule(f"{weight}/gamma", (f"{tensor}/scale",)),
        Rule(f"{weight}/beta", (f"{tensor}/bias",)),
    ]


def flax_dense(weight, tensor):
    """The rules of a linear layer in Flax's names."""
    return [Rule(f"{weight}/{part}", (f"{tensor}/{part}",)) for part in ("kernel", "bias")]


def torch_norm(weight, tensor):
    """The rules of a norm in PyTorch's names."""
    return [
        Rule(f"{weight}/gamma", (f"{tensor}.weight",)),
        Rule(f"{weight}/beta", (f"{tensor}.bias",)),
    ]


def torch_dense(weight, *tensors, part=None):
    """The rules of a linear layer, or of several side by side, in PyTorch's names."""
    return [
        Rule(f"{weight}/kernel", tuple(f"{t}.weight" for t in tensors), "transposed", part),
        Rule(f"{weight}/bias", tuple(f"{t}.bias" for t in tensors), "same", part),
    ]
