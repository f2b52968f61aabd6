"""The learning rate of each step."""

import math

from keras_vit.finetune.recipe import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of a step: linear warm-up, then a cosine to zero.

    The rule of google-research/vision_transformer (`create_learning_rate_schedule`): the first
    step, 0, has a rate of zero when there is a warm-up, and step `recipe.steps`, which is never
    run, would have zero again.

    Args:
        step: Number of optimizer steps already done, from 0 to `recipe.steps - 1`.
        recipe: Gives `learning_rate`, `warmup_steps` and `steps`.

    Returns:
        The rate, a float.

    Example:

    >>> recipe = Recipe(learning_rate=0.03, warmup_steps=10, steps=110)
    >>> [round(learning_rate(step, recipe), 4) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.015, 0.03, 0.015, 0.0]
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    decay_steps = max(1, recipe.steps - recipe.warmup_steps)
    progress = min(1.0, (step - recipe.warmup_steps) / decay_steps)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
