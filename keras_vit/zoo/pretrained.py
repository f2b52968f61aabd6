"""Models with the weights of a file, or published ones."""

import contextlib
import dataclasses
import re
import warnings
from pathlib import Path

from keras_vit.checkpoints import CheckpointError, load_checkpoint, open_checkpoint
from keras_vit.checkpoints.positions import check_resampling
from keras_vit.layers.initializers import zeros_drawn
from keras_vit.models import VisionTransformerConfig, config_of, vision_transformer
from keras_vit.zoo.builders import check_fields
from keras_vit.zoo.catalog import find
from keras_vit.zoo.download import fetch_weights

WEIGHT_FILES = (".npz", ".safetensors", ".keras", ".h5", ".hdf5", ".json")


def with_weights(weights, variant, config, chosen, *, wants_head, resampling, dtype, name):
    """`create` where there are weights.

    Args:
        weights: As of `create`.
        variant: As of `create`.
        config: The `VisionTransformerConfig` asked for.
        chosen: The fields that the caller decided; the weights decide the others.
        wants_head: Whether the caller decided on the number of classes.
        resampling: As of `create`.
        dtype: As of `create`.
        name: Name of the Keras model.
    """
    path, published = _resolve(weights, variant)
    chosen = published | chosen
    config = dataclasses.replace(config, **chosen)
    with open_checkpoint(path) as checkpoint:
        config = _adopt_facts(config, chosen, checkpoint)
        facts = checkpoint.facts
    model = _built_for(facts, config, dtype, name)
    accept = _accepted(chosen)
    _load(model, path, wants_head, accept=accept, resampling=resampling, stacklevel=4)
    return model


def _load(model, path, wants_head, *, stacklevel=3, **options):
    """Loads a file, which the model's `load_report` accounts for; warns of a head that it lacks."""
    model.load_report = report = load_checkpoint(model, path, **options)
    if "head/kernel" in report.new and not wants_head:
        ours, theirs = config_of(model).num_classes, report.num_classes
        has = f"a head of {theirs} classes" if theirs else "no head"
        keep = f"num_classes={theirs} for the file's head" if theirs else "include_top=False"
        warnings.warn(
            f"{report.path} has {has}, so that the model's, of {ours}, is zero: it answers nothing "
            f"before it is trained. Pass num_classes={ours} if it will be, or {keep}",
            stacklevel=stacklevel,
        )


def _built_for(facts, config, dtype, name):
    """The model, its weights zero where a file of these facts holds all but a new head's."""
    parts = ("pooling", "representation_size", "num_classes")
    is_whole = all(facts.get(part) == getattr(config, part) for part in parts)
    draws_nothing = is_whole or (config.pooling != "map" and config.representation_size is None)
    with zeros_drawn() if draws_nothing else contextlib.nullcontext():
        return vision_transformer(config, dtype=dtype, name=name)


def from_checkpoint(path, num_classes=None, *, resampling=None, dtype=None, name=None, **fields):
    """Builds the model that a checkpoint describes, and loads it.

    Args:
        path: As `weights` of `create`, but our .weights.h5, which does not tell the architecture.
        num_classes: Number of outputs; None keeps the checkpoint's head.
        resampling: `"google"`, `"timm"`, `"hf"`, `"torchvision"` or `"siglip2"`: whose rule brings
            positions to another grid; None as of `load_checkpoint`.
        dtype: Dtype policy, e.g. `"mixed_bfloat16"`; None for the global one.
        name: Name of the Keras model; the file's if None.
        **fields: Fields of `VisionTransformerConfig`, in place of what the file tells, or where it
            does not: `image_size`, `num_heads`, `preprocessing`, `activation`, `drop_path`, ….
            Another `patch_size` resamples the kernel of the patches
            ([FlexiViT](https://arxiv.org/abs/2212.08013)).

    Returns:
        A functional `keras.Model`, whose `load_report` says what became of the file and what was
        assumed (`keras_vit.checkpoints.LoadReport`).

    Raises:
        ValueError: If the file is no checkpoint, or does not tell something that no argument
            says either.
        FileNotFoundError: If there is no such file.

    Example:

    ```python
    model = keras_vit.from_checkpoint("B_16-i21k.npz", num_classes=10)
    ```
    """
    _check_arguments(num_classes, fields)
    if resampling is not None:
        check_resampling(resampling)
    path, published = _resolve(path)
    fields = published | _given(fields)
    config = checkpoint_config(path, num_classes, **fields)
    with open_checkpoint(path) as checkpoint:
        facts, added = checkpoint.facts, checkpoint.added_layers
    wants_head = num_classes is not None
    if added and not wants_head:
        raise CheckpointError(
            f"{path} holds a Vision Transformer and besides {', '.join(added)}, which its like "
            "would lack: take keras.saving.load_model(path), or pass `num_classes` to train it on"
        )
    model = _built_for(facts, config, dtype, name or _model_name(path))
    _load(model, path, wants_head, accept=_accepted(fields), resampling=resampling)
    return model


def checkpoint_config(path, num_classes=None, **fields):
    """The config of the model that a checkpoint describes.

    Args:
        path: As in `from_checkpoint`.
        num_classes: As in `from_checkpoint`.
        **fields: As in `from_checkpoint`. None stands for what the file tells, but for `pooling`,
            `positions`, `window_size`, `layer_scale` and `representation_size`, of which it is a
            decision: to have none.

    Returns:
        A `VisionTransformerConfig`.

    Raises:
        ValueError: As `from_checkpoint`.
    """
    _check_arguments(num_classes, fields)
    path, published = _resolve(path)
    with open_checkpoint(path) as checkpoint:
        facts = dict(checkpoint.facts)
    if _is_weights_alone(checkpoint):
        raise CheckpointError(
            f"{path} stores weights without the architecture. Build the model "
            "(keras_vit.create) and pass the file as `weights`, or use a .keras file"
        )
    given = published | _given(fields)
    if num_classes is not None:
        given["num_classes"] = num_classes
        if num_classes != facts.get("num_classes"):
            facts.pop("representation_size", None)
    elif "num_classes" not in facts:
        given.setdefault("include_top", False)
    known = facts | given
    _ask_for(path, _ASKED_FOR, known)
    if known.get("include_preprocessing", True) and "preprocessing" not in known:
        _ask_for_preprocessing(path)
    try:
        return VisionTransformerConfig(**known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_arguments(num_classes, fields):
    """Refuses what no file makes right, before one is fetched."""
    check_fields("from_checkpoint", fields)
    if num_classes is not None and (num_classes == 0 or fields.get("include_top") is False):
        raise ValueError(
            "A model without a head has no classes: pass include_top=False and no `num_classes`. "
            f"Received: num_classes={num_classes}, include_top={fields.get('include_top', True)}"
        )


def _is_weights_alone(checkpoint):
    """Whether it is a .weights.h5 of ours, for the model that its user builds."""
    return checkpoint.format == "keras" and "patch_size" not in checkpoint.facts


def _given(fields):
    """The fields that were given a value; None is one of some."""
    nullable = ("pooling", "positions", "window_size", "layer_scale", "representation_size")
    return {key: value for key, value in fields.items() if value is not None or key in nullable}


# What a file may not tell, and no default may stand for.
_ASKED_FOR = {
    "patch_size": "the size of its patches",
    "image_size": (
        "the image size: it stores no positions, or none of a square grid that is certain"
    ),
    "positions": "the kind of its positions: it stores none",
    "num_heads": "the number of heads",
    "activation": (
        'the activation: "gelu" (exact; ViT, DeiT, some of CLIP and SigLIP), "gelu_tanh" (other '
        'SigLIP), "quick_gelu" (OpenAI\'s CLIP) or "silu"'
    ),
    "layer_norm_epsilon": (
        "the epsilon of its norms: 1e-6 (most), 1e-12 (transformers' ViT and DeiT) or 1e-5 (CLIP, "
        "DINOv3)"
    ),
}


# Those of them that differ from library to library, so that no builder's row tells them.
_LIBRARYS_OWN = ("activation", "layer_norm_epsilon")


def _ask_for(path, fields, known):
    for field in fields:
        if field not in known:
            raise ValueError(
                f"{path} does not tell {_ASKED_FOR[field]}; pass `{field}`, or put the hub's "
                "config.json beside its file"
            )


def _accepted(fields):
    """What `load_checkpoint` is to accept: what the caller decided in the file's place."""
    names = ("activation", "layer_norm_epsilon", "preprocessing", "patch_size", "num_heads")
    names += ("rope_base", "window_size", "global_blocks")
    # No windows are a decision too.
    return tuple(
        name
        for name in names
        if fields.get(name) is not None or (name == "window_size" and name in fields)
    )


# What a named builder's caller decides, or the builder's name does.
_NOT_ADOPTED = (
    *("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads", "image_size", "num_classes"),
    *("include_top", "representation_size", "classifier_activation", "include_preprocessing"),
    *("dropout", "attention_dropout", "drop_path", "efficient_drop_path", "patch_dropout"),
    *("remat", "head_output"),
)


def _adopt_facts(config, chosen, checkpoint):
    facts, path = checkpoint.facts, checkpoint.file.path
    if not _is_weights_alone(checkpoint):
        # Heads and epsilon go with a family, its GELU does not: OpenAI's CLIP and LAION's.
        of_the_family = checkpoint.ambiguous - {"activation"}
        _ask_for(path, _LIBRARYS_OWN, {*facts, *chosen, *of_the_family})
        if config.include_preprocessing and "preprocessing" not in facts | chosen:
            _ask_for_preprocessing(path)
    adopted = {
        name: value
        for name, value in facts.items()
        if name not in _NOT_ADOPTED and name not in chosen
    }
    if chosen.get("pooling", facts.get("pooling")) != facts.get("pooling"):
        adopted.pop("pool_norm", None)
    try:
        return dataclasses.replace(config, **adopted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _ask_for_preprocessing(path):
    raise ValueError(
        f'{path} does not tell how images were scaled: pass preprocessing="inception" (mean and '
        'std 0.5; AugReg), "imagenet" (DeiT), a pair (mean, std), or include_preprocessing=False '
        "for images that are scaled before; or put the hub's config.json beside its file"
    )


def _resolve(weights, variant=None):
    """The path that is meant, or that of published weights, once fetched; and what is known of
    these beside their files: fields of the config."""
    path = Path(weights).expanduser()
    looks_like_a_path = len(path.parts) > 1 or path.name.endswith(WEIGHT_FILES)
    if path.exists() or looks_like_a_path:
        return path, {}
    entry = find(str(weights), variant)
    known = {"preprocessing": entry.preprocessing, "activation": entry.activation}
    return fetch_weights(entry), {name: value for name, value in known.items() if value is not None}


def weights_path(weights):
    """The path that is meant: itself, or that of the published weights of this name, fetched.

    Args:
        weights: A path, or a name of `list_weights()`.

    Raises:
        ValueError: If it is neither.
        DownloadError: If the published weights cannot be had.
    """
    return _resolve(weights)[0]


def _model_name(path):
    stem = path.parent.name if path.name == "model.safetensors" else path.name.split(".")[0]
    # TensorFlow takes ASCII alone in the names of scopes, and neither _ nor - in front.
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_-.") or "vision_transformer"
