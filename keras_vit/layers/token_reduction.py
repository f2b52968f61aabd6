"""Fewer tokens: the like merged, the unattended fused."""

import functools
import math

from keras import ops

from keras_vit.layers.one_pass import in_one_pass, stays_in_this_process, widened


def merged_tokens(patches, count):
    """How many of `patches` tokens a block merges that is asked for `count`: at most half.

    Example:

    >>> merged_tokens(196, 8), merged_tokens(5, 8)
    (8, 2)
    """
    return min(count, patches // 2)


def pruned_tokens(patches, keep_rate):
    """How many tokens fewer than `patches` a pruning block hands on; the one it fuses counts.

    Example:

    >>> pruned_tokens(196, 0.5), pruned_tokens(196, 1.0)
    (97, 0)
    """
    # Less a rounding error: 0.7 * 10 is above 7.
    kept = math.ceil(round(keep_rate * patches, 6))
    return max(0, patches - kept - 1)


def merge_tokens(tokens, sizes, keys, count, prefix_tokens):
    """Merges the patch tokens that are most alike: one step of ToMe.

    [Bolya et al., 2022](https://arxiv.org/abs/2210.09461), section 3: every other token is paired
    with the most similar of the rest, by the cosine of their keys, and the most similar pairs
    become one, the mean weighted by sizes.

    Args:
        tokens: `(batch, tokens, width)`.
        sizes: How many patches each stands for: `(batch, tokens)`, float32.
        keys: The keys of attention: `(batch, heads, tokens, head width)`; their mean over the
            heads is compared.
        count: Number of tokens to merge; at most half of the patches are.
        prefix_tokens: Number of tokens before the patches; they are left alone.

    Returns:
        tokens and sizes, `count` fewer: the prefix, those of the first half that stayed, the
        second half, each in their order.
    """
    count = merged_tokens(tokens.shape[1] - prefix_tokens, count)
    if count == 0:
        return tokens, sizes
    return _whole(_merge_tokens, count=count, prefix_tokens=prefix_tokens)(tokens, sizes, keys)


def _merge_tokens(tokens, sizes, keys, *, count, prefix_tokens):
    # The mean over the heads, by its direction alone.
    keys = ops.cast(ops.mean(keys, axis=1), "float32")
    keys = keys * ops.rsqrt(ops.maximum(ops.sum(keys**2, axis=-1, keepdims=True), 1e-12))

    def halves(x):
        even, odd = every_other(x[:, prefix_tokens:])
        # As published, they alternate from the first token on, whatever it is.
        return (odd, even) if prefix_tokens % 2 else (even, odd)

    (sources, targets), (keys, target_keys) = halves(tokens), halves(keys)
    source_sizes, target_sizes = halves(sizes[..., None])
    scores = ops.matmul(keys, ops.swapaxes(target_keys, 1, 2))
    _, merged = ops.top_k(ops.max(scores, axis=-1), count)
    stay = _others(merged, sources.shape[1])
    # Not argmax, which Keras makes of operations on bits that other engines do not have.
    nearest = ops.top_k(take_tokens(scores, merged), 1)[1][..., 0]
    # (batch, targets, merged): which goes where.
    goes = ops.one_hot(nearest, targets.shape[1], axis=1, dtype="float32")
    merged_sizes = take_tokens(source_sizes, merged)
    new_sizes = target_sizes + ops.matmul(goes, merged_sizes)
    goes = goes * (ops.swapaxes(merged_sizes, 1, 2) / new_sizes)
    targets = targets * ops.cast(target_sizes / new_sizes, tokens.dtype) + ops.matmul(
        ops.cast(goes, tokens.dtype), take_tokens(sources, merged)
    )
    new_sizes = ops.concatenate([take_tokens(source_sizes, stay), new_sizes], axis=1)
    return (
        ops.concatenate([tokens[:, :prefix_tokens], take_tokens(sources, stay), targets], axis=1),
        ops.concatenate([sizes[:, :prefix_tokens], new_sizes[..., 0]], axis=1),
    )


def _others(indices, count):
    """The numbers below `count` that are not among `indices` `(batch, taken)`, in order.

    Without a sort of all of them, which takes as long as the rest of a merge.

    >>> import numpy as np
    >>> np.asarray(_others(ops.convert_to_tensor([[3, 0]]), 5)).tolist()
    [[1, 2, 4]]
    """
    taken = indices.shape[1]
    # How many others come before each of the taken.
    before = ops.sort(indices, axis=-1) - ops.arange(taken, dtype=indices.dtype)
    others = ops.arange(count - taken, dtype=indices.dtype)
    passed = ops.cast(before[:, :, None] <= others, "float32")
    # Summed as floats: OpenVINO 2026.4 gets the same sum of ints wrong.
    return others + ops.cast(ops.sum(passed, axis=1), indices.dtype)


def every_other(x):
    """The even and the odd of `x`, `(batch, count, width)`, from the first, which is even.

    For TensorFlow several times as fast as slices with a step.

    >>> import numpy as np
    >>> even, odd = every_other(ops.reshape(ops.arange(5), (1, 5, 1)))
    >>> np.asarray(even)[0, :, 0].tolist(), np.asarray(odd)[0, :, 0].tolist()
    ([0, 2, 4], [1, 3])
    """
    _, count, width = x.shape
    if count % 2:
        x = ops.pad(x, [(0, 0), (0, 1), (0, 0)])
    pairs = ops.reshape(x, (-1, (count + 1) // 2, 2 * width))
    even, odd = ops.split(pairs, 2, axis=-1)
    return even, odd[:, : count // 2]


def prune_tokens(tokens, attention, keep_rate, prefix_tokens):
    """Keeps the patch tokens that are attended to most, and fuses the others into one: EViT's step.

    [Liang et al., 2022](https://arxiv.org/abs/2202.07800), section 3. The fused token is the mean
    of the others, weighted by the attention they get; afterwards it is a token as the others. The
    authors' code takes the sum, whose weights are the attention itself and add up to less than
    one; the mean is on the scale of the tokens beside it, however little attention is left.

    Args:
        tokens: `(batch, tokens, width)`.
        attention: What each gets of the class token's attention: `(batch, tokens)`.
        keep_rate: Share of the patch tokens that are kept, rounded up.
        prefix_tokens: Number of tokens before the patches; they are left alone.

    Returns:
        The prefix, the tokens kept, the most attended first, and the fused one. All as they came,
        where there would not be fewer of them.
    """
    patches = tokens.shape[1] - prefix_tokens
    fewer = pruned_tokens(patches, keep_rate)
    if fewer == 0:
        return tokens
    kept = patches - fewer - 1
    return _whole(_prune_tokens, kept=kept, prefix_tokens=prefix_tokens)(tokens, attention)


def _prune_tokens(tokens, attention, *, kept, prefix_tokens):
    patches = tokens.shape[1] - prefix_tokens
    attention, order = ops.top_k(widened(attention[:, prefix_tokens:]), patches)
    shares = attention[:, kept:] / ops.sum(attention[:, kept:], axis=1, keepdims=True)
    ranked = take_tokens(tokens, prefix_tokens + order)
    fused = ops.matmul(ops.cast(shares[:, None], tokens.dtype), ranked[:, kept:])
    return ops.concatenate([tokens[:, :prefix_tokens], ranked[:, :kept], fused], axis=1)


@functools.lru_cache(maxsize=64)
def _bound(function, **options):
    return functools.partial(function, **options)


def _whole(function, **options):
    """`function` with these options, for TensorFlow's inference in this process as one operation.

    As some sixty small ones they take longer than the blocks gain.
    """
    function = _bound(function, **options)
    return in_one_pass(function) if stays_in_this_process() else function


def take_tokens(values, indices):
    """`values` `(batch, tokens, …)` at each sample's own `indices` `(batch, taken)`."""
    batch, count = ops.shape(values)[0], values.shape[1]
    # One flat gather, which every backend has as one operation.
    rows = indices + ops.cast(count * ops.arange(batch), indices.dtype)[:, None]
    return ops.take(ops.reshape(values, (-1, *values.shape[2:])), rows, axis=0)


def size_bias(sizes, dtype):
    """What is added to scores so that a token of a size is attended to as so many equal ones.

    ToMe's proportional attention: `(batch, 1, 1, tokens)` for `(batch, tokens)`.
    """
    return ops.cast(ops.log(ops.cast(sizes, "float32")), dtype)[:, None, None]
