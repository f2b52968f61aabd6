"""What a Vision Transformer is: one dataclass."""

import dataclasses
from numbers import Integral
from typing import Any

from keras_vit.layers.activations import get_activation
from keras_vit.layers.patches import as_pair
from keras_vit.models.preprocessing import Preprocessing, get_preprocessing

POOLINGS = ("token", "avg", "map", "token+avg", None)


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
        representation_size: Width of the tanh layer `pre_logits` before the head, or None.
        classifier_activation: Name of an activation of the head, or None for logits.
        include_preprocessing: Whether the model takes raw 0..255 pixels and scales them itself.
        preprocessing: `"inception"`, `"imagenet"`, a pair (mean, std), or a `Preprocessing`.
        activation: The MLP's: `"gelu"` (exact), `"gelu_tanh"` or `"quick_gelu"`.
        dropout: Dropout rate of tokens, MLPs and attention outputs, in [0, 1).
        attention_dropout: Dropout rate of the attention weights, in [0, 1).
        drop_path: Stochastic depth rate of the last block, in [0, 1); it rises linearly from zero
            at the first.
        layer_norm_epsilon: Epsilon of every norm.
        pool_norm: Whether the last norm follows the pooling instead of preceding it, as in timm's
            mean-pooled models and MAE's.

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
    representation_size: int | None = None
    classifier_activation: str | None = None
    include_preprocessing: bool = True
    preprocessing: Preprocessing | Any = "inception"
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    layer_norm_epsilon: float = 1e-6
    pool_norm: bool = False

    def __post_init__(self):
        set_field = object.__setattr__
        set_field(self, "patch_size", as_pair(self.patch_size, "patch_size"))
        set_field(self, "image_size", as_pair(self.image_size, "image_size"))
        set_field(self, "preprocessing", get_preprocessing(self.preprocessing))
        for side, size, patch in zip(
            ("height", "width"), self.image_size, self.patch_size, strict=True
        ):
            if size % patch:
                below = size // patch * patch
                nearest = f"{below} or {below + patch}" if below else f"{patch}"
                raise ValueError(
                    f"Each side of `image_size` must be a multiple of the patch's ({patch} px). "
                    f"Received: image_size={self.image_size}, whose {side} would fit as "
                    f"{nearest}"
                )
        counts = ("hidden_size", "depth", "mlp_dim", "num_heads")
        if self.include_top:
            counts += ("num_classes",)
        if self.representation_size is not None:
            counts += ("representation_size",)
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a positive int. Received: {name}={value!r}")
            set_field(self, name, int(value))
        if self.hidden_size % self.num_heads:
            raise ValueError(
                "`hidden_size` must be a multiple of `num_heads`. Received: "
                f"hidden_size={self.hidden_size}, num_heads={self.num_heads}"
            )
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1). Received: {name}={getattr(self, name)}"
                )
        if not self.layer_norm_epsilon > 0:
            raise ValueError(
                "`layer_norm_epsilon` must be positive. Received: "
                f"layer_norm_epsilon={self.layer_norm_epsilon}"
            )
        if self.pooling not in POOLINGS:
            known = ", ".join(map(repr, POOLINGS))
            raise ValueError(f"`pooling` must be one of {known}. Received: {self.pooling!r}")
        if self.pooling in ("token", "token+avg") and not self.class_token:
            raise ValueError(
                f"`pooling={self.pooling!r}` needs a class token. Received: class_token=False; "
                'pool with "avg" or "map" instead'
            )
        if self.pool_norm and self.pooling is None:
            raise ValueError("`pool_norm=True` needs a pooling. Received: pooling=None")
        get_activation(self.activation)

    @property
    def grid(self):
        """Rows and columns of patches."""
        return tuple(
            size // patch for size, patch in zip(self.image_size, self.patch_size, strict=True)
        )

    @property
    def prefix_tokens(self):
        """Number of tokens before the patches."""
        return int(self.class_token)
