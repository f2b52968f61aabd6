"""What a Vision Transformer is: one dataclass."""

import dataclasses
import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from keras_vit.layers.activations import get_activation
from keras_vit.layers.patches import as_pair
from keras_vit.layers.resnet_stem import stem_stride
from keras_vit.models.preprocessing import Preprocessing, get_preprocessing

# What each of these fields may be.
CHOICES = {
    "pooling": ("token", "avg", "map", "token+avg", None),
    "head_output": ("average", "both"),
    "position_slots": ("patches", "class", "all"),
    "qkv_bias": (True, False, "query_value"),
    "stem_rule": ("google", "timm"),
}
# Added to the tokens, and applied inside the attention; `positions` is one of either or "a+b".
TOKEN_POSITIONS = ("learned", "sincos1d", "sincos2d")
ATTENTION_POSITIONS = ("rope", "relative")
# ViTDet's, of 12, 24 or 32.
GLOBAL_BLOCKS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Everything that decides which function a Vision Transformer computes, but its weights.

    Args:
        patch_size: Side of a patch in pixels: an int, or (height, width).
        hidden_size: Width of a token.
        depth: Number of Transformer blocks.
        mlp_dim: Width of the hidden layer of a block's MLP.
        num_heads: Number of attention heads; it divides `hidden_size`.
        num_classes: Number of outputs of the head.
        image_size: Size of the images in pixels: an int, or (height, width), each a multiple of
            the patch's.
        include_top: Whether the classification head is there.
        pooling: `"token"` (the class token), `"avg"` (mean of the patch tokens), `"map"`
            (attention pooling), `"token+avg"` (both, concatenated), or None (all tokens).
        class_token: Whether there is a class token.
        distillation_token: Whether a second token with a head of its own follows it
            ([DeiT](https://arxiv.org/abs/2012.12877), section 4).
        head_output: What a distilled model returns: `"average"`, the mean of both heads' logits, or
            `"both"`, a dict of `logits_cls` and `logits_dist`.
        register_tokens: Number of register tokens
            ([Darcet et al., 2023](https://arxiv.org/abs/2309.16588)).
        representation_size: Width of the tanh layer `pre_logits` before the head, or None.
        classifier_activation: Name of an activation of the head, or None for logits.
        include_preprocessing: Whether the model takes raw 0..255 pixels and scales them itself.
        preprocessing: `"inception"`, `"imagenet"`, a pair (mean, std), or a `Preprocessing`.
        activation: The MLP's: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"` or `"silu"`.
        gated_mlp: Whether half of the MLP's first layer gates the other; with `"silu"` that is
            SwiGLU ([Shazeer, 2020](https://arxiv.org/abs/2002.05202)).
        positions: How tokens know where they are: `"learned"`, `"sincos1d"` or `"sincos2d"` (added
            to the tokens), `"rope"` or `"relative"` (inside the attention), one of either joined by
            a plus (`"learned+rope"`), or None.
        position_slots: Which tokens have learned positions: `"patches"`, `"class"` (the class and
            distillation tokens too) or `"all"` (the registers too).
        rope_base: Longest period of the rotary positions over half an image.
        window_size: Patches on a side of a window of attention: an int, or (rows, columns); None
            for attention between all patches
            ([ViTDet](https://arxiv.org/abs/2203.16527)). It has no weights of its own.
        global_blocks: With a window, how many blocks attend to all patches all the same, evenly
            spaced, the last one among them.
        patch_bias: Whether the projection of the patches has a bias.
        pre_norm: Whether a norm precedes the first block, as in CLIP.
        qkv_bias: Whether queries, keys and values have biases; `"query_value"`: keys have none.
        qk_norm: Whether queries and keys are normed per head.
        layer_scale: Initial value of learned scales of the residual branches, or None for none
            ([Touvron et al., 2021](https://arxiv.org/abs/2103.17239)).
        stem_blocks: Residual units of each stage of a ResNet before the patches; `()` is its root
            block alone, None no stem. Patches are then cut from its feature maps.
        stem_width: Channels of the stem's root block.
        stem_rule: Whose arithmetic the stem follows: `"google"` or `"timm"`.
        dropout: Dropout rate of tokens, MLPs and attention outputs, in [0, 1).
        attention_dropout: Dropout rate of the attention weights, in [0, 1).
        drop_path: Stochastic depth rate of the last block, in [0, 1); it rises linearly from zero
            at the first.
        efficient_drop_path: Whether the samples that stochastic depth drops are not computed: as
            many of each batch ([Oquab et al., 2023](https://arxiv.org/abs/2304.07193)).
        patch_dropout: Share of the patches that each sample leaves out in training, in [0, 1)
            ([Liu et al., 2022](https://arxiv.org/abs/2208.07220)).
        token_merging: Number of tokens that each block merges with their likes, at most half of
            its patches ([Bolya et al., 2022](https://arxiv.org/abs/2210.09461)).
        token_keep_rate: Share of the patches that three blocks, after one, two and three quarters
            of the depth, keep; each fuses those that the class token attends to least
            ([Liang et al., 2022](https://arxiv.org/abs/2202.07800)). In (0, 1].
        layer_norm_epsilon: Epsilon of every norm.
        pool_norm: Whether the last norm follows the pooling instead of preceding it, as in timm's
            mean-pooled models and MAE's.
        remat: Whether training computes each block's activations again in the backward pass instead
            of keeping them ([Chen et al., 2016](https://arxiv.org/abs/1604.06174)): less memory,
            more time, the same numbers.

    Raises:
        ValueError: If a value is out of range or two contradict each other.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=192, depth=6, mlp_dim=768, num_heads=3, image_size=32
    ... )
    >>> config.grid
    (8, 8)
    """

    patch_size: Any
    hidden_size: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int = 1000
    image_size: Any = 224
    include_top: bool = True
    pooling: str | None = "token"
    class_token: bool = True
    distillation_token: bool = False
    head_output: str = "average"
    register_tokens: int = 0
    representation_size: int | None = None
    classifier_activation: str | None = None
    include_preprocessing: bool = True
    preprocessing: Preprocessing | Any = "inception"
    activation: str = "gelu"
    gated_mlp: bool = False
    positions: str | None = "learned"
    position_slots: str = "class"
    rope_base: float = 100.0
    window_size: Any = None
    global_blocks: int = GLOBAL_BLOCKS
    patch_bias: bool = True
    pre_norm: bool = False
    qkv_bias: bool | str = True
    qk_norm: bool = False
    layer_scale: float | None = None
    stem_blocks: tuple[int, ...] | None = None
    stem_width: int = 64
    stem_rule: str = "google"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    efficient_drop_path: bool = False
    patch_dropout: float = 0.0
    token_merging: int = 0
    token_keep_rate: float = 1.0
    layer_norm_epsilon: float = 1e-6
    pool_norm: bool = False
    remat: bool = False

    def __post_init__(self):
        set_field = object.__setattr__
        self._check_switches()
        set_field(self, "patch_size", as_pair(self.patch_size, "patch_size"))
        set_field(self, "image_size", as_pair(self.image_size, "image_size"))
        set_field(self, "preprocessing", get_preprocessing(self.preprocessing))
        if self.stem_blocks is not None:
            set_field(self, "stem_blocks", tuple(self.stem_blocks))
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        get_activation(self.activation)
        self._check_numbers()
        self._check_positions()
        self._check_windows()
        self._check_image_size()
        self._check_pooling()
        self._check_fewer_tokens()
        set_field(self, "position_slots", self._needed_slots())

    def _check_switches(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.bool_):
                object.__setattr__(self, field.name, bool(value))
            elif field.type is bool:
                _check_choice(field.name, value, (True, False))

    def _check_numbers(self):
        counts = ("hidden_size", "depth", "mlp_dim", "num_heads", "stem_width", "global_blocks")
        if self.include_top:
            counts += ("num_classes",)
        if self.representation_size is not None:
            counts += ("representation_size",)
        may_be_zero = ("register_tokens", "token_merging")
        for name in (*counts, *may_be_zero):
            value, least = getattr(self, name), int(name not in may_be_zero)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                kind = "a positive int" if least else "an int of at least 0"
                hint = "; for no head, `include_top=False`" if name == "num_classes" else ""
                raise ValueError(f"`{name}` must be {kind}{hint}. Received: {name}={value!r}")
            object.__setattr__(self, name, int(value))
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "`hidden_size` must be a multiple of `num_heads`. Received: "
                f"hidden_size={self.hidden_size}, num_heads={self.num_heads}"
            )
        for name in ("dropout", "attention_dropout", "drop_path", "patch_dropout"):
            self._check_number(name, "in [0, 1)", lambda value: 0 <= value < 1)
        self._check_number("token_keep_rate", "in (0, 1]", lambda value: 0 < value <= 1)
        positive = ("layer_norm_epsilon", "rope_base")
        for name in positive if self.layer_scale is None else (*positive, "layer_scale"):
            self._check_number(name, "above 0", lambda value: 0 < value < math.inf)

    def _check_number(self, name, range_, is_inside):
        value = getattr(self, name)
        if not isinstance(value, Real) or isinstance(value, bool) or not is_inside(value):
            raise ValueError(f"`{name}` must be a number {range_}. Received: {name}={value!r}")

    def _check_positions(self):
        parts = self.positions.split("+") if self.positions else []
        kinds = [[part for part in parts if part in kind] for kind in _POSITION_KINDS]
        if sum(map(len, kinds)) != len(parts) or max(map(len, kinds)) > 1:
            raise ValueError(
                f"`positions` must be one of {', '.join(TOKEN_POSITIONS)}, one of "
                f"{', '.join(ATTENTION_POSITIONS)}, one of either joined by a plus, or None. "
                f"Received: positions={self.positions!r}"
            )
        set_to = "+".join(part for kind in kinds for part in kind) or None
        object.__setattr__(self, "positions", set_to)
        if "relative" in parts and (self.distillation_token or self.register_tokens):
            raise ValueError(
                'Relative positions know patches and a class token only. Received: positions="'
                f'{self.positions}", distillation_token={self.distillation_token}, '
                f"register_tokens={self.register_tokens}"
            )

    def _check_windows(self):
        if self.window_size is None:
            if self.global_blocks != GLOBAL_BLOCKS:
                raise ValueError(
                    "Without windows every block attends to all patches: `global_blocks` needs a "
                    f"`window_size`. Received: global_blocks={self.global_blocks}, window_size=None"
                )
            return
        object.__setattr__(self, "window_size", as_pair(self.window_size, "window_size"))
        if self.global_blocks >= self.depth:
            raise ValueError(
                "With a `window_size`, `global_blocks` must be less than `depth`; where all blocks "
                f"are global, leave out the window. Received: global_blocks={self.global_blocks}, "
                f"depth={self.depth}, window_size={self.window_size}"
            )
        if self.attention_positions == "relative":
            raise ValueError(
                "Relative positions are defined between all patches, not inside windows: leave out "
                f'`window_size`, or take other positions. Received: positions="{self.positions}", '
                f"window_size={self.window_size}"
            )

    def _check_image_size(self):
        for side, size, patch in zip(
            ("height", "width"), self.image_size, self.patch_stride, strict=True
        ):
            if size % patch:
                below = size // patch * patch
                nearest = f"{below} or {below + patch}" if below else f"{patch}"
                raise ValueError(
                    f"Each side of `image_size` must be a multiple of the patch's ({patch} px). "
                    f"Received: image_size={self.image_size}, whose {side} would fit as "
                    f"{nearest}"
                )

    def _check_pooling(self):
        if self.pooling in ("token", "token+avg") and not self.class_token:
            raise ValueError(
                f"`pooling={self.pooling!r}` needs a class token. Received: class_token=False; "
                'pool with "avg" or "map" instead'
            )
        if self.pool_norm and self.pooling is None:
            raise ValueError("`pool_norm=True` needs a pooling. Received: pooling=None")
        if not self.distillation_token:
            if self.head_output != "average":
                raise ValueError(
                    f"`head_output={self.head_output!r}` needs a distillation token. Received: "
                    "distillation_token=False"
                )
            return
        unfit = {
            "class_token": not self.class_token,
            "pooling": self.pooling not in ("token", None),
            "representation_size": self.representation_size is not None,
            "pool_norm": self.pool_norm,
        }
        for name in (name for name, is_unfit in unfit.items() if is_unfit):
            raise ValueError(
                "A distilled model pools its class and distillation tokens, each with a head. "
                f"Received: distillation_token=True, {name}={getattr(self, name)!r}"
            )
        if self.head_output == "both" and self.pooling is None:
            raise ValueError(
                '`head_output="both"` needs a pooling, `pooling="token"`: without one, a single '
                "head reads all tokens. Received: pooling=None"
            )

    def _check_fewer_tokens(self):
        for option in ("patch_dropout" if self.patch_dropout else None, self.reduction):
            for other in ("positions", "window_size"):
                needs_places = (
                    self.attention_positions if other == "positions" else self.window_size
                )
                if option and needs_places:
                    self._refuse_fewer_tokens(option, other, "needs every patch in its place")
        if not self.reduction:
            return
        for option in ("remat", "efficient_drop_path"):
            if getattr(self, option):
                self._refuse_fewer_tokens(self.reduction, option, "is not there for such blocks")
        if self.pooling is None:
            self._refuse_fewer_tokens(self.reduction, "pooling", "hands on patches in their places")
        if self.token_keep_rate < 1:
            if self.token_merging:
                self._refuse_fewer_tokens("token_keep_rate", "token_merging", "is the other way")
            if self.pooling != "token":
                self._refuse_fewer_tokens(
                    "token_keep_rate", "pooling", "does not read the class token alone"
                )

    def _refuse_fewer_tokens(self, option, other, reason):
        raise ValueError(
            f"`{option}` does not go with this `{other}`, which {reason}. Received: "
            f"{option}={getattr(self, option)!r}, {other}={getattr(self, other)!r}"
        )

    def _needed_slots(self):
        """The least `position_slots` that says the same."""
        slots = self.position_slots if self.token_positions == "learned" else "patches"
        if slots == "all" and not self.register_tokens:
            slots = "class"
        return slots if slots == "all" or self.class_token else "patches"

    @property
    def token_positions(self):
        """The positions that are added to the tokens, or None."""
        return _member(self.positions, TOKEN_POSITIONS)

    @property
    def attention_positions(self):
        """The positions that the attention applies, or None."""
        return _member(self.positions, ATTENTION_POSITIONS)

    @property
    def reduction(self):
        """The field by which blocks leave out tokens, or None."""
        if self.token_merging:
            return "token_merging"
        return "token_keep_rate" if self.token_keep_rate < 1 else None

    @property
    def block_reductions(self):
        """For each block the field, with its value, by which it leaves out tokens; {} for none."""
        if self.token_merging:
            return ({"token_merging": self.token_merging},) * self.depth
        if self.token_keep_rate == 1:
            return ({},) * self.depth
        # Of 12 blocks the 4th, 7th and 10th, of 16 the 5th, 9th and 13th, as published.
        pruning = {self.depth * quarter // 4 for quarter in (1, 2, 3)}
        return tuple(
            {"token_keep_rate": self.token_keep_rate} if index in pruning else {}
            for index in range(self.depth)
        )

    @property
    def patch_stride(self):
        """Pixels from patch to patch: (height, width)."""
        stride = 1 if self.stem_blocks is None else stem_stride(self.stem_blocks)
        return tuple(stride * patch for patch in self.patch_size)

    @property
    def grid(self):
        """Rows and columns of patches."""
        return tuple(
            size // patch for size, patch in zip(self.image_size, self.patch_stride, strict=True)
        )

    @property
    def prefix_tokens(self):
        """Number of tokens before the patches."""
        return self.class_token + self.distillation_token + self.register_tokens

    @property
    def window_sizes(self):
        """The window of each block, None for those that attend to all patches.

        Example:

        >>> config = VisionTransformerConfig(
        ...     patch_size=4, hidden_size=32, depth=6, mlp_dim=64, num_heads=4, image_size=32,
        ...     window_size=4, global_blocks=2,
        ... )
        >>> config.window_sizes
        ((4, 4), (4, 4), None, (4, 4), (4, 4), None)
        """
        many, depth = self.global_blocks, self.depth
        # One where a multiple of depth / global_blocks is passed: the last block is.
        is_global = [(index + 1) * many // depth > index * many // depth for index in range(depth)]
        return tuple(None if whole else self.window_size for whole in is_global)

    @property
    def prefix_positions(self):
        """How many of the prefix tokens have learned positions."""
        return {
            "patches": 0,
            "class": self.class_token + self.distillation_token,
            "all": self.prefix_tokens,
        }[self.position_slots]


_POSITION_KINDS = (TOKEN_POSITIONS, ATTENTION_POSITIONS)


def _member(positions, kinds):
    return next((part for part in (positions or "").split("+") if part in kinds), None)


def _check_choice(name, value, choices):
    # An int equals a bool, and a list cannot be looked up: only what was meant passes.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        known = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")
