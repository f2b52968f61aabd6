"""Which blocks are looked at, and how, without a trace in the model."""

import math
import operator
from numbers import Integral

import keras

from keras_vit.models import config_of


def config_with_places(model):
    """`config_of(model)`, of a model whose blocks all hold every patch in its place.

    Raises:
        ValueError: If `model` is no Vision Transformer of keras_vit, one that merges or prunes
            tokens or fills them up, or one whose layers belong to another model's graph.
    """
    config = config_of(model)
    # A layer tells its tensors in the first graph that it was called in.
    starts = keras.utils.get_source_inputs(model.get_layer("patches").output)
    if not any(start is images for start in starts for images in model.inputs):
        raise ValueError(
            "The layers of this model were first those of another, which it shares the weights "
            "with. Expected that one: look into the model that was given to "
            "`without_unread_tokens`, `with_even_tokens` or whatever made this one. Received: "
            f"model={model.name!r}"
        )
    if config.reduction is not None:
        option, whole = config.reduction, {"token_merging": 0, "token_keep_rate": 1.0}
        raise ValueError(
            "Tokens that were merged or pruned have no place in the image to be shown at. "
            f"Received: model={model.name!r}, {option}={getattr(config, option)}; look into a "
            "model of the same weights without it: keras_vit.from_checkpoint(path, "
            f"{option}={whole[option]})"
        )
    tokens = model.get_layer("block_0").input.shape[1]
    count = config.prefix_tokens + math.prod(config.grid)
    # The token that fills up would be attended to like any other.
    if tokens != count:
        raise ValueError(
            f"A block takes {tokens} tokens where the model has {count}, as in one that "
            "`with_even_tokens` filled up. Expected no others: look into the model that it was "
            "made from, or, of a file, into keras_vit.from_checkpoint(path). Received: "
            f"model={model.name!r}"
        )
    return config


def block_indices(blocks, depth):
    """The indices of the blocks asked for, each once, in the order of the network.

    Args:
        blocks: An int, a sequence of them (negative ones count from the end), or None for all.
        depth: Number of blocks of the model.

    Raises:
        ValueError: For a block that the model has not, or something else than ints.

    Example:

    >>> block_indices([-1, 0], depth=12)
    [0, 11]
    """
    if blocks is None:
        return list(range(depth))
    try:
        chosen = list(blocks)
    except TypeError:
        chosen = [blocks]
    if not all(map(is_int, chosen)):
        raise ValueError(
            f"`blocks` must be an int, a sequence of ints, or None. Received: blocks={blocks!r}"
        )
    for block in chosen:
        if not -depth <= block < depth:
            raise ValueError(
                f"The model has {depth} blocks, 0 to {depth - 1}; negative numbers count from the "
                f"end. Received: block {block}"
            )
    return sorted({operator.index(block) % depth for block in chosen})


def is_int(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


class SharedLayers(keras.layers.Layer):
    """A computation on the weights of layers that belong to another model.

    Calling those layers on the tensors of a graph would add a node to them, and with it change
    what the other model's layers tell of themselves. Here they are called inside a layer.

    Args:
        layers: The layers; this one hands on their weights, and computes in the dtype of the first.
        function: What `call` computes.
    """

    def __init__(self, layers, function):
        super().__init__(dtype=layers[0].dtype_policy, autocast=False)
        self.layers = layers
        self.function = function

    def call(self, inputs):
        return self.function(inputs)

    def get_config(self):
        raise NotImplementedError(
            "A model made for looking inside another one shares its weights and is not saved. Save "
            "the other model, and make this one again from it"
        )
