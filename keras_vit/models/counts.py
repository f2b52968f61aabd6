"""What a Vision Transformer costs, from its config alone: parameters and multiply-adds."""

import math

from keras_vit.layers.relative_position_bias import CLASS_TOKEN_ENTRIES
from keras_vit.layers.residual_unit import EXPANSION
from keras_vit.layers.resnet_stem import stem_channels
from keras_vit.layers.token_reduction import merged_tokens, pruned_tokens
from keras_vit.layers.window_attention import inner_window, window_counts


def count_parameters(config):
    """Number of parameters of `vision_transformer(config)`, without building it.

    Args:
        config: A `VisionTransformerConfig`.

    Returns:
        An int, what `count_params()` of the model returns.

    Example:

    >>> from keras_vit.models import VARIANTS, VisionTransformerConfig
    >>> count_parameters(VisionTransformerConfig(**VARIANTS["vit_b16"]))
    86567656
    """
    return sum(parameters for parameters, _ in _parts(config))


def count_macs(config):
    """Multiply-adds that `vision_transformer(config)` spends on one image.

    Counted are convolutions, linear layers and the two products of attention, queries with keys
    and weights with values. Norms, softmax, activations, biases and other operations on single
    values are not, nor is what finds and merges tokens. Published tables count likewise: 17.6 G for
    ViT-B/16 at 224 px. Tools that do not see into fused attention miss its products, 0.7 G of
    these.

    Args:
        config: A `VisionTransformerConfig`.

    Returns:
        An int.

    Example:

    >>> from keras_vit.models import VARIANTS, VisionTransformerConfig
    >>> count_macs(VisionTransformerConfig(**VARIANTS["vit_b16"])) / 1e9
    17.563828224
    """
    return sum(macs for _, macs in _parts(config))


def count_flops(config):
    """Floating-point operations of one image: two for each multiply-add of `count_macs`.

    Papers mostly print multiply-adds under the name FLOPs.

    Args:
        config: A `VisionTransformerConfig`.

    Returns:
        An int.

    Example:

    >>> from keras_vit.models import VARIANTS, VisionTransformerConfig
    >>> count_flops(VisionTransformerConfig(**VARIANTS["vit_b16"])) / 1e9
    35.127656448
    """
    return 2 * count_macs(config)


# Each part of the model is a pair: its parameters, its multiply-adds.


def _parts(config):
    yield from _stem(config)
    yield from _embedding(config)
    tokens, *after = _tokens_after_blocks(config)
    for left, window_size in zip(after, config.window_sizes, strict=True):
        yield from _attention(config, tokens, window_size)
        yield from _mlp(config, left, gated=config.gated_mlp)
        tokens = left
        yield _norm(config.hidden_size, 2)
        if config.layer_scale is not None:
            yield _learned(config.hidden_size, 2)
    if not config.pool_norm:
        yield _norm(config.hidden_size)
    yield from _top(config)


def _tokens_after_blocks(config):
    """The number of tokens before the first block, and after each."""
    patches = math.prod(config.grid)
    counts = [patches]
    for reduction in config.block_reductions:
        patches -= merged_tokens(patches, reduction.get("token_merging", 0))
        patches -= pruned_tokens(patches, reduction.get("token_keep_rate", 1.0))
        counts.append(patches)
    return [config.prefix_tokens + count for count in counts]


def _linear(inputs, outputs, times, bias=True):
    """A linear layer that is applied `times` times: to so many tokens, or pixels."""
    return inputs * outputs + bias * outputs, times * inputs * outputs


def _learned(*shape):
    return math.prod(shape), 0


def _norm(width, count=1):
    return _learned(2, width, count)


def _stem(config):
    if config.stem_blocks is None:
        return
    width, pixels = config.stem_width, math.prod(config.image_size) // 4
    yield _linear(7 * 7 * 3, width, pixels, bias=False)
    yield _norm(width)
    channels, pixels = width, pixels // 4
    for stage, units in enumerate(config.stem_blocks):
        width = config.stem_width * 2**stage
        for unit in range(units):
            inputs, channels = channels, EXPANSION * width
            yield _linear(inputs, width, pixels, bias=False)
            if unit == 0 and stage > 0:
                pixels //= 4
            yield _linear(3 * 3 * width, width, pixels, bias=False)
            yield _linear(width, channels, pixels, bias=False)
            yield _norm(width, 2)
            yield _norm(channels)
            if unit == 0:
                yield _linear(inputs, channels, pixels, bias=False)
                yield _norm(channels)


def _embedding(config):
    channels, patches = 3, math.prod(config.grid)
    if config.stem_blocks is not None:
        channels = stem_channels(config.stem_blocks, config.stem_width)
    inputs = math.prod(config.patch_size) * channels
    yield _linear(inputs, config.hidden_size, patches, bias=config.patch_bias)
    yield _learned(config.prefix_tokens, config.hidden_size)
    if config.token_positions == "learned":
        yield _learned(patches + config.prefix_positions, config.hidden_size)
    if config.pre_norm:
        yield _norm(config.hidden_size)


def _attention(config, tokens, window_size=None):
    width = config.hidden_size
    yield _linear(width, 3 * width, tokens, bias=False)
    yield _learned(width, {True: 3, "query_value": 2, False: 0}[config.qkv_bias])
    yield 0, 2 * _attended(config, tokens, window_size) * width
    yield _linear(width, width, tokens)
    if config.qk_norm:
        yield _norm(width // config.num_heads, 2)
    if config.attention_positions == "relative":
        rows, columns = config.grid
        offsets = (2 * rows - 1) * (2 * columns - 1)
        offsets += CLASS_TOKEN_ENTRIES * config.prefix_tokens
        yield _learned(offsets, config.num_heads)


def _attended(config, tokens, window_size):
    """Pairs of a query and a key, those with what fills up windows among them."""
    prefix = config.prefix_tokens
    window_size = inner_window(window_size, config.grid)
    if window_size is None:
        return tokens * tokens
    windows, patches = math.prod(window_counts(config.grid, window_size)), math.prod(window_size)
    return prefix * tokens + windows * patches * (prefix + patches)


def _mlp(config, times, gated=False):
    yield _linear(config.hidden_size, config.mlp_dim * (1 + gated), times)
    yield _linear(config.mlp_dim, config.hidden_size, times)


def _attention_pooling(config):
    width, patches = config.hidden_size, _tokens_after_blocks(config)[-1] - config.prefix_tokens
    yield _learned(width)  # the probe
    yield _linear(width, width, 1)
    yield _linear(width, 2 * width, patches)
    yield 0, 2 * patches * width
    yield _linear(width, width, 1)
    yield _norm(width)
    yield from _mlp(config, 1)


def _top(config):
    if config.pooling == "map":
        yield from _attention_pooling(config)
    width = config.hidden_size * (2 if config.pooling == "token+avg" else 1)
    times = _tokens_after_blocks(config)[-1] if config.pooling is None else 1
    if config.pool_norm:
        yield _norm(width)
    if config.representation_size is not None:
        yield _linear(width, config.representation_size, times)
        width = config.representation_size
    if config.include_top:
        heads = 2 if config.distillation_token and config.pooling is not None else 1
        for _ in range(heads):
            yield _linear(width, config.num_classes, times)
