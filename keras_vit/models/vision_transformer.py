"""The architecture: a config in, a functional Keras model out, and back."""

import contextlib
import dataclasses
import gc

import keras

from keras_vit.layers.attention_pooling import AttentionPooling
from keras_vit.layers.image_preprocessing import ImagePreprocessing
from keras_vit.layers.initializers import bias_initializer, drawn_together, kernel_initializer
from keras_vit.layers.patch_dropout import PatchDropout
from keras_vit.layers.patch_encoder import PatchEncoder
from keras_vit.layers.patches import Patches
from keras_vit.layers.resnet_stem import ResNetStem
from keras_vit.layers.token_merging_block import TokenMergingBlock
from keras_vit.layers.token_pooling import TokenPooling
from keras_vit.layers.token_pruning_block import TokenPruningBlock
from keras_vit.layers.transformer_block import TransformerBlock
from keras_vit.models.config import VisionTransformerConfig
from keras_vit.models.preprocessing import Preprocessing


def vision_transformer(config, *, dtype=None, name=None):
    """Builds the Vision Transformer that `config` describes, with random weights.

    The layers are called `images → preprocessing → stem → patches → patch_encoder → patch_dropout →
    pre_norm → block_0 … → encoder_norm → pool → pool_norm → pre_logits → head`; those that the
    config leaves out are absent ([Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)). A
    distilled model has `pool_distillation` and `head_distillation` beside `pool` and `head`.

    Args:
        config: A `VisionTransformerConfig`.
        dtype: Dtype policy of all layers, e.g. `"mixed_bfloat16"`; None for the global one. The
            head computes in float32 where the policy is shorter.
        name: Name of the model.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, 3)`, any dtype, to
        `(batch, num_classes)`; to features `(batch, hidden_size)` without the top; `(batch,
        tokens, …)` without pooling; with `head_output="both"`, to a dict of two of these,
        `logits_cls` and `logits_dist`.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4,
    ...     image_size=(16, 32), num_classes=10,
    ... )
    >>> vision_transformer(config).output_shape
    (None, 10)
    """
    policy = keras.dtype_policies.get(dtype)
    with _without_collections(), drawn_together() as draw_kernels:
        images = keras.Input((*config.image_size, 3), name="images")
        x = _tokens(images, config, policy)
        x, sizes = _blocks(x, config, policy)
        if not config.pool_norm:
            x = _norm(config, policy, "encoder_norm")(x)
        outputs = _distilled_top(x, config, policy) if config.distillation_token else None
        if outputs is None:
            outputs = _top(x, sizes, config, policy)
        model = keras.Model(images, outputs, name=name or "vision_transformer")
        draw_kernels(model)
    return model


@contextlib.contextmanager
def _without_collections():
    """Building makes many objects and no garbage; a look through all of TensorFlow's takes longer
    than a fifth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _blocks(x, config, policy):
    """The tokens after the blocks, and a list of their sizes, empty where these are all one."""
    sizes = []
    for index, reduction in enumerate(config.block_reductions):
        (block,) = [_REDUCING_BLOCKS[name] for name in reduction] or [TransformerBlock]
        x = block(
            config.num_heads,
            config.mlp_dim,
            activation=config.activation,
            gated_mlp=config.gated_mlp,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            layer_scale=config.layer_scale,
            positions=config.attention_positions,
            grid=config.grid,
            prefix_tokens=config.prefix_tokens,
            window_size=config.window_sizes[index],
            rope_base=config.rope_base,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.drop_path * index / max(1, config.depth - 1),
            efficient_drop_path=config.efficient_drop_path,
            layer_norm_epsilon=config.layer_norm_epsilon,
            remat=config.remat,
            dtype=policy,
            name=f"block_{index}",
            **reduction,
        )(x, *sizes)
        if "token_merging" in reduction:
            x, *sizes = x
    return x, sizes


_REDUCING_BLOCKS: dict[str, type[TransformerBlock]] = {
    "token_merging": TokenMergingBlock,
    "token_keep_rate": TokenPruningBlock,
}


def _tokens(images, config, policy):
    x = images
    if config.include_preprocessing:
        x = ImagePreprocessing(
            **dataclasses.asdict(config.preprocessing), dtype=policy, name="preprocessing"
        )(x)
    if config.stem_blocks is not None:
        x = ResNetStem(
            config.stem_blocks,
            config.stem_width,
            rule=config.stem_rule,
            dtype=policy,
            name="stem",
        )(x)
    x = Patches(config.patch_size, dtype=policy, name="patches")(x)
    x = PatchEncoder(
        config.hidden_size,
        class_token=config.class_token,
        distillation_token=config.distillation_token,
        register_tokens=config.register_tokens,
        positions=config.token_positions,
        position_slots=config.position_slots,
        grid=config.grid,
        use_bias=config.patch_bias,
        dropout=config.dropout,
        dtype=policy,
        name="patch_encoder",
    )(x)
    if config.patch_dropout:
        x = PatchDropout(
            config.patch_dropout,
            prefix_tokens=config.prefix_tokens,
            dtype=policy,
            name="patch_dropout",
        )(x)
    return _norm(config, policy, "pre_norm")(x) if config.pre_norm else x


def _top(x, sizes, config, policy):
    if config.pooling == "map":
        x = AttentionPooling(
            config.num_heads,
            config.mlp_dim,
            activation=config.activation,
            prefix_tokens=config.prefix_tokens,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=policy,
            name="pool",
        )(x, *sizes)
    elif config.pooling is not None:
        sizes = [] if config.pooling == "token" else sizes
        x = _pool(x, config.pooling, config, policy, "pool", sizes)
    if config.pool_norm:
        x = _norm(config, policy, "pool_norm")(x)
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
    return _head(config, policy, "head", config.classifier_activation)(x)


def _distilled_top(x, config, policy):
    """Class and distillation token side by side, each with its head."""
    if config.pooling is None:
        both = [x]
    else:
        both = [
            _pool(x, pooling, config, policy, name)
            for pooling, name in (("token", "pool"), ("distillation", "pool_distillation"))
        ]
    if config.include_top:
        names = ("head", "head_distillation") if len(both) > 1 else ("head",)
        # The mean of both comes before the activation.
        averaged = len(both) > 1 and config.head_output != "both"
        activation = None if averaged else config.classifier_activation
        both = [
            _head(config, policy, name, activation)(part)
            for part, name in zip(both, names, strict=True)
        ]
    if len(both) == 1:
        return both[0]
    if config.head_output == "both":
        return dict(zip(("logits_cls", "logits_dist"), both, strict=True))
    x = keras.layers.Average(dtype=_head_dtype(policy), name="average")(both)
    if config.include_top and config.classifier_activation is not None:
        x = keras.layers.Activation(
            config.classifier_activation, dtype=_head_dtype(policy), name="average_activation"
        )(x)
    return x


def _norm(config, policy, name):
    return keras.layers.LayerNormalization(
        epsilon=config.layer_norm_epsilon, dtype=policy, name=name
    )


def _pool(x, pooling, config, policy, name, sizes=()):
    pool = TokenPooling(pooling, prefix_tokens=config.prefix_tokens, dtype=policy, name=name)
    return pool(x, *sizes)


def _head(config, policy, name, activation):
    return keras.layers.Dense(
        config.num_classes,
        activation=activation,
        kernel_initializer="zeros",
        dtype=_head_dtype(policy),
        name=name,
    )


def _head_dtype(policy):
    return "float32" if policy.compute_dtype in ("float16", "bfloat16") else policy


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
    encoder, stem = layers["patch_encoder"], layers.get("stem")
    positions = (encoder.positions, first.positions)
    fields = {
        "patch_size": layers["patches"].patch_size,
        "hidden_size": encoder.hidden_size,
        "depth": len(blocks),
        "image_size": tuple(model.inputs[0].shape[1:3]),
        "include_top": head is not None,
        "pooling": "map" if isinstance(pool, AttentionPooling) else getattr(pool, "pooling", None),
        "class_token": encoder.use_class_token,
        "distillation_token": encoder.use_distillation_token,
        "head_output": "both" if isinstance(model.output, dict) else "average",
        "register_tokens": encoder.register_count,
        "positions": "+".join(filter(None, positions)) or None,
        "position_slots": encoder.position_slots,
        "patch_bias": encoder.use_bias,
        "include_preprocessing": "preprocessing" in layers,
        "pre_norm": "pre_norm" in layers,
        "pool_norm": "pool_norm" in layers,
        "dropout": first.dropout_rate,
        "drop_path": blocks[-1].drop_path_rate,
        "patch_dropout": getattr(layers.get("patch_dropout"), "rate", 0.0),
        "token_merging": getattr(blocks[-1], "token_merging", 0),
        "token_keep_rate": min(getattr(block, "token_keep_rate", 1.0) for block in blocks),
    }
    fields |= {name: getattr(first, name) for name in _BLOCK_FIELDS}
    windows = [block.window_size for block in blocks if block.window_size is not None]
    if windows:
        fields |= {"window_size": windows[0], "global_blocks": len(blocks) - len(windows)}
    if stem is not None:
        fields |= {
            "stem_blocks": stem.blocks,
            "stem_width": stem.width,
            "stem_rule": stem.rule,
        }
    if head is not None:
        fields["num_classes"] = head.units
        activation = layers.get("average_activation", head).activation
        if activation is not keras.activations.linear:
            fields["classifier_activation"] = keras.activations.serialize(activation)
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


def whole_config_of(model):
    """`config_of` a model that is all that its config says: nothing was added to its layers.

    Args:
        model: A model that `vision_transformer` built, possibly saved and loaded since.

    Raises:
        ValueError: If `model` has not the layers of a `keras_vit` Vision Transformer, or others
            too, which one built from its config would lack.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> whole_config_of(vision_transformer(config)) == config
    True
    """
    config, added = config_of(model), added_layers(model)
    if added:
        raise ValueError(
            "Expected nothing but the layers of a keras_vit Vision Transformer. Received: "
            f"model={model.name!r}, which has besides: {', '.join(added)}; take the model as it "
            "was before, or this one as a .keras file"
        )
    return config


def added_layers(model):
    """Names of the layers and operations that `vision_transformer` did not make, in order.

    Example:

    >>> config = VisionTransformerConfig(
    ...     patch_size=4, hidden_size=32, depth=2, mlp_dim=64, num_heads=4, image_size=16
    ... )
    >>> model = vision_transformer(config)
    >>> added_layers(keras.Model(model.input, keras.layers.ReLU(name="relu")(model.output)))
    ['relu']
    """
    added, top = [], False
    # An operation comes after those whose outputs it takes.
    for operation in getattr(model, "operations", model.layers):
        top = top or operation.name in _TOP
        if not _is_ours(operation, top):
            added.append(operation.name)
    return added


def _is_ours(operation, top):
    if not isinstance(operation, keras.layers.Layer):
        # `with_even_tokens` fills up and cuts the blocks' tokens.
        return not top and type(operation).__name__ in ("Pad", "GetItem")
    if isinstance(operation, keras.layers.InputLayer):
        return True
    if isinstance(operation, TransformerBlock):
        return operation.name.startswith("block_")
    if operation.name == "pre_logits":
        return operation.activation is keras.activations.tanh
    return isinstance(operation, {**_LAYERS, **_TOP}.get(operation.name, ()))


_NORM, _DENSE = keras.layers.LayerNormalization, keras.layers.Dense
# By their names.
_LAYERS = {
    "preprocessing": ImagePreprocessing,
    "stem": ResNetStem,
    "patches": Patches,
    "patch_encoder": PatchEncoder,
    "patch_dropout": PatchDropout,
    "pre_norm": _NORM,
}
# After the blocks.
_TOP = {
    "encoder_norm": _NORM,
    "pool": (TokenPooling, AttentionPooling),
    "pool_distillation": TokenPooling,
    "pool_norm": _NORM,
    "head": _DENSE,
    "head_distillation": _DENSE,
    "average": keras.layers.Average,
    "average_activation": keras.layers.Activation,
}
# Fields that a block knows by the same name.
_BLOCK_FIELDS = (
    *("mlp_dim", "num_heads", "activation", "gated_mlp", "qkv_bias", "qk_norm", "layer_scale"),
    *("rope_base", "attention_dropout", "efficient_drop_path", "layer_norm_epsilon", "remat"),
)
