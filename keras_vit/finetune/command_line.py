"""Recipes as command lines."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import tyro

from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.run import run

# What the package raises when a file, an argument or the machine is not as it must be.
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError)


def run_command_line(recipe: Recipe, arguments: Sequence[str] | None = None) -> RunResult:
    """Runs a recipe whose options can be changed on the command line.

    `--help` shows every option with the recipe's value as its default.

    Args:
        recipe: The defaults.
        arguments: The command line; None: the process's.

    Returns:
        The result of the run.

    Raises:
        SystemExit: With status 2 after a message on stderr, for what a user can put right.
    """
    with user_errors():
        return run(tyro.cli(Recipe, default=recipe, args=arguments))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with a message on stderr and status 2 for what a user can put right.

    KERAS_VIT_TRACEBACK=1 in the environment shows where the error came from instead.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("KERAS_VIT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
