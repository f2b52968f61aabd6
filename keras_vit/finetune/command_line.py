"""Recipes as command lines."""

from collections.abc import Sequence

import tyro

from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.run import run


def run_command_line(recipe: Recipe, arguments: Sequence[str] | None = None) -> RunResult:
    """Runs a recipe whose options can be changed on the command line.

    `--help` shows every option with the recipe's value as its default.

    Args:
        recipe: The defaults.
        arguments: The command line; None: the process's.

    Returns:
        The result of the run.

    Raises:
        SystemExit: With a message, for what a user can put right.
    """
    try:
        return run(tyro.cli(Recipe, default=recipe, args=arguments))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
