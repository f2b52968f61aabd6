"""Loads a checkpoint into a model, wholly or not at all."""

import dataclasses
import math
import re

import numpy as np

from keras_vit.checkpoints.checkpoint import open_checkpoint
from keras_vit.checkpoints.grids import (
    PATCH_KERNEL,
    POSITIONS,
    RELATIVE_POSITIONS,
    patch_stride,
    prefix_positions,
)
from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.memory import return_freed_memory
from keras_vit.checkpoints.patch_kernels import resample_patch_kernel
from keras_vit.checkpoints.positions import check_resampling, resample_positions, square_grid
from keras_vit.checkpoints.reading import CheckpointError
from keras_vit.checkpoints.relative_positions import resample_relative_positions
from keras_vit.checkpoints.report import LoadReport
from keras_vit.layers.host_arrays import copied_in_rows, handed_over
from keras_vit.models import Preprocessing, config_of

CLASS_TOKEN = "patch_encoder/class_token"
# Facts that change the function without changing any tensor's shape, and that may be overruled.
ACCEPTABLE = (
    *("activation", "layer_norm_epsilon", "preprocessing", "pooling", "patch_size", "num_heads"),
    *("rope_base", "window_size", "global_blocks"),
)
# And such as may not: a file's weights mean nothing under another.
_DECISIVE = (
    *("depth", "gated_mlp", "positions", "qkv_bias", "stem_rule", "stem_blocks"),
    *("distillation_token", "register_tokens", "pre_norm"),
)
# Formats whose own code takes positions of the right number as they are; others resample those of
# a square. Our .weights.h5 are for the model that is there. A rule that was asked for resamples.
_TAKEN_BY_NUMBER = ("google", "vit-keras", "keras")


@dataclasses.dataclass
class _Plan:
    """What becomes of each weight and tensor, before any data is read."""

    resampling: str
    used: dict[str, Rule] = dataclasses.field(default_factory=dict)
    resampled: dict[str, Rule] = dataclasses.field(default_factory=dict)
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    new: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    source_grid: tuple[int, int] | None = None


def load_checkpoint(model, path, *, accept=(), new_head=False, resampling=None):
    """Loads a published checkpoint into a model that is already built.

    Positions are resampled to the model's grid by the rule of the format's own code. A head of
    another class count is left out and the model's head set to zero, the start of a transfer;
    only then may `pre_logits` and the class token be left out too.

    Args:
        model: A model built by keras_vit.
        path: A .npz file of vision_transformer or big_vision, a .safetensors file of timm,
            transformers or torchvision or its hub folder, or a .keras or .weights.h5 file of
            keras_vit.
        accept: Names among `"activation"`, `"layer_norm_epsilon"`, `"preprocessing"`, `"pooling"`,
            `"num_heads"`, `"patch_size"`, `"rope_base"`, `"window_size"` and `"global_blocks"`:
            where the file is known to differ from the model there, load all the same. The kernel
            of another patch size is resampled (FlexiViT).
        new_head: Whether the head starts at zero even where the class counts are equal.
        resampling: `"google"`, `"timm"`, `"hf"`, `"torchvision"` or `"siglip2"`: whose rule
            resamples; None for what the format's own code does. Where a file does not tell its
            grid, the two differ for one of as many patches: a rule resamples from the square,
            Google's code takes positions of the right number as they are.

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
    if resampling is not None:
        check_resampling(resampling)
    config = config_of(model)
    weights = {weight.path: weight for weight in model.weights}
    with open_checkpoint(path) as checkpoint:
        plan = _make_plan(checkpoint, config, weights, set(accept), new_head, resampling)
        if plan.problems:
            raise CheckpointError(
                f"{checkpoint.file.path} does not fit the model {model.name!r}, which is left as "
                "it was:\n" + "\n".join(f"  {problem}" for problem in plan.problems)
            )
        rules = plan.used | plan.resampled
        for rule in rules.values():
            # Everything is read once before anything is assigned.
            found = _read_weight(checkpoint, rule, plan, config, weights).shape
            expected = tuple(weights[rule.weight].shape)
            if found != expected:
                raise CheckpointError(
                    f"{checkpoint.file.path} does not fit the model {model.name!r}, which is left "
                    f"as it was: {', '.join(_file_names(checkpoint, rule))} make {found}, the "
                    f"model's {rule.weight} needs {expected}"
                )
        return_freed_memory()
        # By size: what one weight frees, the next takes, and memory stays in one piece.
        by_size = sorted(rules, key=lambda name: math.prod(weights[name].shape), reverse=True)
        for name in by_size:
            weight = _read_weight(checkpoint, rules[name], plan, config, weights)
            weights[name].assign(handed_over(copied_in_rows(weight)))
            return_freed_memory()
        for name in plan.new:
            if name.startswith("head") or name == CLASS_TOKEN:
                weights[name].assign(np.zeros(weights[name].shape, "float32"))
    return LoadReport(
        path=str(checkpoint.file.path),
        format=checkpoint.format,
        used={name: _file_names(checkpoint, rule) for name, rule in plan.used.items()},
        resampled={name: _file_names(checkpoint, rule) for name, rule in plan.resampled.items()},
        dropped=plan.dropped,
        new=plan.new,
        notes=(*checkpoint.notes, *plan.notes),
        num_classes=checkpoint.num_classes,
    )


def _file_names(checkpoint, rule):
    return tuple(checkpoint.file_name(name) for name in rule.tensors)


def _make_plan(checkpoint, config, weights, accept, new_head, resampling):
    plan = _Plan(resampling or checkpoint.resampling, dropped=dict(checkpoint.ignored))
    by_number = resampling is None and checkpoint.format in _TAKEN_BY_NUMBER
    plan.source_grid = _source_grid(plan, checkpoint, config, by_number)
    head = _head_state(checkpoint, config, new_head)
    for name, weight in weights.items():
        rule = checkpoint.rules.get(name, Rule(name, (name,)))
        missing = sorted(set(rule.tensors) - set(checkpoint.tensors))
        start = _new_start(name, head, not missing)
        if start:
            plan.new[name] = start
        elif missing:
            plan.problems += _missing(checkpoint, name, missing)
        else:
            _place(plan, checkpoint, config, rule, tuple(weight.shape))
    _account_for_tensors(plan, checkpoint, config, weights, head)
    plan.problems += _differences(checkpoint.facts, config, head, accept)
    return plan


def _missing(checkpoint, name, tensors):
    """A problem for each of the missing `tensors` of the model's weight `name`."""
    if name in checkpoint.rules:
        return [
            f"missing: {checkpoint.file_name(tensor)}, for the model's {name}" for tensor in tensors
        ]
    block = re.match(r"block_(\d+)/", name)
    if block and int(block[1]) >= checkpoint.facts.get("depth", math.inf):
        return []  # The depths differ, which is said once.
    return [f"missing: a tensor for the model's {name}"]


def _head_state(checkpoint, config, new_head):
    """What the model's head is: the file's (`"same"`), another (`"new"`), or none (`"none"`)."""
    if not config.include_top:
        return "none"
    same = checkpoint.facts.get("num_classes") == config.num_classes and not new_head
    return "same" if same else "new"


def _is_head(name):
    return name.partition("/")[0] in ("head", "head_distillation")


def _new_start(name, head, is_in_file):
    """How a weight starts that is not taken from the file; None for those that are."""
    if _is_head(name) and head == "new":
        return "zero: a new head"
    if name.startswith("pre_logits/") and head == "new":
        return "as initialised, under a new head"
    if is_in_file or head == "same":
        return None
    if name.startswith("pool/"):
        return "as initialised: the file pools otherwise"
    return "zero: the file has no class token" if name == CLASS_TOKEN else None


def _place(plan, checkpoint, config, rule, weight_shape):
    if rule.weight == POSITIONS or rule.weight.endswith(RELATIVE_POSITIONS):
        _place_positions(plan, checkpoint, config, rule, weight_shape)
        return
    source_patch = checkpoint.facts.get("patch_size", config.patch_size)
    resized = rule.weight == PATCH_KERNEL and tuple(source_patch) != config.patch_size
    expected_config = config
    if resized:
        channels = weight_shape[0] // math.prod(config.patch_size)
        weight_shape = (math.prod(source_patch) * channels, weight_shape[1])
        expected_config = _with_patch(config, source_patch)
    expected = rule.tensor_shape(weight_shape, expected_config)
    wrong = [tensor for tensor in rule.tensors if checkpoint.tensors[tensor].shape != expected]
    for tensor in wrong:
        plan.problems.append(
            f"shape: {checkpoint.file_name(tensor)} is {checkpoint.tensors[tensor].shape}, the "
            f"model's {rule.weight} needs {expected}"
        )
    if wrong:
        return
    if resized:
        plan.resampled[rule.weight] = rule
        plan.notes.append(
            f"patches of {source_patch[0]}x{source_patch[1]} px → "
            f"{config.patch_size[0]}x{config.patch_size[1]} px by FlexiViT's pseudo-inverse"
        )
    else:
        plan.used[rule.weight] = rule


@dataclasses.dataclass(frozen=True)
class _PatchSize:
    """What a patch kernel's layout needs of a config."""

    patch_size: tuple[int, int]


def _with_patch(config, patch_size):
    return _PatchSize(tuple(patch_size))


def _place_positions(plan, checkpoint, config, rule, weight_shape):
    tensor = rule.tensors[0]
    name, shape = checkpoint.file_name(tensor), checkpoint.tensors[tensor].shape
    is_table = rule.weight != POSITIONS
    width = weight_shape[-1]
    expected = (1, None, width) if not is_table else (None, width)
    found = rule.weight_shape([shape]) if len(shape) > 1 else shape
    if len(found) != len(expected) or any(
        side not in (None, size) for side, size in zip(expected, found, strict=True)
    ):
        plan.problems.append(
            f"shape: {name} is {shape}, the model's {rule.weight} needs {weight_shape} or the like "
            "for another grid"
        )
        return
    grid = plan.source_grid
    count = found[0] if is_table else found[1]
    if grid is None or count != _position_count(checkpoint, config, grid, is_table):
        plan.problems.append(
            f"positions: {name} holds {count} positions, which are "
            + ("no square grid" if grid is None else f"not those of {grid[0]}x{grid[1]} patches")
            + f"; the model's grid is {config.grid[0]}x{config.grid[1]}"
        )
        return
    is_kept = grid == config.grid and (
        # transformers resamples the table of a grid that is not square to its own grid too.
        not (plan.resampling == "hf" and grid[0] != grid[1])
        if is_table
        else _file_prefix(checkpoint, config) == config.prefix_positions
    )
    if is_kept:
        plan.used[rule.weight] = rule
        return
    plan.resampled[rule.weight] = rule
    note = (
        f"positions {grid[0]}x{grid[1]} → {config.grid[0]}x{config.grid[1]} by "
        f"{plan.resampling}'s rule"
    )
    if note not in plan.notes:
        plan.notes.append(note)


def _position_count(checkpoint, config, grid, is_table):
    if is_table:
        return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 * checkpoint.facts.get(
            "class_token", config.class_token
        )
    return grid[0] * grid[1] + _file_prefix(checkpoint, config)


def _file_prefix(checkpoint, config):
    """How many of the file's positions belong to tokens before the patches."""
    facts = {"class_token": config.class_token, **checkpoint.facts}
    slots = facts.get("position_slots", config.position_slots)
    return prefix_positions(facts, slots)


def _source_grid(plan, checkpoint, config, by_number):
    facts = {"patch_size": config.patch_size, "stem_blocks": config.stem_blocks, **checkpoint.facts}
    told = None
    if "image_size" in facts:
        sides = zip(facts["image_size"], patch_stride(facts), strict=True)
        told = tuple(size // side for size, side in sides)
    rule = checkpoint.rules.get(POSITIONS)
    if checkpoint.is_grid_told or rule is None or rule.tensors[0] not in checkpoint.tensors:
        return told or config.grid
    shape = checkpoint.tensors[rule.tensors[0]].shape
    count = rule.weight_shape([shape])[1] if len(shape) in (2, 3) else 0
    count -= _file_prefix(checkpoint, config)
    square = square_grid(count)
    if count != math.prod(config.grid) or square == config.grid:
        return square
    if square and not by_number:
        return square
    if square:
        plan.notes.append(
            f"positions of {count} patches taken as those of {config.grid[0]}x{config.grid[1]}, "
            f"not {square[0]}x{square[1]}: the file does not say; pass `resampling` to resample"
        )
    return config.grid


def _account_for_tensors(plan, checkpoint, config, weights, head):
    placed = {tensor for rule in (plan.used | plan.resampled).values() for tensor in rule.tensors}
    weight_of: dict[str, str] = {}
    for rule in checkpoint.rules.values():
        for tensor in rule.tensors:
            if tensor not in weight_of or weight_of[tensor] not in weights:
                weight_of[tensor] = rule.weight
    for tensor in checkpoint.tensors:
        weight, name = weight_of.get(tensor, ""), checkpoint.file_name(tensor)
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
    if _is_head(weight) and head == "none":
        return "the model has no head"
    if _is_head(weight) and head == "new":
        theirs, ours = facts.get("num_classes"), config.num_classes
        if theirs == ours:
            return "a new head was asked for"
        return f"{theirs} classes in the file, {ours} in the model"
    if part == "pre_logits" and head == "new":
        return "the head that it belongs to is left out"
    if part == "pre_logits" and head == "none":
        return "the model ends before it"
    if part == "pool" and facts.get("pooling", "map") != "map":
        return "the file's own head does not use it"
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
        if name not in facts or name in accept or not _matters(name, facts, config, head):
            continue
        ours, theirs = getattr(config, name), facts[name]
        if name == "preprocessing":
            same = not config.include_preprocessing or ours.scales_like(theirs)
        elif name in ("layer_norm_epsilon", "rope_base"):
            same = math.isclose(ours, theirs, rel_tol=1e-6)
        else:
            same = ours == theirs
        if not same:
            differences.append(
                f"{name}: the file's is {theirs}, the model's {ours}; build the model with "
                f"{name}={_argument(theirs)}{_POOLING_ADVICE if name == 'pooling' else ''}, or "
                f'pass accept=("{name}",) to load_checkpoint'
            )
    for name in _DECISIVE:
        if name in facts and facts[name] != getattr(config, name):
            differences.append(
                f"{name}: the file's is {facts[name]!r}, the model's {getattr(config, name)!r}"
            )
    if config.token_positions == "learned" and "position_slots" in facts:
        ours, theirs = config.position_slots, facts["position_slots"]
        counts = _slot_count(vars(config), facts, ours), _slot_count(facts, vars(config), theirs)
        # Under one name the counts differ by tokens, which are among the above.
        if ours != theirs and counts[0] != counts[1]:
            differences.append(f"position_slots: the file's is {theirs!r}, the model's {ours!r}")
    return differences


def _slot_count(facts, others, slots):
    """Positions before the patches, without the class token's where only one side has that."""
    both = facts["class_token"] and others["class_token"]
    return prefix_positions({**facts, "class_token": both}, slots)


def _matters(name, facts, config, head):
    if name == "pooling":
        return head == "same"
    if name == "rope_base":
        return config.attention_positions == "rope"
    # Without windows there are no blocks that leave them out.
    return name != "global_blocks" or None not in (facts.get("window_size"), config.window_size)


# A head learned on one pooling computes something else on another.
_POOLING_ADVICE = ", with a new head (another num_classes) or with include_top=False"


def _argument(value):
    return f"({value.mean}, {value.std})" if isinstance(value, Preprocessing) else repr(value)


def _read_weight(checkpoint, rule, plan, config, weights):
    tensors = [checkpoint.read(name) for name in rule.tensors]
    shape = tuple(weights[rule.weight].shape)
    if rule.weight not in plan.resampled:
        return rule.combine(tensors, shape)
    weight = rule.combine(tensors, rule.weight_shape([tensor.shape for tensor in tensors]))
    if rule.weight == PATCH_KERNEL:
        source = checkpoint.facts["patch_size"]
        kernel = weight.reshape(*source, -1, shape[-1])
        patch_rule = "google" if plan.resampling == "google" else "timm"
        return resample_patch_kernel(kernel, config.patch_size, patch_rule).reshape(shape)
    if rule.weight != POSITIONS:
        rule_name = "hf" if plan.resampling == "hf" else "timm"
        return resample_relative_positions(weight, plan.source_grid, config.grid, rule_name)
    prefix = _file_prefix(checkpoint, config)
    fitted = resample_positions(weight, plan.source_grid, config.grid, plan.resampling, prefix)
    # Only the class token's position, the first, can be too many or missing.
    missing = config.prefix_positions - prefix
    return np.pad(fitted[:, max(0, -missing) :], [(0, 0), (max(0, missing), 0), (0, 0)])
