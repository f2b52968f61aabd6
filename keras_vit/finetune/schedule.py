"""The learning rate of each step."""

import math

from keras_vit.finetune.recipe import Recipe


def learning_rate(step: int, recipe: Recipe, steps_per_epoch: float | None = None) -> float:
    """The learning rate of a step: linear warm-up, then a cosine, a line or no change.

    The defaults are the rule of google-research/vision_transformer
    (`create_learning_rate_schedule`): the first step, 0, has a rate of zero when there is a
    warm-up, and step `recipe.steps`, which is never run, would have zero again. The other options
    are what big_vision, MAE and timm do.

    Args:
        step: Number of optimizer steps already done, from 0 to `recipe.steps - 1`.
        recipe: Gives the rates, `schedule`, `steps` and `warmup_steps`; its epochs must be
            resolved to steps.
        steps_per_epoch: Needed where `schedule_interval` is `"epoch"`.

    Returns:
        The rate, a float.

    Raises:
        ValueError: If the recipe speaks of epochs and `steps_per_epoch` is not given.

    Example:

    >>> recipe = Recipe(learning_rate=0.03, warmup_steps=10, steps=110)
    >>> [round(learning_rate(step, recipe), 4) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.015, 0.03, 0.015, 0.0]
    """
    position: float = step
    if recipe.schedule_interval == "epoch":
        if not steps_per_epoch:
            raise ValueError("A rate that changes every epoch needs `steps_per_epoch`")
        # In whole epochs; the small number keeps 30 / 0.1 in epoch 300.
        position = math.floor(step / steps_per_epoch + 1e-9) * steps_per_epoch
    peak = recipe.peak_learning_rate
    # The warm-up's epochs may have been rounded up, by half a step at most.
    if position + 0.5 + 1e-9 < recipe.warmup_steps:
        start = recipe.warmup_learning_rate
        return start + (peak - start) * position / recipe.warmup_steps
    begin = 0 if recipe.cosine_from == "start" else recipe.warmup_steps
    progress = min(1.0, max(0.0, position - begin) / max(1, recipe.steps - begin))
    share = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "constant": 1.0,
    }[recipe.schedule]
    return recipe.final_learning_rate + (peak - recipe.final_learning_rate) * share
