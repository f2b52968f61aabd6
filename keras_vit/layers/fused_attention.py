"""Attention by the backend's own kernel: cuDNN's on JAX, flash attention on PyTorch."""

import functools

import keras
from keras import ops

from keras_vit.layers.jax_device import is_cpu, is_tpu


def fused_attention(query, key, value, *, scale, training, attended_tokens=None):
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
        attended_tokens: How many tokens, from the first, are attended to; None for all.

    Returns:
        A tensor of the shape of `query`.

    Example:

    >>> tokens = ops.ones((2, 5, 4, 8))
    >>> fused_attention(tokens, tokens, tokens, scale=0.1, training=True).shape == (2, 5, 4, 8)
    True
    """
    tokens = key.shape[1]

    def plain(**options):
        attended = key, value
        if attended_tokens is not None:
            attended = key[:, :attended_tokens], value[:, :attended_tokens]
        return ops.dot_product_attention(query, *attended, scale=scale, **options)

    if keras.backend.backend() == "jax" and query.dtype == "float16" and is_cpu():
        # JAX adds up products of float16 in float32, which it cannot compile for a CPU.
        query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
        return ops.cast(plain(flash_attention=False), "float16")
    if keras.config.is_flash_attention_enabled() is False:
        return plain(flash_attention=False)
    if keras.backend.backend() != "jax":
        return plain()
    if query.shape[1] != tokens:
        # The scores of a few queries are small, the kernels are made for many.
        return plain(flash_attention=False)
    if attended_tokens is None and (not training or tokens % 2 == 0 or is_tpu()):
        # A TPU has a kernel of its own, which takes any number.
        return plain()
    if not has_kernel(query.shape, query.dtype):
        return plain(flash_attention=False)
    if attended_tokens is not None:
        return attend_to_first(attended_tokens, query, key, value, scale, "cudnn")
    filled_up = map(fill_up, (query, key, value))
    return attend_to_first(tokens, *filled_up, scale, "cudnn")[:, :tokens]


def attend_to_first(count, query, key, value, scale, implementation):
    """Attention on JAX to the first tokens alone.

    Args:
        count: How many are attended to.
        query: Array of shape `(batch, tokens, heads, head_dim)`.
        key: Likewise.
        value: Likewise.
        scale: Number that the scores are multiplied by.
        implementation: `"cudnn"` or `"xla"`, as of `jax.nn.dot_product_attention`.

    Returns:
        An array of the shape of `query`; the tokens after the first `count` are zero.
    """
    # Keras' operation takes no lengths, and a mask is for cuDNN a bias with a gradient.
    import jax

    # One for each sample, under `jax.vmap` too: made of the samples.
    lengths = count + 0 * ops.cast(query[:, 0, 0, 0] != 0, "int32")
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


def fill_up(x):
    """`x` with one token of zeros more, `(batch, tokens + 1, ...)`.

    >>> fill_up(ops.ones((2, 5, 8))).shape == (2, 6, 8)
    True
    """
    return ops.pad(x, [(0, 0), (0, 1), *[(0, 0)] * (len(x.shape) - 2)])


def has_kernel(shape, dtype):
    """Whether JAX computes attention with cuDNN: device, library, dtype and width allow it.

    Args:
        shape: `(batch, tokens, heads, head_dim)`.
        dtype: Of queries, keys and values.

    Example:

    >>> has_kernel((1, 16, 3, 64), "float64")
    False
    """
    if keras.backend.backend() != "jax" or keras.config.is_flash_attention_enabled() is False:
        return False
    if is_tpu():
        return False
    import jax

    attend = functools.partial(ops.dot_product_attention, flash_attention=True)
    tokens = jax.ShapeDtypeStruct(shape, dtype)
    try:
        jax.eval_shape(attend, tokens, tokens, tokens)
    # What JAX' checks raise, by what is missing.
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True
