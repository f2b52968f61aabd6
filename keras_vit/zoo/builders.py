"""Models by name or by checkpoint."""

import dataclasses
import fnmatch
import inspect
from pathlib import Path

from keras_vit.checkpoints import CheckpointError, load_checkpoint, open_checkpoint
from keras_vit.checkpoints.positions import square_image_size
from keras_vit.layers.nearest import nearest_names
from keras_vit.models import VARIANTS, VisionTransformerConfig, vision_transformer
from keras_vit.models.variants import get_variant

WEIGHT_FILES = (".npz", ".safetensors", ".keras", ".weights.h5")


def list_models(pattern="*"):
    """Names that `create` knows.

    Args:
        pattern: Shell-style pattern.

    Example:

    >>> list_models("*32")
    ['vit_b32', 'vit_l32', 'vit_s32']
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create(
    variant,
    num_classes=1000,
    *,
    image_size=224,
    weights=None,
    include_top=True,
    pooling="token",
    class_token=True,
    representation_size=None,
    classifier_activation=None,
    include_preprocessing=True,
    preprocessing=None,
    activation=None,
    dropout=0.0,
    attention_dropout=0.0,
    drop_path=0.0,
    dtype=None,
    name=None,
):
    """Builds a Vision Transformer of a published size.

    Args:
        variant: One of `list_models()`, e.g. `"vit_b16"`.
        num_classes: Number of outputs of the head.
        image_size: Size of the images in pixels: an int, or (height, width); each side a multiple
            of the patch's.
        weights: None for random weights, or a path: a .npz file of Google's, a .safetensors file
            of timm's or its hub folder, a .keras or .weights.h5 file of ours.
        include_top: Whether the classification head is there.
        pooling: `"token"`, `"avg"` (mean of the patch tokens), `"map"` (attention pooling),
            `"token+avg"` (both, concatenated), or None (all tokens).
        class_token: Whether there is a class token.
        representation_size: Width of the tanh layer `pre_logits` before the head, or None.
        classifier_activation: Name of an activation of the head, or None for logits.
        include_preprocessing: Whether the model takes raw 0..255 pixels and scales them itself.
        preprocessing: `"inception"`, `"imagenet"`, a pair (mean, std) in units of 0..1, or a
            `keras_vit.models.Preprocessing`; None for what the weights say, `"inception"` for
            random ones.
        activation: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"`; None for what the weights'
            format says, exact for random ones.
        dropout: Dropout rate of tokens, MLPs and attention outputs, in [0, 1).
        attention_dropout: Dropout rate of the attention weights, in [0, 1).
        drop_path: Stochastic depth rate of the last block, in [0, 1), rising linearly from zero.
        dtype: Dtype policy, e.g. `"mixed_bfloat16"`; None for the global one.
        name: Name of the Keras model; `variant` if None.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, 3)`.

    Raises:
        ValueError: For an unknown name, a wrong argument, or weights that do not fit.
        FileNotFoundError: If `weights` is no file.

    Example:

    >>> create("vit_ti16", num_classes=100).count_params()
    5543716
    """
    fields = {
        **get_variant(variant),
        "num_classes": num_classes,
        "image_size": image_size,
        "include_top": include_top,
        "pooling": pooling,
        "class_token": class_token,
        "representation_size": representation_size,
        "classifier_activation": classifier_activation,
        "include_preprocessing": include_preprocessing,
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "drop_path": drop_path,
    }
    chosen = {"preprocessing": preprocessing, "activation": activation}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    config = VisionTransformerConfig(**fields, **chosen)
    if weights is None:
        return vision_transformer(config, dtype=dtype, name=name or variant)
    path = _weights_path(weights)
    with open_checkpoint(path) as checkpoint:
        config = _adopt_facts(config, chosen, checkpoint)
    model = vision_transformer(config, dtype=dtype, name=name or variant)
    load_checkpoint(model, path, accept=_accepted(chosen))
    return model


def from_checkpoint(path, num_classes=None, *, dtype=None, name=None, **fields):
    """Builds the model that a checkpoint describes, and loads it.

    Args:
        path: As `weights` of `create`, but .weights.h5, which does not tell the architecture.
        num_classes: Number of outputs; None keeps the checkpoint's head.
        dtype: Dtype policy, e.g. `"mixed_bfloat16"`; None for the global one.
        name: Name of the Keras model; the file's if None.
        **fields: Fields of `VisionTransformerConfig`, in place of what the file tells, or where it
            does not: `image_size`, `num_heads`, `preprocessing`, `activation`, `drop_path`, ….

    Returns:
        A functional `keras.Model`.

    Raises:
        ValueError: If the file is no checkpoint, or does not tell something that no argument
            says either.
        FileNotFoundError: If there is no such file.

    Example:

    ```python
    model = keras_vit.from_checkpoint("B_16-i21k.npz", num_classes=10)
    ```
    """
    path = _weights_path(path)
    config = checkpoint_config(path, num_classes, **fields)
    model = vision_transformer(config, dtype=dtype, name=name or _model_name(path))
    load_checkpoint(model, path, accept=_accepted(fields))
    return model


def checkpoint_config(path, num_classes=None, **fields):
    """The config of the model that a checkpoint describes.

    Args:
        path: As in `from_checkpoint`.
        num_classes: As in `from_checkpoint`.
        **fields: As in `from_checkpoint`; None stands for what the file tells.

    Returns:
        A `VisionTransformerConfig`.

    Raises:
        ValueError: As `from_checkpoint`.
    """
    names = {field.name for field in dataclasses.fields(VisionTransformerConfig)}
    for field in fields:
        if field not in names:
            raise TypeError(
                f"from_checkpoint() got an unknown argument. {nearest_names(field, names)} "
                f"Received: {field}={fields[field]!r}"
            )
    path = _weights_path(path)
    with open_checkpoint(path) as checkpoint:
        facts, positions = dict(checkpoint.facts), checkpoint.patch_positions
    if "patch_size" not in facts:
        raise CheckpointError(
            f"{path} stores weights without the architecture. Build the model "
            "(keras_vit.create) and pass the file as `weights`, or use a .keras file"
        )
    given = {key: value for key, value in fields.items() if value is not None}
    if "pooling" in fields:
        given["pooling"] = fields["pooling"]  # None is a pooling too.
    if num_classes is not None:
        given["num_classes"] = num_classes
        if num_classes != facts.get("num_classes"):
            facts.pop("representation_size", None)
    elif "num_classes" not in facts:
        given.setdefault("include_top", False)
    if "image_size" not in facts | given:
        size = square_image_size(positions, facts["patch_size"])
        if size is None:
            raise ValueError(
                f"{path} does not tell the image size: its {positions} patch positions are no "
                "square grid; pass `image_size`"
            )
        facts["image_size"] = size
    if "num_heads" not in facts | given:
        raise ValueError(f"{path} does not tell the number of heads; pass `num_heads`")
    known = facts | given
    if known.get("include_preprocessing", True) and "preprocessing" not in known:
        _ask_for_preprocessing(path)
    return VisionTransformerConfig(**known)


def _accepted(fields):
    """What `load_checkpoint` is to accept: what the caller decided in the file's place."""
    names = ("activation", "layer_norm_epsilon", "preprocessing")
    return tuple(name for name in names if fields.get(name) is not None)


def _adopt_facts(config, chosen, checkpoint):
    facts = checkpoint.facts
    unsaid = "preprocessing" not in facts | chosen and checkpoint.format != "keras"
    if config.include_preprocessing and unsaid:
        _ask_for_preprocessing(checkpoint.file.path)
    adopted = {
        name: facts[name]
        for name in ("activation", "preprocessing", "layer_norm_epsilon")
        if name in facts and name not in chosen
    }
    if config.pooling == facts.get("pooling", config.pooling) and config.pooling is not None:
        adopted["pool_norm"] = facts.get("pool_norm", False)
    return dataclasses.replace(config, **adopted)


def _ask_for_preprocessing(path):
    raise ValueError(
        f'{path} does not tell how images were scaled: pass preprocessing="inception" (mean and '
        'std 0.5; AugReg), "imagenet" (DeiT), a pair (mean, std), or put the hub\'s config.json '
        "beside the file"
    )


def _weights_path(weights):
    path = Path(weights).expanduser()
    looks_like_a_path = len(path.parts) > 1 or path.name.endswith(WEIGHT_FILES)
    if not path.exists() and not looks_like_a_path:
        raise ValueError(
            f"`weights` must be None or a path. Received: weights={str(weights)!r}, which is no "
            "file here. Published weights are not fetched by name yet: put the file somewhere and "
            'pass its path, e.g. weights="checkpoints/B_16.npz" (Google), or the folder with '
            "model.safetensors and config.json (timm)"
        )
    return path


def _model_name(path):
    stem = path.parent.name if path.name == "model.safetensors" else path.name.split(".")[0]
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in stem) or "vision_transformer"


def _named_builder(builder_name, variant):
    def builder(num_classes=1000, **options):
        return create(variant, num_classes, **options)

    row = ", ".join(f"{key} {value}" for key, value in VARIANTS[variant].items())
    builder.__name__ = builder.__qualname__ = builder_name
    builder.__doc__ = f"`create({variant!r}, …)`: {row}. Takes the arguments of `create`."
    signature = inspect.signature(create)
    builder.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return builder


ViTTi16 = _named_builder("ViTTi16", "vit_ti16")
ViTS8 = _named_builder("ViTS8", "vit_s8")
ViTS16 = _named_builder("ViTS16", "vit_s16")
ViTS32 = _named_builder("ViTS32", "vit_s32")
ViTB8 = _named_builder("ViTB8", "vit_b8")
ViTB16 = _named_builder("ViTB16", "vit_b16")
ViTB32 = _named_builder("ViTB32", "vit_b32")
ViTL16 = _named_builder("ViTL16", "vit_l16")
ViTL32 = _named_builder("ViTL32", "vit_l32")
ViTH14 = _named_builder("ViTH14", "vit_h14")
ViTg14 = _named_builder("ViTg14", "vit_g14")
