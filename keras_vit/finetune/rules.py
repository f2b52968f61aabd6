"""Which weights train, at what rate, and which decay: ordered rules over the weights' paths."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import keras

from keras_vit.finetune.recipe import Recipe

# What comes after the blocks.
_TOP = r"(encoder_norm|pool|pool_norm|pre_logits|head|head_distillation)/.*"


@dataclass(frozen=True)
class WeightPlan:
    """What a run does with one weight.

    Attributes:
        path: The weight's path, such as `"block_3/mlp/expansion/kernel"`.
        size: Number of its values.
        trains: Whether it is trained.
        learning_rate: Factor of the learning rate.
        weight_decay: Decoupled decay, to be multiplied by the learning rate.
    """

    path: str
    size: int
    trains: bool
    learning_rate: float
    weight_decay: float


def match_rules(rules: Sequence[tuple[str, Any]], paths: Iterable[str], name: str) -> list:
    """The value of each path: that of the first rule whose pattern is the whole path.

    The idea is big_vision's: a list that is read from the top, and covers everything.

    Args:
        rules: Pairs of a regular expression and a value.
        paths: Paths of weights.
        name: What the rules are called in errors.

    Returns:
        A value for each path.

    Raises:
        ValueError: For a pattern that is no regular expression or is the first to match no path at
            all, and for paths that no rule covers.

    Example:

    >>> match_rules((("head/.*", True), (".*", False)), ["block_0/bias", "head/bias"], "trains")
    [False, True]
    """
    paths = list(paths)
    patterns = [(_compiled(pattern, name), value) for pattern, value in rules]
    for pattern, _ in patterns:
        if not any(map(pattern.fullmatch, paths)):
            raise ValueError(
                f"The pattern {pattern.pattern!r} of `{name}` matches no weight. Expected a "
                f"regular expression that is the whole of some path, such as {paths[-1]!r}"
            )
    values, uncovered = [], []
    for path in paths:
        matching = (value for pattern, value in patterns if pattern.fullmatch(path))
        value = next(matching, None)
        uncovered += [path] if value is None else []
        values.append(value)
    if uncovered:
        raise ValueError(
            f"`{name}` covers {len(paths) - len(uncovered)} of {len(paths)} weights; the first "
            f"that no pattern matches is {uncovered[0]!r}. End with a rule for '.*'"
        )
    return values


def _compiled(pattern, name):
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"The pattern {pattern!r} of `{name}` is no regular expression: {error}"
        ) from None


def weight_plans(
    weights: Sequence[keras.Variable], recipe: Recipe, *, depth: int = 0
) -> list[WeightPlan]:
    """What a recipe does with each weight of a model, in the model's order.

    Args:
        weights: `model.weights` of a Vision Transformer; LoRA enabled already where the recipe
            wants it.
        recipe: Its rules are followed; where it has none, what `adapt`, `trainable_blocks` and
            `layer_decay` say.
        depth: Number of blocks.

    Returns:
        A plan for each weight; seeds of dropout are no weights.

    Raises:
        ValueError: For rules that leave a weight uncovered, or trained weights that are none.
    """
    shapes = {weight.path: tuple(weight.shape) for weight in weights}
    paths = list(shapes)
    trains = _values(recipe.trainable_rules, _trainable_rules(recipe, depth), paths, "trainable")
    rates = _values(
        recipe.learning_rate_rules,
        _learning_rate_rules(recipe.layer_decay, depth),
        paths,
        "learning_rate",
    )
    decays = _values(recipe.weight_decay_rules, _WEIGHT_DECAY_RULES, paths, "weight_decay")
    plans = [
        WeightPlan(
            path,
            math.prod(shapes[path]),
            # LoRA keeps the kernels that it adds to, whatever the rules say.
            bool(train) and not _is_under_lora(path, shapes),
            float(rate),
            float(decay) * recipe.weight_decay,
        )
        for path, train, rate, decay in zip(paths, trains, rates, decays, strict=True)
    ]
    if not any(plan.trains for plan in plans):
        raise ValueError("`trainable_rules` leave nothing to train: no weight has the value True")
    return plans


def _values(given, derived, paths, name):
    if given:
        return match_rules(given, paths, f"{name}_rules")
    # Derived rules may speak of parts that a model does not have.
    present = [rule for rule in derived if any(re.fullmatch(rule[0], path) for path in paths)]
    return match_rules(present, paths, f"{name}_rules")


def _is_under_lora(path, paths):
    return path.endswith("/kernel") and path.removesuffix("kernel") + "lora_kernel_a" in paths


def _trainable_rules(recipe, depth):
    if recipe.adapt == "lora":
        return ((r".*/lora_kernel_[ab]", True), (r"head(_distillation)?/.*", True), (".*", False))
    if recipe.adapt == "head":
        return ((r"head(_distillation)?/.*", True), (".*", False))
    if recipe.trainable_blocks is None:
        return ((".*", True),)
    if recipe.trainable_blocks > depth:
        raise ValueError(
            f"`trainable_blocks` must be at most {depth}, the number of blocks. "
            f"Received: trainable_blocks={recipe.trainable_blocks}"
        )
    blocks = range(depth - recipe.trainable_blocks, depth)
    return (*((rf"block_{i}/.*", True) for i in blocks), (_TOP, True), (".*", False))


def _learning_rate_rules(layer_decay, depth):
    """Layer-wise decay as in BEiT and MAE: the embeddings are layer 0, the top is depth + 1."""
    if layer_decay == 1.0:
        return ((".*", 1.0),)
    return (
        *((rf"block_{i}/.*", layer_decay ** (depth - i)) for i in range(depth)),
        (_TOP, 1.0),
        (".*", layer_decay ** (depth + 1)),
    )


_WEIGHT_DECAY_RULES = ((r"(.*/)?(kernel|lora_kernel_[ab])", 1.0), (".*", 0.0))


def format_plans(plans: Sequence[WeightPlan]) -> str:
    """Plans as a table to be printed: a row for neighbours that are treated alike.

    Example:

    >>> plans = [WeightPlan(f"block_{i}/mlp/bias", 8, i > 0, 1.0, 0.0) for i in range(3)]
    >>> print(format_plans(plans))
    weights                 parameters  trains     rate x   decay
    block_0                          8  no
    block_1 … block_2               16  yes             1       0
    """
    lines = [f"{'weights':22}  {'parameters':>10}  trains  {'rate x':>9} {'decay':>7}"]
    parts = [(part, _alike(group)) for part, group in groupby(plans, key=_part)]
    # Neighbouring blocks that are treated alike share the rows.
    for _, run in groupby(parts, key=_likeness):
        names, treatments = zip(*run, strict=True)
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        merged = {
            kind: [plan for treatment in treatments for plan in treatment[kind]]
            for kind in treatments[0]
        }
        lines += _lines(name, merged)
    return "\n".join(lines)


def _part(plan):
    return plan.path.split("/")[0]


def _alike(plans):
    """Plans by how they are treated."""
    kinds: dict[tuple, list[WeightPlan]] = {}
    for plan in plans:
        kinds.setdefault((plan.trains, plan.learning_rate, plan.weight_decay), []).append(plan)
    return kinds


def _likeness(part):
    name, kinds = part
    is_block = name.startswith("block_")
    return "block" if is_block else name, tuple((kind, len(kinds[kind])) for kind in kinds)


def _lines(name, kinds):
    for (trains, rate, decay), plans in kinds.items():
        size = sum(plan.size for plan in plans)
        label = name
        if len(kinds) > 1 and all(plan.path.split("/")[-1] == "kernel" for plan in plans):
            label = f"{name}, kernels"
        elif len(kinds) > 1 and trains and all("lora_" in plan.path for plan in plans):
            label = f"{name}, LoRA"
        line = f"{label:22}  {size:>10,}  {'yes' if trains else 'no'}"
        yield line + (f"     {rate:>9.3g} {decay:>7.3g}" if trains else "")
