"""The same outputs without the tokens that nobody reads."""

import keras

from keras_vit.layers.token_pooling import TokenPooling
from keras_vit.layers.transformer_block import TransformerBlock

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
        A functional model that shares the weights and computes the same numbers; `model` itself
        where all tokens of the last block are read, or there is no block.

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
    pools = [layer for layer in model.layers if isinstance(layer, TokenPooling)]
    if not blocks or not pools or any(pool.pooling not in _READ for pool in pools):
        return model
    tokens = max(_READ[pool.pooling] for pool in pools)

    def call(layer, *arguments, **options):
        if layer is blocks[-1]:
            options["output_tokens"] = tokens
        return layer(*arguments, **options)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
