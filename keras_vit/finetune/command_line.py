"""Recipes as command lines."""

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

from keras_vit.checkpoints import open_checkpoint
from keras_vit.finetune.hosts import join_hosts
from keras_vit.finetune.precision import find_accelerator
from keras_vit.finetune.protocols import (
    BUDGETS,
    PROTOCOLS,
    find_protocol,
    protocol_learning_rates,
    protocol_recipe,
    protocol_values,
)
from keras_vit.finetune.recipe import Recipe, recipe_fields, unread_options
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.reproducibility import fix_order_of_operations
from keras_vit.finetune.run import run
from keras_vit.finetune.signals import RunInterrupted
from keras_vit.models import VARIANTS
from keras_vit.models.variants import get_variant
from keras_vit.zoo import weights_path

# What the package raises when a file, an argument or the machine is not as it must be.
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)

DEFAULT_PROTOCOL = "transfer"
# The protocol of those who say everything themselves.
NO_PROTOCOL = "none"


@dataclass(frozen=True)
class _Options(Recipe):
    protocol: str = DEFAULT_PROTOCOL
    """Where the options that are not given come from: "transfer", which suits any data; "vit",
    "augreg", "deit", "deit3", "deit3_in21k", "mae" or "big_vision", as published; or "none", the
    general values of ViT."""

    budget: Literal["quick", "standard", "full"] | None = None
    """How long: "full" is the published schedule. None: "quick" on a CPU, else "standard"."""

    def __post_init__(self):
        """Nothing is checked until the protocol's options that do not apply are put away."""


def run_command_line(recipe: Recipe, arguments: Sequence[str] | None = None) -> RunResult:
    """Runs a recipe whose options can be changed on the command line.

    `--help` shows every option with the recipe's value as its default. A protocol's recipe has that
    protocol's values for the data, the model and the budget that the command line names; with
    `--protocol` another protocol takes the place of the recipe.

    Args:
        recipe: The defaults.
        arguments: The command line; None: the process's.

    Returns:
        The result of the run.

    Raises:
        SystemExit: With status 2 after a message on stderr, for what a user can put right.
    """
    escape_what_cannot_be_printed()
    with user_errors():
        return run(parse_recipe(arguments, recipe))


def parse_recipe(
    arguments: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    *,
    program: str | None = None,
    description: str | None = None,
) -> Recipe:
    """The recipe that a command line describes.

    Args:
        arguments: The words after the program's name; None: the process's.
        recipe: What is run without `--protocol`. Where it is that of a protocol, this has other
            values for other data, models and budgets. None: the protocol "transfer".
        program: What `--help` calls the program.
        description: What `--help` says of it.

    Returns:
        The recipe: what is given, the protocol's values, and the defaults where these would not be
        read, such as an augmentation when only the head is trained.

    Raises:
        ValueError: For an unknown protocol, or options that are out of range or not read.
        SystemExit: After `--help`, and for a command line that cannot be read.
    """
    _take_the_devices_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    seen = _peek(words, model=recipe.model if recipe else None)
    base, protocol, budget = _base_recipe(seen, recipe)
    fields = recipe_fields(base)
    defaults = dict(fields)
    if {"--optimizer-options", "--optimizer_options"} & set(words):
        # Where there are some, tyro takes only these, as --optimizer-options.epsilon.
        defaults["optimizer_options"] = {}
    options = tyro.cli(
        _Options,
        default=_Options(**defaults, protocol=protocol, budget=budget),
        args=words,
        prog=program,
        description=description or Recipe.__doc__,
    )
    values = {name: getattr(options, name) for name in fields}
    given = _typed(words, fields)
    if options.protocol == NO_PROTOCOL and recipe is None:
        return Recipe(**values)
    return Recipe(**_settled(values, given, base))


def _take_the_devices_memory():
    # Of a GPU JAX takes three quarters; B/16 at 384 px, batch 512, needs those of an H100 and a
    # little more (benchmarks/results/gpu_programs.md). A process that fine-tunes has it alone.
    variables = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    if not any(name in os.environ for name in variables):
        os.environ[variables[0]] = "0.9"


def _typed(words, names):
    """The options that the words of a command line set."""
    options = (re.split("[=.]", word)[0] for word in words if word.startswith("--"))
    typed = {option.replace("_", "-") for option in options}
    flags = {name: name.replace("_", "-") for name in names}
    return {name for name, flag in flags.items() if typed & {f"--{flag}", f"--no-{flag}"}}


def recipe_learning_rates(words: Sequence[str], recipe: Recipe) -> tuple[float, ...]:
    """The grid of learning rates that the protocol of a command line tries.

    Args:
        words: The command line, as for `parse_recipe`.
        recipe: The recipe that it describes.

    Returns:
        The protocol's grid; where it has one value, or the command line gives one, that and its
        half and double.
    """
    seen = _peek(words)
    protocol = seen.protocol or DEFAULT_PROTOCOL
    rates: tuple[float, ...] = ()
    if protocol != NO_PROTOCOL and "learning_rate" not in _typed(words, ["learning_rate"]):
        rates = protocol_learning_rates(
            protocol, recipe.data, model=_model_name(seen), adapt=recipe.adapt
        )
    rate = recipe.learning_rate
    return rates or (rate / 2, rate, rate * 2)


def _peek(words, model=None):
    """The options that decide which values the others have when they are not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("protocol", "data", "adapt"):
        parser.add_argument(f"--{name}")
    for name in ("budget", "model", "weights"):
        # As the options are read whose value may be None.
        parser.add_argument(f"--{name}", type=lambda word: None if word == "None" else word)
    parser.set_defaults(model=model)
    # What is no number is left to tyro.
    parser.add_argument(
        "--image-size", "--image_size", type=lambda word: int(word) if word.isdecimal() else None
    )
    parser.add_argument("--deterministic", action="store_true")
    return parser.parse_known_args(words)[0]


def _base_recipe(seen, recipe):
    """The recipe that the command line changes, the name of its protocol, and its budget."""
    protocol, budget = seen.protocol, seen.budget
    if protocol is None and recipe is None:
        protocol = DEFAULT_PROTOCOL
    elif protocol is None:
        # The recipe of a file knows its protocol by its values only.
        protocol, own_budget = _protocol_of(recipe)
        if budget and protocol is None:
            raise ValueError("`--budget` needs `--protocol`: this recipe is none of a protocol")
        budget = budget or own_budget
    if protocol is None:
        return recipe, NO_PROTOCOL, None
    if protocol == NO_PROTOCOL:
        return Recipe(), NO_PROTOCOL, None
    find_protocol(protocol)
    # Before anything is computed: looking for accelerators starts the backend.
    fix_order_of_operations(deterministic=seen.deterministic)
    join_hosts()
    budget = budget or ("quick" if find_accelerator().kind == "cpu" else "standard")
    data = seen.data or (recipe.data if recipe else Recipe.data)
    adapt = seen.adapt or (recipe.adapt if recipe else Recipe.adapt)
    options = {
        "budget": budget,
        "model": _model_name(seen),
        "adapt": adapt,
        "image_size": seen.image_size,
    }
    base = protocol_recipe(protocol, data, **options)
    if seen.adapt:
        # What that does not read is put away later, and said.
        base = Recipe(**protocol_values(protocol, data, **options) | {"adapt": Recipe.adapt})
    base = dataclasses.replace(base, model=seen.model)
    if recipe:
        base = dataclasses.replace(base, name=recipe.name)
    patch_size = _facts(seen).get("patch_size")
    if seen.image_size is None and patch_size:
        base = _with_whole_patches(base, patch_size)
    return base, protocol, budget


def _facts(seen):
    """What the checkpoint, or else the model's name, says of the architecture."""
    if seen.weights:
        with open_checkpoint(weights_path(seen.weights)) as checkpoint:
            return checkpoint.facts
    return get_variant(seen.model) if seen.model else {}


def _model_name(seen):
    """The model as named, or the first of the table in the checkpoint's size."""
    if seen.model or not seen.weights:
        return seen.model
    facts = _facts(seen)
    sizes = ("patch_size", "hidden_size", "depth")

    def size_of(values):
        return [np.max(values[name]) if name in values else None for name in sizes]

    matching = (name for name in VARIANTS if size_of(get_variant(name)) == size_of(facts))
    return next(matching, None)


def _protocol_of(recipe):
    """The names of the protocol and the budget that a recipe is of; None for one of neither."""
    if recipe.model not in (None, *VARIANTS):
        return None, None
    # The full one first, which is meant where none is named.
    for name, budget in itertools.product(PROTOCOLS, reversed(BUDGETS)):
        found = protocol_recipe(
            name, recipe.data, budget=budget, model=recipe.model, adapt=recipe.adapt
        )
        if dataclasses.replace(found, name=recipe.name) == recipe:
            return name, budget
    return None, None


def _with_whole_patches(recipe, patch_size):
    """The protocol's image size, rounded to what the model's patches make up."""
    patch = int(np.max(patch_size))
    image_size = max(1, round(recipe.image_size / patch)) * patch
    if image_size == recipe.image_size:
        return recipe
    resize_size = recipe.resize_size and round(recipe.resize_size * image_size / recipe.image_size)
    return dataclasses.replace(recipe, image_size=image_size, resize_size=resize_size)


def _settled(values, given, base):
    """Values in which what is given counts over what the protocol says and does not fit it."""
    values, defaults = dict(values), recipe_fields(Recipe())
    if "image_size" in given and "resize_size" not in given and base.resize_size:
        values["resize_size"] = round(base.resize_size * values["image_size"] / base.image_size)
    # None says nothing of steps or epochs, and asks for nothing that must be read.
    given = {name for name in given if values[name] is not None}
    for first, second in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
        if {first, second} <= given:
            raise ValueError(f"--{first} and --{second} say the same: give one".replace("_", "-"))
    for steps, epochs in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
        if steps in given and epochs not in given:
            values[epochs] = None
    # The warm-up keeps its share of the run, where that can be told.
    share = _warmup_share(base)
    if share is not None and not given & {"warmup_steps", "warmup_epochs"}:
        if "steps" in given:
            values["warmup_epochs"] = None
            values["warmup_steps"] = round(share * values["steps"])
        elif "epochs" in given:
            values["warmup_epochs"] = share * values["epochs"]
    elif share is None and "steps" in given and not given & {"warmup_steps", "warmup_epochs"}:
        # As `resolve_epochs` does where a run is shorter than its warm-up.
        values["warmup_steps"] = min(values["warmup_steps"], values["steps"])
    unread = unread_options(values, given)
    if given & unread.keys():
        lines = [f"{name}: read only where {unread[name]}" for name in given & unread.keys()]
        raise ValueError("Nothing would read these options:\n  " + "\n  ".join(sorted(lines)))
    for name in (*unread, *_options_of_another_optimizer(values, given, base)):
        if values[name] != defaults[name]:
            print(f"{name}: {values[name]!r} of the protocol does not apply", flush=True)
            values[name] = defaults[name]
    return values


def _options_of_another_optimizer(values, given, base):
    another = values["optimizer"] != base.optimizer
    return ("optimizer_options",) if another and "optimizer_options" not in given else ()


def _warmup_share(recipe):
    """None where one of the two is in steps and the other in epochs."""
    if (recipe.epochs is None) != (recipe.warmup_epochs is None):
        return None
    if recipe.epochs is not None:
        return recipe.warmup_epochs / recipe.epochs
    return recipe.warmup_steps / recipe.steps


def escape_what_cannot_be_printed() -> None:
    """Lets a file name that is no UTF-8 be printed instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        # In the C locale such bytes are written as they are.
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with a message on stderr and status 2 for what a user can put right.

    A run that a signal stopped ends it with 128 + the signal's number.

    KERAS_VIT_TRACEBACK=1 in the environment shows where the error came from instead.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("KERAS_VIT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except RunInterrupted as error:
        print(error, file=sys.stderr)
        raise SystemExit(128 + error.signal) from None
