"""The same outputs with an even number of tokens."""

import keras

from keras_vit.layers.fused_attention import fill_up, has_kernel
from keras_vit.layers.patch_dropout import PatchDropout
from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.models.cloning import uncompiled_clone


def with_even_tokens(model):
    """`model`, for training on JAX and a GPU: its blocks work on an even number of tokens.

    JAX refuses the gradient of cuDNN's attention for odd numbers, such as 197 and 577. To fill
    them up within attention costs a copy of queries, keys, values and outputs, and of the gradient
    of each, in every block. Here the tokens are filled up once, by one that nobody attends to, and
    that only blocks see.

    Args:
        model: A model of `vision_transformer`, or any functional one.

    Returns:
        A functional model, not compiled, that shares the weights and computes the same numbers;
        `model` itself where cuDNN computes no attention, or a block needs its tokens as they are.
        To look inside or to cut, take `model`: its layers tell their tensors in its own graph
        alone.

    Example:

    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> model = vision_transformer(config)
    >>> with_even_tokens(model) is model  # In float32.
    True
    """
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    if not blocks or not all(map(_can_be_filled_up, blocks)) or _drops_patches(model):
        return model
    # Tensors that are filled up, by their ids, each with the number of its own tokens.
    filled: dict[int, tuple] = {}

    def call(layer, *arguments, **options):
        if not isinstance(layer, TransformerBlock):
            arguments, options = keras.tree.map_structure(own_tokens, (arguments, options))
            return layer(*arguments, **options)
        (tokens,) = arguments
        count = tokens.shape[1]
        if id(tokens) in filled:
            _, count = filled[id(tokens)]
        elif count % 2:
            tokens = fill_up(tokens)
        if tokens.shape[1] == count:
            return layer(tokens, **options)
        outputs = layer(tokens, attended_tokens=count, **options)
        if options.get("output_tokens") is None:
            filled[id(outputs)] = outputs, count
        return outputs

    def own_tokens(argument):
        if id(argument) not in filled:
            return argument
        tensor, count = filled[id(argument)]
        return tensor[:, :count]

    even = uncompiled_clone(model, clone_function=lambda layer: layer, call_function=call)
    # An output of a block itself would be filled up.
    return even if even.output_shape == model.output_shape else model


def _drops_patches(model):
    return any(isinstance(layer, PatchDropout) for layer in model.layers)


def _can_be_filled_up(block):
    attention = block.attention
    plain = block.positions is None and block.window_size is None and not block.attention_dropout
    shape = (1, 2, attention.num_heads, attention.head_dim)
    # Blocks that merge or prune have classes of their own.
    return plain and type(block) is TransformerBlock and has_kernel(shape, block.compute_dtype)
