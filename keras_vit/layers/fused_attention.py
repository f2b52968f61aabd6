"""Attention by the backend's own kernel: cuDNN's on JAX, flash attention on PyTorch."""

import functools

import keras
from keras import ops


def fused_attention(query, key, value, *, scale, training):
    """`softmax(scale * query @ key.T) @ value`, without the scores in memory if there is a kernel.

    [Dao et al., 2022](https://arxiv.org/abs/2205.14135). JAX refuses to differentiate cuDNN's
    kernel for an odd number of tokens, and with a class token most grids have one (197, 577).
    They are filled up by a token that nobody attends to. On JAX
    `keras.config.disable_flash_attention()` turns the kernel off.

    Args:
        query: Tensor of shape `(batch, queries, heads, head_dim)`; as many as keys, or the first
            few.
        key: Tensor of shape `(batch, tokens, heads, head_dim)`.
        value: Likewise.
        scale: Number that the scores are multiplied by.
        training: Whether the layer is called for training; without it JAX differentiates the kernel
            for even numbers of tokens alone.

    Returns:
        A tensor of the shape of `query`.

    Example:

    >>> tokens = ops.ones((2, 5, 4, 8))
    >>> fused_attention(tokens, tokens, tokens, scale=0.1, training=True).shape == (2, 5, 4, 8)
    True
    """
    plain = functools.partial(ops.dot_product_attention, query, key, value, scale=scale)
    if keras.config.is_flash_attention_enabled() is False:
        return plain(flash_attention=False)
    if keras.backend.backend() != "jax":
        return plain()
    if query.shape[1] != key.shape[1]:
        # The scores of a few queries are small, the kernels are made for many.
        return plain(flash_attention=False)
    if not training or key.shape[1] % 2 == 0 or _is_tpu():
        return plain()
    if not _has_kernel(query, key, value):
        return plain(flash_attention=False)
    return attend_filled_up(query, key, value, scale=scale, implementation="cudnn")


def attend_filled_up(query, key, value, *, scale, implementation):
    """Attention on JAX over one token more, which is not attended to.

    Args:
        query: Array of shape `(batch, tokens, heads, head_dim)`.
        key: Likewise.
        value: Likewise.
        scale: Number that the scores are multiplied by.
        implementation: `"cudnn"` or `"xla"`, as of `jax.nn.dot_product_attention`.

    Returns:
        An array of the shape of `query`.
    """
    # Keras' operation takes no lengths, and a mask is for cuDNN a bias with a gradient.
    import jax

    tokens = query.shape[1]
    # One for each sample, under `jax.vmap` too: made of the samples.
    lengths = tokens + 0 * ops.cast(query[:, 0, 0, 0] != 0, "int32")
    attended = jax.nn.dot_product_attention(
        *map(_filled_up, (query, key, value)),
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return attended[:, :tokens]


def _filled_up(x):
    return ops.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)])


def _is_tpu():
    import jax

    # It has a kernel of its own, which takes any number.
    return jax.devices()[0].platform == "tpu"


def _has_kernel(query, key, value):
    """Whether Keras would give these to cuDNN: device, library, dtype and head width allow it."""
    import jax

    attend = functools.partial(ops.dot_product_attention, flash_attention=True)
    try:
        jax.eval_shape(attend, query, key, value)
    # What JAX' checks raise, by what is missing.
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True
