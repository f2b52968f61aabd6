"""The architecture: a config in, a functional Keras model out, and back."""

import dataclasses

import keras

from keras_vit.layers.attention_pooling import AttentionPooling
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.layers.initializers import bias_initializer, kernel_initializer
from keras_vit.layers.patch_encoder import PatchEncoder
from keras_vit.layers.patches import Patches
from keras_vit.layers.token_pooling import TokenPooling
from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.models.config import VisionTransformerConfig
from keras_vit.models.preprocessing import Preprocessing


def vision_transformer(config, *, dtype=None, name=None):
    """Builds the Vision Transformer that `config` describes, with random weights.

    The layers are called `images → preprocessing → patches → patch_encoder → block_0 … →
    encoder_norm → pool → pool_norm → pre_logits → head`; those that the config leaves out are
    absent ([Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)).

    Args:
        config: A `VisionTransformerConfig`.
        dtype: Dtype policy of all layers, e.g. `"mixed_bfloat16"`; None for the global one. The
            head computes in float32 where the policy is shorter.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, 3)`, any dtype, to
        `(batch, num_classes)`; to features `(batch, hidden_size)` without the top; `(batch,
        tokens, …)` without pooling.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4,
    ...     image_size=(16, 32), num_classes=10,
    ... )
    >>> vision_transformer(config).output_shape
    (None, 10)
    """
    policy = keras.dtype_policies.get(dtype)
    images = x = keras.Input((*config.image_size, 3), name="images")
    if config.include_preprocessing:
        x = ImagePreprocessing(
            **dataclasses.asdict(config.preprocessing), dtype=policy, name="preprocessing"
        )(x)
    x = Patches(config.patch_size, dtype=policy, name="patches")(x)
    x = PatchEncoder(
        config.hidden_size,
        class_token=config.class_token,
        dropout=config.dropout,
        dtype=policy,
        name="patch_encoder",
    )(x)
    for index in range(config.depth):
        x = TransformerBlock(
            config.num_heads,
            config.mlp_dim,
            activation=config.activation,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.drop_path * index / max(1, config.depth - 1),
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=policy,
            name=f"block_{index}",
        )(x)
    outputs = _top(x, config, policy)
    return keras.Model(images, outputs, name=name or "vision_transformer")


def _top(x, config, policy):
    def norm(name):
        return keras.layers.LayerNormalization(
            epsilon=config.layer_norm_epsilon, dtype=policy, name=name
        )

    if not config.pool_norm:
        x = norm("encoder_norm")(x)
    if config.pooling == "map":
        x = AttentionPooling(
            config.num_heads,
            config.mlp_dim,
            activation=config.activation,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=policy,
            name="pool",
        )(x)
    elif config.pooling is not None:
        x = TokenPooling(
            config.pooling, prefix_tokens=config.prefix_tokens, dtype=policy, name="pool"
        )(x)
    if config.pool_norm:
        x = norm("pool_norm")(x)
    if config.representation_size is not None:
        x = keras.layers.Dense(
            config.representation_size,
            activation="tanh",
            kernel_initializer=kernel_initializer(),
            bias_initializer=bias_initializer(),
            dtype=policy,
            name="pre_logits",
        )(x)
    if not config.include_top:
        return x
    return keras.layers.Dense(
        config.num_classes,
        activation=config.classifier_activation,
        kernel_initializer="zeros",
        dtype="float32" if policy.compute_dtype in ("float16", "bfloat16") else policy,
        name="head",
    )(x)


def config_of(model):
    """The config that `vision_transformer` would rebuild `model` from, read off its layers.

    Args:
        model: A model that `vision_transformer` built, possibly saved and loaded since.

    Raises:
        ValueError: If `model` has not the layers of a `keras_vit` Vision Transformer.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> config_of(vision_transformer(config)) == config
    True
    """
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    missing = {"patches", "patch_encoder", "block_0"} - layers.keys()
    if missing:
        raise ValueError(
            "Expected a Vision Transformer built by keras_vit. Received: "
            f"model={getattr(model, 'name', model)!r}, which has no layer "
            f"{', '.join(sorted(missing))}"
        )
    blocks = [layer for layer in model.layers if isinstance(layer, TransformerBlock)]
    first, pool, head = blocks[0], layers.get("pool"), layers.get("head")
    fields = {
        "patch_size": layers["patches"].patch_size,
        "hidden_size": layers["patch_encoder"].hidden_size,
        "depth": len(blocks),
        "mlp_dim": first.mlp_dim,
        "num_heads": first.num_heads,
        "image_size": tuple(model.inputs[0].shape[1:3]),
        "include_top": head is not None,
        "pooling": "map" if isinstance(pool, AttentionPooling) else getattr(pool, "pooling", None),
        "class_token": layers["patch_encoder"].use_class_token,
        "include_preprocessing": "preprocessing" in layers,
        "activation": first.activation,
        "dropout": first.dropout_rate,
        "attention_dropout": first.attention_dropout,
        "drop_path": blocks[-1].drop_path_rate,
        "layer_norm_epsilon": first.layer_norm_epsilon,
        "pool_norm": "pool_norm" in layers,
    }
    if head is not None:
        fields["num_classes"] = head.units
        if head.activation is not keras.activations.linear:
            fields["classifier_activation"] = keras.activations.serialize(head.activation)
    if "pre_logits" in layers:
        fields["representation_size"] = layers["pre_logits"].units
    if "preprocessing" in layers:
        fields["preprocessing"] = Preprocessing(
            **{
                field.name: getattr(layers["preprocessing"], field.name)
                for field in dataclasses.fields(Preprocessing)
            }
        )
    return VisionTransformerConfig(**fields)
