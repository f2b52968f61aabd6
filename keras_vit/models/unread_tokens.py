"""The same outputs without the tokens that nobody reads."""

import keras

from keras_vit.layers.token_pooling import TokenPooling
from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.models.cloning import uncompiled_clone

# Tokens that a pooling reads, from the first.
_READ = {"token": 1, "distillation": 2}


def without_unread_tokens(model):
    """`model`, its last block computing only the tokens that are read afterwards.

    A model that pools its class token reads one of the hundreds of tokens of the last block. With
    that block's other queries and its MLP on them, and their part of the backward pass, some 6 % of
    the work of a base model is left out. Fine-tuning, evaluation and export work on such a graph;
    the model itself keeps all tokens for those who look at its blocks.

    Args:
        model: A model of `vision_transformer`, or any functional one.

    Returns:
        A functional model, not compiled, that shares the weights and computes the same numbers;
        `model` itself where anything but norms and a pooling of single tokens reads the tokens of
        the last block, or there is no block. To look inside or to cut, take `model`: its layers
        tell their tensors in its own graph alone.

    Example:

    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> model = vision_transformer(config)
    >>> without_unread_tokens(model).get_layer("block_1") is model.get_layer("block_1")
    True
    """
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    pools = [layer for layer in model.layers if _reads_single_tokens(layer)]
    if not blocks or not pools:
        return model
    last, tokens = blocks[-1], max(_READ[pool.pooling] for pool in pools)
    # What holds the last block's tokens, by the tensors' ids.
    shortened: dict[int, keras.KerasTensor] = {}

    def call(layer, *arguments, **options):
        reads = any(id(x) in shortened for x in keras.tree.flatten((arguments, options)))
        passes = reads and _passes(layer, arguments, tokens)
        if reads and not passes and layer not in pools:
            raise _AllTokensAreRead
        if layer is last:
            options["output_tokens"] = tokens
        outputs = layer(*arguments, **options)
        if layer is last or passes:
            shortened.update((id(x), x) for x in keras.tree.flatten(outputs))
        return outputs

    try:
        shorter = uncompiled_clone(model, clone_function=lambda layer: layer, call_function=call)
    except _AllTokensAreRead:
        return model
    return model if any(id(x) in shortened for x in shorter.outputs) else shorter


def _reads_single_tokens(layer):
    return isinstance(layer, TokenPooling) and layer.pooling in _READ


class _AllTokensAreRead(Exception):
    """A layer reads more of the last block's tokens than its pooling."""


def _passes(layer, arguments, tokens):
    """Whether `layer` hands on the first `tokens` tokens, each computed from itself alone."""
    if isinstance(layer, keras.layers.LayerNormalization):
        return layer.axis in (-1, [-1])
    # A slice of the first, as `with_even_tokens` takes it.
    slices = arguments[1] if len(arguments) == 2 else None
    if not isinstance(slices, tuple) or len(slices) != 2 or slices[0] != slice(None):
        return False
    first = slices[1]
    if not isinstance(first, slice) or first != slice(None, first.stop):
        return False
    return first.stop is None or first.stop >= tokens
