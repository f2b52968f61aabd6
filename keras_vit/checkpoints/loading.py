"""Loads a checkpoint into a model, wholly or not at all."""

import dataclasses
import math

import numpy as np

from keras_vit.checkpoints.checkpoint import open_checkpoint
from keras_vit.checkpoints.layouts import LAYOUTS, Rule
from keras_vit.checkpoints.positions import resample_positions
from keras_vit.checkpoints.reading import CheckpointError
from keras_vit.checkpoints.report import LoadReport
from keras_vit.models import Preprocessing, config_of

POSITIONS = "patch_encoder/position_embedding"
CLASS_TOKEN = "patch_encoder/class_token"
# Facts that change the function without changing any tensor's shape.
ACCEPTABLE = ("activation", "layer_norm_epsilon", "preprocessing", "pooling")


@dataclasses.dataclass
class _Plan:
    """What becomes of each weight and tensor, before any data is read."""

    used: dict[str, Rule] = dataclasses.field(default_factory=dict)
    resampled: dict[str, Rule] = dataclasses.field(default_factory=dict)
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    new: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    source_grid: tuple[int, int] | None = None


def load_checkpoint(model, path, *, accept=(), new_head=False):
    """Loads a published checkpoint into a model that is already built.

    Positions are resampled to the model's grid by the rule of the format's own code. A head of
    another class count is left out and the model's head set to zero, the start of a transfer;
    only then may `pre_logits` and the class token be left out too.

    Args:
        model: A model built by keras_vit.
        path: A .npz file of google-research/vision_transformer, a .safetensors file of timm or
            its hub folder, or a .keras or .weights.h5 file of keras_vit.
        accept: Names among `"activation"`, `"layer_norm_epsilon"`, `"preprocessing"` and
            `"pooling"`: where the file is known to differ from the model there, load all the same.
        new_head: Whether the head starts at zero even where the class counts are equal.

    Returns:
        A `LoadReport`, which accounts for every tensor and every weight.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or does not fit; the message names every tensor
            concerned, and the model is as it was.

    Example:

    ```python
    model = keras_vit.ViTB16(num_classes=10, image_size=384)
    print(keras_vit.load_checkpoint(model, "B_16-i21k.npz"))
    ```
    """
    unknown = sorted(set(accept) - set(ACCEPTABLE))
    if unknown:
        raise ValueError(f"`accept` may hold {', '.join(ACCEPTABLE)}. Received: accept={accept}")
    config = config_of(model)
    weights = {weight.path: weight for weight in model.weights}
    with open_checkpoint(path) as checkpoint:
        plan = _make_plan(checkpoint, config, weights, set(accept), new_head)
        if plan.problems:
            raise CheckpointError(
                f"{checkpoint.file.path} does not fit the model {model.name!r}, which is left as "
                "it was:\n" + "\n".join(f"  {problem}" for problem in plan.problems)
            )
        rules = plan.used | plan.resampled
        for rule in rules.values():
            # Everything is read once before anything is assigned.
            _read_weight(checkpoint, rule, plan, config, weights)
        for name, rule in rules.items():
            weights[name].assign(_read_weight(checkpoint, rule, plan, config, weights))
        for name in plan.new:
            if name.startswith("head/") or name == CLASS_TOKEN:
                weights[name].assign(np.zeros(weights[name].shape, "float32"))
    return LoadReport(
        path=str(checkpoint.file.path),
        format=checkpoint.format,
        used={name: _file_names(checkpoint, rule) for name, rule in plan.used.items()},
        resampled={name: _file_names(checkpoint, rule) for name, rule in plan.resampled.items()},
        dropped=plan.dropped,
        new=plan.new,
        notes=(*checkpoint.notes, *plan.notes),
    )


def _file_names(checkpoint, rule):
    return tuple(checkpoint.file_name(name) for name in rule.tensors)


def _make_plan(checkpoint, config, weights, accept, new_head):
    plan = _Plan()
    rules = {rule.weight: rule for rule in checkpoint.rules(config)}
    head = _head_state(checkpoint, config, new_head)
    shapes = {name: checkpoint.file.shapes[file] for name, file in checkpoint.names.items()}
    for name, weight in weights.items():
        rule = rules.get(name, Rule(name, (name,)))
        start = _new_start(name, head, all(tensor in shapes for tensor in rule.tensors))
        missing = sorted(set(rule.tensors) - set(shapes))
        if start:
            plan.new[name] = start
        elif missing:
            plan.problems += [
                f"missing: {checkpoint.file_name(tensor)}, for the model's {name}"
                for tensor in missing
            ]
        else:
            _place(plan, checkpoint, config, rule, tuple(weight.shape), shapes)
    _account_for_tensors(plan, checkpoint, config, rules, weights, head)
    plan.problems += _differences(checkpoint.facts, config, head, accept)
    return plan


def _head_state(checkpoint, config, new_head):
    """What the model's head is: the file's (`"same"`), another (`"new"`), or none (`"none"`)."""
    if not config.include_top:
        return "none"
    same = checkpoint.facts.get("num_classes") == config.num_classes and not new_head
    return "same" if same else "new"


def _new_start(name, head, is_in_file):
    """How a weight starts that is not taken from the file; None for those that are."""
    if name.startswith("head/") and head == "new":
        return "zero: a new head"
    if name.startswith("pre_logits/") and head == "new":
        return "as initialised, under a new head"
    if is_in_file or head == "same":
        return None
    if name.startswith("pool/"):
        return "as initialised: the file pools otherwise"
    return "zero: the file has no class token" if name == CLASS_TOKEN else None


def _place(plan, checkpoint, config, rule, weight_shape, shapes):
    if rule.weight == POSITIONS:
        _place_positions(plan, checkpoint, config, rule, weight_shape, shapes[rule.tensors[0]])
        return
    expected = tuple(LAYOUTS[rule.layout].shape(weight_shape, config))
    wrong = [tensor for tensor in rule.tensors if shapes[tensor] != expected]
    for tensor in wrong:
        plan.problems.append(
            f"shape: {checkpoint.names[tensor]} is {shapes[tensor]}, the model's {rule.weight} "
            f"needs {expected}"
        )
    if not wrong:
        plan.used[rule.weight] = rule


def _place_positions(plan, checkpoint, config, rule, weight_shape, shape):
    name = checkpoint.names[rule.tensors[0]]
    if len(shape) != 3 or shape[0] != 1 or shape[2] != weight_shape[2]:
        plan.problems.append(
            f"shape: {name} is {shape}, the model's {rule.weight} needs "
            f"(1, positions, {weight_shape[2]})"
        )
        return
    count, grid = checkpoint.patch_positions, _source_grid(checkpoint, config)
    if grid is None or grid[0] * grid[1] != count:
        plan.problems.append(
            f"positions: {name} holds {count} patch positions, which are "
            + ("no square grid" if grid is None else f"not the {grid[0]}x{grid[1]} of config.json")
            + f"; the model's grid is {config.grid[0]}x{config.grid[1]}"
        )
        return
    plan.source_grid = grid
    if grid == config.grid and checkpoint.facts["class_token"] == config.class_token:
        plan.used[rule.weight] = rule
        return
    plan.resampled[rule.weight] = rule
    plan.notes.append(
        f"positions {grid[0]}x{grid[1]} → {config.grid[0]}x{config.grid[1]} by "
        f"{checkpoint.resampling}'s rule"
    )


def _source_grid(checkpoint, config):
    facts, count = checkpoint.facts, checkpoint.patch_positions
    if "image_size" in facts:
        sides = zip(facts["image_size"], facts["patch_size"], strict=True)
        return tuple(size // patch for size, patch in sides)
    # As the formats' own code: positions of the right number are taken as they are, others are
    # those of a square.
    if config.grid[0] * config.grid[1] == count:
        return config.grid
    side = math.isqrt(max(0, count))
    return (side, side) if side * side == count else None


def _account_for_tensors(plan, checkpoint, config, rules, weights, head):
    placed = {tensor for rule in (plan.used | plan.resampled).values() for tensor in rule.tensors}
    weight_of = {tensor: rule.weight for rule in rules.values() for tensor in rule.tensors}
    for tensor, name in checkpoint.names.items():
        weight = weight_of.get(tensor, "")
        if tensor in placed or (weight in weights and weight not in plan.new):
            continue  # If it is not placed, its shape is among the problems.
        reason = _reason_to_drop(weight, checkpoint.facts, config, head)
        if reason:
            plan.dropped[name] = reason
        else:
            plan.problems.append(f"unexpected: {name}{_advice(weight, checkpoint.facts)}")


def _reason_to_drop(weight, facts, config, head):
    """Why a tensor has no place in the model, where that is as it should be; else None."""
    part = weight.partition("/")[0]
    if part == "head" and head == "none":
        return "the model has no head"
    if part == "head" and head == "new":
        theirs, ours = facts.get("num_classes"), config.num_classes
        if theirs == ours:
            return "a new head was asked for"
        return f"{theirs} classes in the file, {ours} in the model"
    if part == "pre_logits" and head == "new":
        return "the head that it belongs to is left out"
    if part == "pre_logits" and head == "none":
        return "the model ends before it"
    if part == "pool" and head != "same":
        return "the model pools otherwise"
    if weight == CLASS_TOKEN and head != "same":
        return "the model has no class token"
    return None


def _advice(weight, facts):
    if weight.startswith("pre_logits/"):
        return (
            "; the file's head needs it: build the model with "
            f"representation_size={facts.get('representation_size')}"
        )
    if weight.startswith("pool_norm/"):
        return '; the file norms after pooling: build the model from it, with pooling="avg"'
    return ", for which the model has no weight"


def _differences(facts, config, head, accept):
    differences = []
    for name in ACCEPTABLE:
        if name not in facts or name in accept or (name == "pooling" and head != "same"):
            continue
        ours, theirs = getattr(config, name), facts[name]
        if name == "preprocessing":
            same = not config.include_preprocessing or ours.scales_like(theirs)
        elif name == "layer_norm_epsilon":
            same = math.isclose(ours, theirs, rel_tol=1e-6)
        else:
            same = ours == theirs
        if not same:
            differences.append(
                f"{name}: the file's is {theirs}, the model's {ours}; build the model with "
                f"{name}={_argument(theirs)}{_POOLING_ADVICE if name == 'pooling' else ''}, or "
                f'pass accept=("{name}",) to load_checkpoint'
            )
    heads = facts.get("num_heads")
    if heads is not None and heads != config.num_heads:
        differences.append(f"num_heads: the file's is {heads}, the model's {config.num_heads}")
    return differences


# A head learned on one pooling computes something else on another.
_POOLING_ADVICE = ", with a new head (another num_classes) or with include_top=False"


def _argument(value):
    return f"({value.mean}, {value.std})" if isinstance(value, Preprocessing) else repr(value)


def _read_weight(checkpoint, rule, plan, config, weights):
    tensors = [checkpoint.file.read(name) for name in _file_names(checkpoint, rule)]
    if rule.weight == POSITIONS:
        prefix = int(checkpoint.facts["class_token"])
        return _fit_positions(tensors[0], plan.source_grid, config, prefix, checkpoint.resampling)
    return LAYOUTS[rule.layout].combine(tensors, tuple(weights[rule.weight].shape))


def _fit_positions(positions, source_grid, config, prefix, rule):
    fitted = resample_positions(positions, source_grid, config.grid, rule, prefix)
    if prefix and not config.prefix_tokens:
        return fitted[:, prefix:]
    if config.prefix_tokens and not prefix:
        return np.concatenate([np.zeros_like(fitted[:, :1]), fitted], axis=1)
    return fitted
