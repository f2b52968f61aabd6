"""The command line that runs a recipe again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from keras_vit.finetune.recipe import Recipe, recipe_fields


def repeat_command(
    options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """The command line that runs a recipe.

    Args:
        options: The recipe's options by name, as `recipe_fields` gives them or JSON holds them.
        defaults: The options that the command line has where nothing is said; None: those of
            `Recipe()`.

    Returns:
        The words of the command.

    Example:

    >>> " ".join(repeat_command(recipe_fields(Recipe(steps=7, warmup_steps=1, export=True))))
    'keras-vit finetune --protocol none --steps 7 --warmup-steps 1 --export'
    """
    defaults = recipe_fields(Recipe()) if defaults is None else defaults
    words = ["keras-vit", "finetune", "--protocol", "none"]
    for name, value in plain_options(options).items():
        if name in defaults and value == plain_options(defaults)[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list | dict):
            words += [flag, *map(_word, _flattened(value))]
        elif _word(value).startswith("-"):
            words.append(f"{flag}={_word(value)}")
        else:
            words += [flag, _word(value)]
    return words


def shell_text(words: Sequence[str]) -> str:
    """A command as a shell reads it, with a line for each option.

    >>> print(shell_text(["keras-vit", "finetune", "--data", "my flowers", "--export"]))
    keras-vit finetune \\
      --data 'my flowers' \\
      --export
    """
    text = ""
    for word in words:
        text += (" \\\n  " if word.startswith("--") else " ") + shlex.quote(word)
    return text.strip()


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON holds them, so that tuples and lists are equal."""
    return json.loads(json.dumps(dict(options)))


def _flattened(values):
    """A table of pairs as one list of words, as the command line takes it."""
    if isinstance(values, dict):
        # The command line knows numbers there: an optimizer's switch is 1 or 0.
        values = [(name, int(v) if isinstance(v, bool) else v) for name, v in values.items()]
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _word(value):
    return str(value)
