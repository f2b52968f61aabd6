"""Attention whose gradient takes fewer passes over the scores."""

import numpy as np
from keras import ops

from keras_vit.layers.one_pass import (
    in_one_pass,
    row_sum,
    softmax_rounds_once,
    stays_in_this_process,
    widened,
)


def attention_softmax(scores, *, may_compile=False):
    """Softmax over the last axis, in float32 where the dtype is a shorter one.

    Args:
        scores: Tensor of shape `(..., queries, keys)`.
        may_compile: Whether XLA may compile it on TensorFlow outside of `in_this_process` too, as
            in training.

    Returns:
        A tensor of the shape and dtype of `scores`.

    Example:

    >>> attention_softmax(ops.zeros((1, 2, 4))).shape == (1, 2, 4)
    True
    """
    wide = widened(scores)
    is_short = wide.dtype != scores.dtype
    if is_short and stays_in_this_process() and softmax_rounds_once(scores.dtype):
        return ops.softmax(scores, axis=-1)
    if is_short and (may_compile or stays_in_this_process()):
        return in_one_pass(_softmax)(scores)
    return ops.cast(ops.softmax(wide, axis=-1), scores.dtype)


def masked(scores, mask):
    """`scores`, minus infinity where a key is not seen: the softmax leaves it out.

    Args:
        scores: Tensor of shape `(..., queries, keys)`.
        mask: Bool array that can be broadcast to it; or None, if all is seen.

    Example:

    >>> masked(ops.zeros((1, 2)), np.array([True, False])).shape == (1, 2)
    True
    """
    if mask is None:
        return scores
    return ops.where(mask, scores, ops.cast(-np.inf, scores.dtype))


def _softmax(scores):
    shares = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
    return shares / row_sum(shares)


def _gradient_of_scores(of_weights, weights, upstream, attended):
    return (of_weights - row_sum(upstream * attended)) * weights


def light_attention(query, key, value, mask=None):
    """`softmax(query @ key.T) @ value`, for training where there is no kernel for all of it.

    The gradient of the softmax has a sum over all keys. It is that over the heads' width of the
    result times its gradient ([Dao et al., 2022](https://arxiv.org/abs/2205.14135), appendix
    B.2): two passes over the scores instead of four. Where the softmax is saturated, the gradient's
    rounding error grows with the lengths of queries and keys, as in all such kernels.

    Args:
        query: Tensor of shape `(batch, heads, …, queries, head_dim)`.
        key: Tensor of shape `(batch, heads, …, keys, head_dim)`.
        value: Likewise.
        mask: Which keys are seen, as of `masked`; None for all.

    Returns:
        A tensor of the shape of `query`.

    Example:

    >>> tokens = ops.ones((2, 4, 5, 8))
    >>> light_attention(tokens, tokens, tokens).shape == (2, 4, 5, 8)
    True
    """

    @ops.custom_gradient
    def attend(query, key, value):
        scores = masked(ops.matmul(query, ops.swapaxes(key, -1, -2)), mask)
        weights = attention_softmax(scores, may_compile=True)
        attended = ops.matmul(weights, value)

        def gradient(upstream):
            of_weights = ops.matmul(upstream, ops.swapaxes(value, -1, -2))
            of_scores = in_one_pass(_gradient_of_scores)(of_weights, weights, upstream, attended)
            return (
                ops.matmul(of_scores, key),
                ops.matmul(ops.swapaxes(of_scores, -1, -2), query),
                ops.matmul(ops.swapaxes(weights, -1, -2), upstream),
            )

        return attended, gradient

    return attend(query, key, value)
