"""Models by name."""

import dataclasses
import fnmatch
import inspect

from keras_vit.layers.nearest import nearest_names
from keras_vit.models import VARIANTS, VisionTransformerConfig, vision_transformer
from keras_vit.models.variants import get_variant


def list_models(pattern="*"):
    """Names that `create` knows.

    Args:
        pattern: Shell-style pattern.

    Example:

    >>> list_models("vit_?32")
    ['vit_b32', 'vit_l32', 'vit_s32']
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create(
    variant, num_classes=None, *, weights=None, resampling=None, dtype=None, name=None, **fields
):
    """Builds a Vision Transformer of a published size and family.

    Args:
        variant: One of `list_models()`, e.g. `"vit_b16"`.
        num_classes: Number of outputs of the head; None for 1000, with a warning where the weights
            then have no such head.
        weights: None for random weights, a name of `list_weights()`, or a path: a .npz file of
            Google's, a .safetensors file of timm's, transformers' or torchvision's or its hub
            folder, a .keras or .weights.h5 file of ours.
        resampling: `"google"`, `"timm"`, `"hf"`, `"torchvision"` or `"siglip2"`: whose rule brings
            positions to another grid; None as of `load_checkpoint`.
        dtype: Dtype policy, e.g. `"mixed_bfloat16"`; None for the global one.
        name: Name of the Keras model; `variant` if None.
        **fields: Any field of `keras_vit.models.VisionTransformerConfig`, `image_size`, `pooling`,
            `drop_path`, `preprocessing`, … Of those not given, what the weights compute with
            (`pooling`, `activation`, `preprocessing`, …) is theirs, where they tell it, else the
            variant's. Sizes, the head (`include_top`, `representation_size`,
            `classifier_activation`) and rates are the variant's in any case.

    Returns:
        A functional `keras.Model` from images `(batch, height, width, 3)`. Where there are weights,
        its `load_report` says what became of them (`keras_vit.checkpoints.LoadReport`).

    Raises:
        TypeError: For an unknown argument.
        ValueError: For an unknown name, a wrong argument, or weights that do not fit.
        FileNotFoundError: If `weights` is no file.

    Example:

    >>> create("vit_ti16", num_classes=100).count_params()
    5543716
    """
    check_fields("create", fields)
    if resampling is not None:
        from keras_vit.checkpoints.positions import check_resampling

        check_resampling(resampling)
    chosen = {
        key: value
        for key, value in fields.items()
        if value is not None or key not in ("preprocessing", "activation")
    }
    row = get_variant(variant)
    head = {} if num_classes is None else {"num_classes": num_classes}
    config = VisionTransformerConfig(**row | head | chosen)
    name = name or variant
    if weights is None:
        return vision_transformer(config, dtype=dtype, name=name)
    # What reads checkpoints takes a while to import, and random weights do without.
    from keras_vit.zoo.pretrained import with_weights

    return with_weights(
        weights,
        variant,
        config,
        chosen,
        wants_head=num_classes is not None,
        resampling=resampling,
        dtype=dtype,
        name=name,
    )


def check_fields(function, fields):
    """Raises a TypeError where one of `fields` is none of the config's."""
    names = [field.name for field in dataclasses.fields(VisionTransformerConfig)]
    for field in fields:
        if field not in names:
            raise TypeError(
                f"{function}() got an unknown argument. {nearest_names(field, names)} "
                f"Received: {field}={fields[field]!r}"
            )


def _named_builder(builder_name, variant):
    def builder(num_classes=None, **options):
        return create(variant, num_classes, **options)

    row = ", ".join(f"{key} {value}" for key, value in VARIANTS[variant].items())
    builder.__name__ = builder.__qualname__ = builder_name
    builder.__doc__ = f"`create({variant!r}, …)`: {row}. Takes the arguments of `create`."
    builder.__signature__ = _signature(VARIANTS[variant])
    return builder


def _signature(row):
    """The arguments of a builder, with the defaults that its row and the config give them."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    # What it comes to: the builders tell a number that was left out from one that was not.
    parameters = [inspect.Parameter("num_classes", positional[0], default=1000)]
    for field in dataclasses.fields(VisionTransformerConfig):
        is_size = field.default is dataclasses.MISSING
        if is_size or field.name == "num_classes":
            continue
        default = row.get(field.name, field.default)
        default = None if field.name in ("preprocessing", "activation") else default
        parameters.append(inspect.Parameter(field.name, positional[1], default=default))
    for name in ("weights", "resampling", "dtype", "name"):
        parameters.append(inspect.Parameter(name, positional[1], default=None))
    return inspect.Signature(parameters)


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
