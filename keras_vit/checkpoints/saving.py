"""Writes a model as one of the published formats, wholly or not at all."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_vit.checkpoints import google, huggingface, huggingface_config, timm, timm_config
from keras_vit.checkpoints.checkpoint import recognise
from keras_vit.checkpoints.descriptions import Description
from keras_vit.checkpoints.grids import prefix_positions
from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile
from keras_vit.checkpoints.tensor_writing import write_folder, write_npz
from keras_vit.layers.nearest import nearest_names
from keras_vit.models import VisionTransformerConfig, count_parameters, whole_config_of
from keras_vit.models.preprocessing import get_preprocessing

# Name → (the reading half, the writing half).
_FORMATS = {
    timm.FORMAT: (timm, timm_config.described),
    huggingface.FORMAT: (huggingface, huggingface_config.described),
    google.FORMAT: (google, google.described),
}
# What no format stores, and what the caller of a builder decides.
_NOT_STORED = (
    *("dropout", "attention_dropout", "drop_path", "efficient_drop_path", "patch_dropout", "remat"),
    *("include_preprocessing", "head_output"),
)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor to be written.

    Args:
        shape: Its shape.
        parts: (rule, number) of each weight that it holds: the tensor is the part of this number
            that the rule makes of the weight.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[Rule, int], ...]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a file will hold, before anything is written.

    Args:
        description: The model in the format's terms.
        tensors: Name in the file → `_Tensor`.
        obstacles: What the format does not express: field of the config or path of a weight →
            what a file of it would imply.
    """

    description: Description
    tensors: dict[str, _Tensor]
    obstacles: dict


def save_checkpoint(
    model, path, format="timm", *, preprocessing=None, class_names=None, overwrite=False
):
    """Writes a model's weights as a published format, for the format's own code to load.

    `from_checkpoint` reads every such file back into the same model, bit for bit. What the format
    cannot express is an error that lists it, before anything is written. timm takes the epsilon of
    norms from no file: one within 1e-6 of its architecture's, as transformers' 1e-12 is, is kept
    for `from_checkpoint` with a warning, and others are such errors. The file or folder appears
    whole or not at all; tensors are written one by one.

    Args:
        model: A model built by keras_vit.
        path: A folder for `"timm"` and `"hf"`, which then holds model.safetensors and config.json
            (for `"hf"` preprocessor_config.json too); a .npz file for `"google"`.
        format: `"timm"`, `"hf"` (transformers), or `"google"`: vision_transformer's names, or
            big_vision's where only that has such a model.
        preprocessing: How images are scaled, for a model built with `include_preprocessing=False`:
            `"inception"`, `"imagenet"`, a pair (mean, std) or a `Preprocessing`; None leaves it
            unsaid, with a warning.
        class_names: Names of the classes in the order of their index, for config.json.
        overwrite: Whether what this function wrote at `path` before may be replaced.

    Returns:
        The path.

    Raises:
        ValueError: For an unknown format, a wrong argument or a model that was cut, or if the
            format does not express the model; then the message says which formats do.
        FileExistsError: If `path` exists and may not be replaced.

    Example:

    ```python
    model = keras_vit.from_checkpoint("B_16-i21k.npz", num_classes=10, activation="gelu")
    keras_vit.save_checkpoint(model, "vit_b16_timm", format="timm")
    ```
    """
    if format not in _FORMATS:
        raise ValueError(f"Unknown format. {nearest_names(format, _FORMATS)} Received: {format!r}")
    config = _stated(whole_config_of(model), preprocessing)
    _check_class_names(config, class_names)
    weights = {weight.path: weight for weight in model.weights}
    plan = _make_plan(format, config, weights, class_names)
    if plan.obstacles:
        _refuse(format, config, weights, plan)
    _check_whole(model, config)
    for note in plan.description.notes:
        warnings.warn(note, stacklevel=2)
    tensors = {name: tensor.shape for name, tensor in plan.tensors.items()}

    def read(name):
        return _assembled(plan.tensors[name], weights, config)

    if format == google.FORMAT:
        return write_npz(path, tensors, read, overwrite=overwrite)
    description = plan.description
    texts = {"config.json": description.hub_config}
    if description.preprocessor_config is not None:
        texts["preprocessor_config.json"] = description.preprocessor_config
    return write_folder(path, tensors, read, _dtypes(plan, weights), texts, overwrite=overwrite)


def _stated(config, preprocessing):
    """The config with the preprocessing that a reader is to be told."""
    if config.include_preprocessing:
        if preprocessing is not None:
            raise ValueError(
                "`preprocessing` is for models without their own. Received: "
                f"preprocessing={preprocessing!r}, and the model scales its images by "
                f"{config.preprocessing}"
            )
        return config
    if preprocessing is None:
        warnings.warn(
            "The model was built with include_preprocessing=False and does not tell how its images "
            "are scaled, so the file will not say it either, and a reader asks or takes what is "
            'usual: pass preprocessing="inception" (mean and std 0.5), "imagenet", or a pair '
            "(mean, std)",
            stacklevel=3,
        )
        return config
    return dataclasses.replace(
        config, preprocessing=get_preprocessing(preprocessing), include_preprocessing=True
    )


def _check_whole(model, config):
    """What was cut off would be missing in the file, and nothing could read it."""
    floats = [weight for weight in model.weights if keras.backend.is_float_dtype(weight.dtype)]
    found, expected = sum(math.prod(w.shape) for w in floats), count_parameters(config)
    if found != expected:
        raise ValueError(
            "Expected a whole Vision Transformer. Received: "
            f"model={model.name!r}, with {found} of the {expected} parameters that its layers "
            "imply; save the model that it was cut from, or this one as a .keras file"
        )


def _check_class_names(config, class_names):
    if class_names is None:
        return
    count = config.num_classes if config.include_top else 0
    if len(class_names) != count or len(set(class_names)) != count:
        raise ValueError(
            f"`class_names` must be {count} different names, as the head has outputs. Received: "
            f"{len(class_names)}, {len(set(class_names))} of them different"
        )


def _make_plan(format, config, weights, class_names=None):
    module, described = _FORMATS[format]
    description = described(config, class_names)
    # All that is asked of these shapes is which names there are, and that patches have four axes.
    shapes = dict.fromkeys(description.naming, (0,) * 4)
    rules = {rule.weight: rule for rule in module.rules(config.depth, shapes)}
    rules = {name: rules[name] for name in weights if name in rules}
    tensors = {
        description.file_name(name): _Tensor(shape, parts)
        for name, (shape, parts) in _laid_out(rules, weights, config).items()
    }
    zeros = {name: _Tensor(shape, ()) for name, shape in description.zeros.items()}
    obstacles = dict(description.implied)
    obstacles |= _misread(format, config, description, rules, tensors | zeros, weights)
    if "stem_blocks" in obstacles:
        for name in ("image_size", "stem_width", "stem_rule"):
            obstacles.pop(name, None)  # They follow from it.
    return _Plan(description, tensors | zeros, obstacles)


def _laid_out(rules, weights, config):
    """Canonical name → (shape, parts) of each tensor."""
    tensors: dict[str, tuple] = {}
    for rule in rules.values():
        for number, name in enumerate(rule.tensors):
            shape = rule.tensor_shape(tuple(weights[rule.weight].shape), config)
            _, parts = tensors.get(name, (shape, ()))
            tensors[name] = shape, (*parts, (rule, number))
    return tensors


def _misread(format, config, description, rules, tensors, weights):
    """What the reading half would take for something else than the model's."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name in ("gamma", "beta"):
        if f"pool_norm/{name}" in weights and f"pool_norm/{name}" not in rules:
            # Without a last norm no format would be recognised, and nothing more be said.
            shapes |= _stand_in(format, description, name, config)
    file = TensorFile(
        path=Path(f"the {format} file"),
        shapes=shapes,
        read=lambda name: None,
        hub_config=_as_read(description.hub_config),
        preprocessor_config=_as_read(description.preprocessor_config),
    )
    try:
        checkpoint = recognise(file)
    except CheckpointError as error:
        return {} if description.implied else {"weights": str(error)}
    found = _differences(config, checkpoint.facts)
    for name, weight in weights.items():
        rule = rules.get(name)
        if rule is not None and rule.layout == "zero" and np.any(_values(weight)):
            found[name] = "zero"
        if (
            not found
            and not description.implied
            and (rule is None or checkpoint.rules.get(name) != rule)
        ):
            found[name] = "nothing"
    return found


def _stand_in(format, description, part, config):
    module, _ = _FORMATS[format]
    rules = module.rules(config.depth, dict.fromkeys(description.naming, (0,) * 4))
    return {
        description.file_name(name): (config.hidden_size,)
        for rule in rules
        if rule.weight == f"encoder_norm/{part}"
        for name in rule.tensors
    }


def _as_read(content):
    return None if content is None else json.loads(json.dumps(content))


def _differences(config, facts):
    """Field → what the facts of a file imply, where the config has otherwise."""
    defaults = {field.name: field.default for field in dataclasses.fields(VisionTransformerConfig)}
    implied = defaults | facts | {"include_top": "num_classes" in facts}
    ignored = {*_NOT_STORED, *_meaningless(config)}
    if "image_size" not in facts:
        ignored.add("image_size")  # Then `from_checkpoint` asks for it.
    return {
        name: _shown(implied[name])
        for name in defaults
        if name not in ignored and not _agree(name, config, implied)
    }


def _meaningless(config):
    """Fields that say nothing of such a model."""
    names = set() if config.include_top else {"num_classes", "classifier_activation"}
    if not config.include_preprocessing:
        names.add("preprocessing")
    if config.stem_blocks is None:
        names |= {"stem_width", "stem_rule"}
    if config.attention_positions != "rope":
        names.add("rope_base")
    if config.token_positions != "learned":
        names.add("position_slots")
    return names


def _agree(name, config, implied):
    ours, theirs = getattr(config, name), implied[name]
    if theirs is dataclasses.MISSING:
        return False
    if name == "position_slots":
        return prefix_positions(implied, theirs) == config.prefix_positions
    if name == "layer_scale":
        # What the scales started from no longer matters.
        return (ours is None) == (theirs is None)
    if name == "layer_norm_epsilon":
        return math.isclose(ours, theirs, rel_tol=1e-6)
    if name == "preprocessing":
        return not isinstance(theirs, str) and ours.scales_like(theirs)
    return (tuple(ours) == tuple(theirs)) if isinstance(ours, tuple) and theirs else ours == theirs


def _shown(value):
    return "not said" if value is dataclasses.MISSING else value


def _refuse(format, config, weights, plan):
    others = {
        other: _make_plan(other, config, weights).obstacles for other in _FORMATS if other != format
    }
    lines = []
    for name, implied in plan.obstacles.items():
        ours = getattr(config, name, "a weight of the model")
        able = [f'"{other}"' for other, obstacles in others.items() if name not in obstacles]
        lines.append(
            f"  {name}: the model's is {ours!r}, a file would imply {implied!r}"
            f" (can be said in: {', '.join(able) or 'no published format'})"
        )
    whole = [f'format="{other}"' for other, obstacles in others.items() if not obstacles]
    raise ValueError(
        f'format="{format}" does not express this model, and nothing is written:\n'
        + "\n".join(lines)
        + f"\nExpected one that does: {', '.join(whole) or 'none; save it as a .keras file'}"
    )


def _values(weight):
    """A weight in the dtype in which it is stored: float64 where it is that, else float32."""
    array = np.asarray(keras.ops.convert_to_numpy(weight))
    return array if array.dtype == np.float64 else array.astype("float32", copy=False)


def _dtypes(plan, weights):
    """Name in the file → dtype."""
    wide = {name for name, weight in weights.items() if str(weight.dtype) == "float64"}
    return {
        name: "float64" if any(rule.weight in wide for rule, _ in tensor.parts) else "float32"
        for name, tensor in plan.tensors.items()
    }


def _assembled(tensor, weights, config):
    """The values of a tensor of the file."""
    if len(tensor.parts) == 1:
        rule, number = tensor.parts[0]
        values = _finite(rule, weights)
        return rule.split(values, config)[number]
    result = np.zeros(tensor.shape, "float32")
    for rule, number in tensor.parts:
        values = _finite(rule, weights)
        result = result.astype(values.dtype, copy=False)
        result[rule.rows(tensor.shape)] = rule.split(values, config)[number]
    return result


def _finite(rule, weights):
    values = _values(weights[rule.weight])
    if not np.isfinite(values).all():
        raise ValueError(
            f"{rule.weight} holds values that are NaN or infinite, and no checkpoint is written; "
            "the training diverged"
        )
    return values
