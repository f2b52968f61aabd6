"""Where a model looks: the attention of its blocks, and attention rollout."""

import keras
import numpy as np
from keras import ops

from keras_vit.inspection.blocks import SharedLayers, block_indices, config_with_places, is_int
from keras_vit.layers.light_attention import attention_softmax

HEAD_FUSIONS = {"mean": ops.mean, "max": ops.max, "min": ops.min}


def attention_maps(model, blocks=None):
    """A model from images to the attention weights of each block.

    It shares the weights of `model`, which stays as it is: the weights of attention are computed
    from the block's input a second time, here only, and the images run no further than the
    last block asked for.

    Args:
        model: A model that keras_vit built, possibly saved and loaded since.
        blocks: The blocks to look at: an int, a sequence of them (negative ones count from the
            end), or None for all.

    Returns:
        A `keras.Model` from images as `model` takes them to a dict: `"block_0"` … of
        `(batch, heads, tokens, tokens)`, whose rows, one a query, sum to one. The tokens are, as
        far as the model has them, the class token, the distillation token, registers, then
        the patches row by row.

    Raises:
        ValueError: If `model` is no Vision Transformer of keras_vit, merges, prunes or fills up
            tokens, or has not a block asked for.

    Example:

    >>> import numpy as np
    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> model = vision_transformer(VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=3, mlp_dim=64, num_heads=4, image_size=(16, 32)
    ... ))
    >>> maps = attention_maps(model, blocks=[0, -1])(np.zeros((2, 16, 32, 3), "float32"))
    >>> {name: tuple(weights.shape) for name, weights in maps.items()}
    {'block_0': (2, 4, 33, 33), 'block_2': (2, 4, 33, 33)}
    """
    outputs = {}
    for index in block_indices(blocks, config_with_places(model).depth):
        block = model.get_layer(f"block_{index}")
        outputs[block.name] = SharedLayers([block], block.attention_weights)(block.input)
    if not outputs:
        raise ValueError(f"Nothing to look at. Received: blocks={blocks!r}")
    return keras.Model(model.input, outputs, name=f"{model.name}_attention_maps")


def patch_attention(model, block=-1, *, head_fusion=None):
    """A model from images to how much a block looks at each patch.

    The queries are the tokens that the head of the model reads: the class token (with the
    distillation token, their mean), the mean of the patches, or of both. Before a pooling
    by attention it is the mean of the patches.

    Args:
        model: A model that keras_vit built, possibly saved and loaded since.
        block: The block's number; a negative one counts from the end.
        head_fusion: `"mean"`, `"max"` or `"min"` over the heads; None keeps them apart.

    Returns:
        A `keras.Model` from images to float32 `(batch, heads, rows, columns)`, with a fusion
        `(batch, rows, columns)`: shares of the attention. What is missing to a sum of one goes to
        the tokens that are no patches.

    Raises:
        ValueError: As `attention_maps`, for something else than an int, and for an unknown fusion.

    Example:

    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> model = vision_transformer(VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=3, mlp_dim=64, num_heads=4, image_size=(16, 32)
    ... ))
    >>> patch_attention(model).output_shape
    (None, 4, 4, 8)
    """
    config = config_with_places(model)
    if head_fusion is not None:
        _check_head_fusion(head_fusion)
    if not is_int(block):
        raise ValueError(f"`block` must be an int. Received: block={block!r}")
    (index,) = block_indices(block, config.depth)
    layer = model.get_layer(f"block_{index}")
    readout = _readout(config)[None, None, None]

    def shares(tokens):
        weights = ops.cast(layer.attention_weights(tokens), "float32")
        heads = _to_grid(ops.matmul(readout, weights), config, config.num_heads)
        return heads if head_fusion is None else HEAD_FUSIONS[head_fusion](heads, axis=1)

    output = SharedLayers([layer], shares)(layer.input)
    return keras.Model(model.input, output, name=f"{model.name}_patch_attention")


def attention_rollout(model, *, head_fusion="mean", discard_ratio=0.0):
    """A model from images to how much each patch flows into what the head of the model reads.

    Attention rollout of [Abnar and Zuidema, 2020](https://arxiv.org/abs/2005.00928): the attention
    of each block, fused over its heads, plus the identity for the residual connection, each
    row scaled to a sum of one; the product of these matrices through all blocks. Of the
    product one row is shown, that of the class token (with a distillation token, the mean of the
    two rows); for a model that pools the mean of the patches, the mean of their rows; for
    `pooling="token+avg"`, the mean of both; for a pooling by attention, the rows weighted by
    the pooling's own attention. Without a pooling it is the class token's, or the patches' mean.

    Args:
        model: A model that keras_vit built, possibly saved and loaded since.
        head_fusion: `"mean"`, as in the paper, `"max"` or `"min"` over the heads.
        discard_ratio: Share of the smallest weights that each row of a block's fused attention
            loses first, in [0, 1); 0 in the paper.

    Returns:
        A `keras.Model` from images as `model` takes them to float32 `(batch, rows, columns)`:
        shares, not negative. What is missing to a sum of one comes from tokens that are no
        patches.

    Raises:
        ValueError: If `model` is no Vision Transformer of keras_vit, merges, prunes or fills up
            tokens, or an argument is out of its range.

    Example:

    >>> from keras_vit.models import VisionTransformerConfig, vision_transformer
    >>> model = vision_transformer(VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=3, mlp_dim=64, num_heads=4, image_size=(16, 32)
    ... ))
    >>> attention_rollout(model).output_shape
    (None, 4, 8)
    """
    config = config_with_places(model)
    _check_head_fusion(head_fusion)
    if not 0 <= discard_ratio < 1:
        raise ValueError(
            f"`discard_ratio` must be in [0, 1). Received: discard_ratio={discard_ratio}"
        )
    blocks = [model.get_layer(f"block_{index}") for index in range(config.depth)]
    pool = model.get_layer("pool") if config.pooling == "map" else None

    def fuse(weights):
        return HEAD_FUSIONS[head_fusion](ops.cast(weights, "float32"), axis=1)

    def rollout(tensors):
        if pool is None:
            relevance = _readout(config)[None, None]
        else:
            relevance = fuse(_pooling_weights(pool, tensors[-1]))
        # A row times the last matrix first: no product of two matrices is ever needed.
        for block, tokens in reversed(list(zip(blocks, tensors, strict=False))):
            weights = _discard_smallest(fuse(block.attention_weights(tokens)), discard_ratio)
            weights = weights + ops.eye(weights.shape[-1], dtype="float32")
            weights = weights / ops.sum(weights, axis=-1, keepdims=True)
            relevance = ops.matmul(relevance, weights)
        return _to_grid(relevance, config)

    layers = blocks if pool is None else [*blocks, pool]
    output = SharedLayers(layers, rollout)([layer.input for layer in layers])
    return keras.Model(model.input, output, name=f"{model.name}_attention_rollout")


def _check_head_fusion(head_fusion):
    if head_fusion not in HEAD_FUSIONS:
        raise ValueError(
            f"`head_fusion` must be one of {', '.join(HEAD_FUSIONS)}. "
            f"Received: head_fusion={head_fusion!r}"
        )


def _readout(config):
    """The share of each token in what the head reads: (tokens,)."""
    prefix, patches = config.prefix_tokens, config.grid[0] * config.grid[1]
    token, average = np.zeros(prefix + patches), np.zeros(prefix + patches)
    average[prefix:] = 1 / patches
    special = config.class_token + config.distillation_token
    token[:special] = 1 / max(1, special)
    if config.pooling == "token+avg":
        readout = (token + average) / 2
    elif config.pooling == "token" or (config.pooling is None and special):
        readout = token
    else:
        readout = average
    return readout.astype("float32")


def _to_grid(shares, config, *heads):
    patches = shares[..., config.prefix_tokens :]
    return ops.reshape(patches, (ops.shape(shares)[0], *heads, *config.grid))


def _discard_smallest(weights, ratio):
    """Sets the smallest weights of each row to zero; of equal ones all or none."""
    smallest_kept = ops.sort(weights, axis=-1)[..., int(ratio * weights.shape[-1])]
    return ops.where(weights >= smallest_kept[..., None], weights, 0.0)


def _pooling_weights(pool, tokens):
    """The attention of an `AttentionPooling`: (batch, heads, 1, tokens)."""
    tokens = tokens[:, pool.prefix_tokens :]
    heads = (pool.num_heads, pool.head_dim)
    query = pool.query(ops.reshape(pool.probe, (1, -1)))
    query = ops.reshape(query, (1, *heads, 1)) * pool.head_dim**-0.5
    key, _ = ops.split(pool.key_value(tokens), 2, axis=-1)
    key = ops.transpose(ops.reshape(key, (-1, tokens.shape[1], *heads)), (0, 2, 1, 3))
    scores = ops.matmul(key, query)
    weights = attention_softmax(ops.swapaxes(scores, -1, -2))
    return ops.pad(weights, [[0, 0], [0, 0], [0, 0], [pool.prefix_tokens, 0]])
