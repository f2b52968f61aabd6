"""Recomputing activations in the backward pass instead of keeping them."""

import contextlib

import keras
import numpy as np
from keras import ops


def rematerialize(layer, function, inputs):
    """`function(inputs)`, whose activations are computed again when the gradient needs them.

    [Chen et al., 2016](https://arxiv.org/abs/1604.06174): of a chain of such calls, what is kept
    between the passes is each one's inputs. The second time the layers draw the same random
    numbers as the first, those that they would have drawn without this.

    Args:
        layer: The layer whose weights `function` uses, and its sublayers' random numbers.
        function: What to compute.
        inputs: A tensor.

    Returns:
        What `function` returns.
    """
    generators = _seed_generators(layer)
    seeds = [generator.state * 1 for generator in generators]
    draws = [0] * len(generators)

    def compute(inputs):
        with contextlib.ExitStack() as stack:
            for index in range(len(generators)):
                draws[index] = 0
                stack.enter_context(_drawing_from(generators[index], seeds, draws, index))
            return function(inputs)

    outputs = keras.remat(compute)(inputs)
    for generator, seed, count in zip(generators, seeds, draws, strict=True):
        generator.state.assign(_advanced(seed, count))
    return outputs


def _seed_generators(layer):
    found = (getattr(inner, "seed_generator", None) for inner in layer._flatten_layers())
    return [generator for generator in found if generator is not None]


@contextlib.contextmanager
def _drawing_from(generator, seeds, draws, index):
    """Within it, a generator counts on from a seed, and its state stays as it is.

    The state is a variable: to read and assign it in the backward pass would draw other numbers, on
    JAX it would leak a tracer.
    """

    def draw(ordered=True):
        draws[index] += 1
        return _advanced(seeds[index], draws[index] - 1)

    generator.next = draw
    try:
        yield
    finally:
        del generator.next


def _advanced(seed, count):
    """The state of a `keras.random.SeedGenerator` after so many draws."""
    return ops.add(seed, ops.convert_to_tensor(np.array([0, count]), dtype=seed.dtype))
