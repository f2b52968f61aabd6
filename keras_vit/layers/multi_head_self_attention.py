"""Multi-head self-attention with one projection for queries, keys and values."""

import functools
import math

import keras
from keras import ops

from keras_vit.layers.composite_layer import CompositeLayer
from keras_vit.layers.fused_attention import fused_attention
from keras_vit.layers.initializers import bias_initializer, kernel_initializer
from keras_vit.layers.light_attention import attention_softmax, light_attention, masked
from keras_vit.layers.one_pass import in_one_pass, stays_in_this_process
from keras_vit.layers.patches import as_count, as_pair
from keras_vit.layers.rates import unless_zero
from keras_vit.layers.relative_position_bias import RelativePositionBias
from keras_vit.layers.rotary_positions import rotary_tables, rotate
from keras_vit.layers.token_reduction import size_bias
from keras_vit.layers.window_attention import inner_window, window_attention, window_mask

POSITIONS = ("rope", "relative", None)


@keras.saving.register_keras_serializable(package="keras_vit")
class MultiHeadSelfAttention(CompositeLayer):
    """Multi-head self-attention over tokens.

    [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.2.2; queries, keys and
    values come from one projection, `query_key_value`, in this order. The softmax is computed in
    float32 at least.

    Args:
        num_heads: Number of heads; it divides the width of the tokens.
        use_bias: Whether queries, keys and values have biases; `"query_value"`: keys have none
            ([BEiT](https://arxiv.org/abs/2106.08254)).
        qk_norm: Whether queries and keys are normed per head
            ([Dehghani et al., 2023](https://arxiv.org/abs/2302.05442)).
        positions: `"rope"` turns queries and keys by the patches' places, `"relative"` adds a
            learned bias for each offset of two patches, None does neither.
        grid: Rows and columns of patches; positions and windows need them.
        prefix_tokens: Number of tokens before the patches; positions and windows need it.
        window_size: Rows and columns of patches in a window: a patch attends to its window and to
            the tokens before the patches, these attend to all
            ([ViTDet](https://arxiv.org/abs/2203.16527)). An int for a square, None for attention to
            all tokens.
        rope_base: Longest period of the rotary positions, in units of half a grid.
        layer_norm_epsilon: Epsilon of the norms of queries and keys.
        dropout: Share of the attention weights that are dropped in training, in [0, 1).

    Call arguments:
        sizes: How many equal tokens each stands for, `(batch, tokens)`; it is attended to as so
            many (proportional attention, [Bolya et al., 2022](https://arxiv.org/abs/2210.09461)).
            None: each for itself.
        output_tokens: Number of tokens to compute, from the first; None for all. Each looks at
            all tokens all the same.
        attended_tokens: Number of tokens, from the first, that are attended to; None for all. With
            positions or windows there must be no others.
        return_attention: Whether to hand on the keys `(batch, heads, tokens, head width)` and the
            weights of attention `(batch, heads, output tokens, tokens)` beside the tokens.

    Input shape:
        `(batch, tokens, hidden_size)`.

    Output shape:
        The same; with `output_tokens`, so many tokens.

    Raises:
        ValueError: If `num_heads` does not divide the width of the tokens, positions or windows
            are asked for without a grid or with another number of tokens, both windows and relative
            positions, for tokens of other than three axes, or, when called, sizes or weights of
            attention in windows, or more tokens than there are.

    Example:

    >>> import numpy as np
    >>> layer = MultiHeadSelfAttention(num_heads=4)
    >>> layer(np.zeros((2, 10, 32), "float32")).shape == (2, 10, 32)
    True
    """

    def __init__(
        self,
        num_heads,
        *,
        use_bias=True,
        qk_norm=False,
        positions=None,
        grid=None,
        prefix_tokens=0,
        window_size=None,
        rope_base=100.0,
        layer_norm_epsilon=1e-6,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be positive. Received: num_heads={num_heads}")
        if use_bias not in (True, False, "query_value"):
            raise ValueError(
                f'`use_bias` must be True, False or "query_value". Received: use_bias={use_bias!r}'
            )
        if positions not in POSITIONS:
            raise ValueError(
                f"`positions` must be one of {POSITIONS}. Received: positions={positions!r}"
            )
        if positions is not None and grid is None:
            raise ValueError(f"`positions={positions!r}` needs `grid`. Received: grid=None")
        if window_size is not None:
            window_size = as_pair(window_size, "window_size")
            _check_windows(window_size, grid, positions)
        self.num_heads = num_heads
        self.use_bias = use_bias
        self.qk_norm = qk_norm
        self.positions = positions
        self.grid = None if grid is None else tuple(grid)
        self.prefix_tokens = as_count(prefix_tokens, "prefix_tokens")
        self.input_spec = keras.layers.InputSpec(ndim=3)
        self.window_size = window_size
        self._windows = inner_window(window_size, self.grid)
        self.rope_base = rope_base
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout_rate = dropout
        self.dropout = unless_zero(
            keras.layers.Dropout, dropout, **self.inner_options, name="dropout"
        )

    def build(self, input_shape):
        hidden_size = input_shape[-1]
        if hidden_size is None or hidden_size % self.num_heads:
            raise ValueError(
                "The width of the tokens must be a multiple of `num_heads`. "
                f"Received: width={hidden_size}, num_heads={self.num_heads}"
            )
        self._check_places(input_shape[1])
        self.head_dim = hidden_size // self.num_heads
        # An export folds it into the weights and sets it to one.
        self.query_scale = self.head_dim**-0.5
        self.query_key_value = self._dense(
            3 * hidden_size, "query_key_value", self.use_bias is True, columns=3
        )
        self.query_key_value.build(input_shape)
        self.query_value_bias = None
        if self.use_bias == "query_value":
            self.query_value_bias = self.add_weight(
                shape=(2, hidden_size), initializer=bias_initializer(), name="query_value_bias"
            )
        if self.qk_norm:
            self.query_norm = self._norm("query_norm")
            self.key_norm = self._norm("key_norm")
        if self.positions == "rope":
            self._rotary_tables = rotary_tables(self.grid, self.head_dim, self.rope_base)
        elif self.positions == "relative":
            self.relative_position_bias = RelativePositionBias(
                self.grid,
                self.num_heads,
                prefix_tokens=self.prefix_tokens,
                **self.inner_options,
                name="relative_position_bias",
            )
            self.relative_position_bias.build()
        self.projection = self._dense(hidden_size, "projection")
        self.projection.build(input_shape)

    def _dense(self, units, name, use_bias=True, columns=1):
        return keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer(columns),
            bias_initializer=bias_initializer(),
            **self.inner_options,
            name=name,
        )

    def _norm(self, name):
        norm = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, **self.inner_options, name=name
        )
        norm.build((None, None, None, self.head_dim))
        return norm

    def call(
        self,
        tokens,
        sizes=None,
        training=None,
        output_tokens=None,
        attended_tokens=None,
        return_attention=False,
    ):
        self.check_call(tokens, sizes, output_tokens, attended_tokens, return_attention)
        weights = None
        plain = self._is_plain(sizes, training) and not return_attention
        if plain and keras.backend.backend() != "tensorflow":
            query, key, value = self._query_key_value(tokens, heads_first=False)
            query = query if output_tokens is None else query[:, :output_tokens]
            attended = fused_attention(
                query,
                key,
                value,
                scale=self.query_scale,
                training=training,
                attended_tokens=attended_tokens,
            )
        else:
            is_whole = self._windows is None
            query, key, value = self._heads(tokens, output_tokens if is_whole else None)
            if is_whole:
                if attended_tokens is not None:
                    key, value = key[:, :, :attended_tokens], value[:, :, :attended_tokens]
                if plain and training:
                    attended = light_attention(query, key, value)
                else:
                    weights = self._weights(query, key, sizes)
                    attended = ops.matmul(self.dropout(weights, training=training), value)
            else:
                attended = self._attend_in_windows(query, key, value, training)
                attended = attended[:, :, :output_tokens]
            attended = ops.transpose(attended, (0, 2, 1, 3))
        output = self._projected(attended)
        return (output, key, weights) if return_attention else output

    def _projected(self, attended):
        """The outputs for what all heads attended to, `(batch, tokens, heads, head width)`."""
        # Flat, for a plain matrix product: TensorFlow adds the bias in the same pass.
        width = self.num_heads * self.head_dim
        output = self.projection(ops.reshape(attended, (-1, width)))
        return ops.reshape(output, (-1, ops.shape(attended)[1], width))

    def call_in_parts(self, parts, output_tokens=None):
        """Outside training, the outputs for tokens in parts, without anything for all at once.

        The parts have nothing in common but their keys and values: a backend may compute them
        beside each other. For attention without positions and windows.

        Args:
            parts: Tensors `(batch, tokens, hidden_size)`, together the tokens in their order.
            output_tokens: Number of tokens to compute, all in the first part; None for all.

        Returns:
            A list of tensors, one for each part, or the first part's `output_tokens` alone.
        """
        heads = [self._heads(part) for part in parts]
        queries, keys, values = zip(*heads, strict=True)
        key, value = ops.concatenate(keys, axis=2), ops.concatenate(values, axis=2)
        if output_tokens is not None:
            queries = [queries[0][:, :, :output_tokens]]

        def attend(query):
            attended = ops.matmul(self._weights(query, key), value)
            return self._projected(ops.transpose(attended, (0, 2, 1, 3)))

        return [attend(query) for query in queries]

    def check_call(
        self,
        tokens,
        sizes=None,
        output_tokens=None,
        attended_tokens=None,
        return_attention=False,
    ):
        """Raises a ValueError for arguments of a call that would be ignored, or mix up tokens."""
        count = tokens.shape[1]
        self._check_places(count)
        # Windows would ignore sizes, and have no weights from each token to each other.
        for name, is_given in (
            ("sizes", sizes is not None),
            ("return_attention", return_attention),
        ):
            if self._windows is not None and is_given:
                raise ValueError(
                    f"`{name}` is not there for attention in windows: leave it out, or "
                    "`window_size`; `attention_weights(tokens)` has the weights of windows. "
                    f"Received: window_size={self.window_size}"
                )
        if attended_tokens is not None and self._needs_places():
            raise ValueError(
                "`attended_tokens` is not there for attention with positions or in windows: leave "
                f"it out. Received: attended_tokens={attended_tokens}, "
                f"positions={self.positions!r}, window_size={self.window_size}"
            )
        for name, asked in (
            ("output_tokens", output_tokens),
            ("attended_tokens", attended_tokens),
        ):
            if asked is not None and not 1 <= asked <= (count or asked):
                raise ValueError(
                    f"`{name}` must be positive and at most the number of tokens. Received: "
                    f"{name}={asked}, {count} tokens"
                )

    def _needs_places(self):
        return self.positions is not None or self.window_size is not None

    def _check_places(self, count):
        """Positions and windows have a place for each of `count` tokens, where that is known."""
        if count is None or not self._needs_places():
            return
        patches = math.prod(self.grid)
        if count != self.prefix_tokens + patches:
            fitting = f"; prefix_tokens={count - patches} would fit" if count >= patches else ""
            raise ValueError(
                "With positions or windows the tokens must be `prefix_tokens` and, after them, the "
                f"{patches} patches of `grid`. Received: {count} tokens, "
                f"prefix_tokens={self.prefix_tokens}, grid={self.grid}{fitting}"
            )

    def _is_plain(self, sizes, training):
        """Whether attention is the softmax of the products times the values, and nothing else.

        The backends' own attention, cuDNN's or flash attention, does no more; TensorFlow has none.
        """
        drops = bool(training) and self.dropout_rate > 0
        plain = self.positions != "relative" and self._windows is None and sizes is None
        return plain and not drops

    def attention_weights(self, tokens):
        """How much each token attends to each other: `(batch, heads, tokens, tokens)`."""
        query, key, _ = self._heads(tokens)
        if self._windows is None:
            return self._weights(query, key)
        mask = window_mask(self.grid, self._windows, self.prefix_tokens)
        return self._weights(query, key, mask=mask)

    def _attend_in_windows(self, query, key, value, training):
        is_light = training and not self.dropout_rate and keras.backend.backend() == "tensorflow"

        def attend(query, key, value, mask):
            if is_light:
                return light_attention(query, key, value, mask)
            weights = self.dropout(self._weights(query, key, mask=mask), training=training)
            return ops.matmul(weights, value)

        return window_attention(
            query,
            key,
            value,
            grid=self.grid,
            window_size=self._windows,
            prefix_tokens=self.prefix_tokens,
            attend=attend,
        )

    def _heads(self, tokens, output_tokens=None):
        """Scaled queries of so many tokens, keys and values; the heads come first."""
        if stays_in_this_process() and not self.qk_norm and self.positions != "rope":
            heads = in_one_pass(_scaled_heads(self.query_scale))(self._one_product(tokens))
            query, key, value = ops.unstack(heads, 3, axis=0)
            return query[:, :, :output_tokens], key, value
        query, key, value = self._query_key_value(tokens)
        query = query if output_tokens is None else query[:, :, :output_tokens]
        return query if self.query_scale == 1.0 else query * self.query_scale, key, value

    def _query_key_value(self, tokens, heads_first=True):
        """`(batch, heads, tokens, head width)` each, or with the tokens before the heads."""
        if not heads_first and self._has_three_products():
            flat = ops.reshape(tokens, (-1, tokens.shape[-1]))
            shape = (-1, ops.shape(tokens)[1], self.num_heads, self.head_dim)
            query, key, value = (ops.reshape(x, shape) for x in self._three_products(flat))
        elif heads_first:
            qkv = ops.transpose(self._one_product(tokens), (2, 0, 3, 1, 4))
            query, key, value = ops.unstack(qkv, 3, axis=0)
        else:
            query, key, value = ops.unstack(self._one_product(tokens), 3, axis=2)
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.positions == "rope":
            query, key = (self._turned(x, heads_first) for x in (query, key))
        return query, key, value

    def _one_product(self, tokens):
        """Queries, keys and values of all heads, `(batch, tokens, 3, heads, head width)`."""
        qkv = self.query_key_value(ops.reshape(tokens, (-1, tokens.shape[-1])))
        if self.query_value_bias is not None:
            qkv = qkv + ops.cast(self._bias(), qkv.dtype)
        return ops.reshape(qkv, (-1, ops.shape(tokens)[1], 3, self.num_heads, self.head_dim))

    def _has_three_products(self):
        """Whether queries, keys and values are better computed apart.

        cuDNN's attention takes whole arrays, and JAX would copy them out of that of all three.
        PyTorch's takes views. Small products are merged by XLA.
        """
        plain = getattr(self.query_key_value, "quantization_mode", None) is None
        return plain and keras.backend.backend() == "jax"

    def _three_products(self, flat):
        kernels, bias = ops.split(self.query_key_value.kernel, 3, axis=-1), self._bias()
        products = [ops.matmul(flat, kernel) for kernel in kernels]
        if bias is None:
            return products
        biases = ops.split(ops.cast(bias, products[0].dtype), 3)
        return [product + part for product, part in zip(products, biases, strict=True)]

    def _bias(self):
        """The one of queries, keys and values in a row, or None."""
        if self.query_value_bias is None:
            return self.query_key_value.bias
        query_bias, value_bias = self.query_value_bias[0], self.query_value_bias[1]
        return ops.concatenate([query_bias, ops.zeros_like(query_bias), value_bias])

    def _turned(self, x, heads_first):
        if heads_first:
            return rotate(x, *self._rotary_tables, self.prefix_tokens)
        return ops.swapaxes(self._turned(ops.swapaxes(x, 1, 2), True), 1, 2)

    def _weights(self, query, key, sizes=None, mask=None):
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        if self.positions == "relative":
            scores = self.relative_position_bias(scores)
        if sizes is not None:
            scores = scores + size_bias(sizes, scores.dtype)
        return attention_softmax(masked(scores, mask))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_output_spec(
        self,
        tokens,
        sizes=None,
        training=None,
        output_tokens=None,
        attended_tokens=None,
        return_attention=False,
    ):
        self.check_call(tokens, sizes, output_tokens, attended_tokens, return_attention)
        batch, count, hidden_size = self.compute_output_shape(tokens.shape)
        shape = (batch, output_tokens or count, hidden_size)
        shapes = [shape]
        if return_attention:
            shapes += [
                (batch, self.num_heads, count, self.head_dim),
                (batch, self.num_heads, output_tokens or count, count),
            ]
        specs = tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)
        return specs if return_attention else specs[0]

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_bias": self.use_bias,
            "qk_norm": self.qk_norm,
            "positions": self.positions,
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "window_size": self.window_size,
            "rope_base": self.rope_base,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout_rate,
        }


@functools.lru_cache(maxsize=16)
def _scaled_heads(scale):
    """Of all layers with this scale."""

    def scaled_heads(qkv):
        factors = ops.reshape(ops.convert_to_tensor([scale, 1.0, 1.0], qkv.dtype), (3, 1, 1))
        return ops.transpose(qkv * factors, (2, 0, 3, 1, 4))

    return scaled_heads


def _check_windows(window_size, grid, positions):
    if grid is None:
        raise ValueError(f"`window_size={window_size}` needs `grid`. Received: grid=None")
    if positions == "relative":
        raise ValueError(
            "Relative positions are defined between all patches, not inside windows: leave out "
            '`window_size`, or take other positions. Received: positions="relative", '
            f"window_size={window_size}"
        )
