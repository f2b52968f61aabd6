"""The published fine-tuning protocols, by name."""

import dataclasses
import re
from pathlib import PurePath
from typing import Any

from keras_vit.finetune.protocol import (
    BUDGETS,
    DATA_SETS,
    VTAB_NO_CROP,
    VTAB_TASKS,
    Change,
    Protocol,
    Published,
    label_geometry,
    steps,
)
from keras_vit.finetune.protocols_google import AUGREG, BIG_VISION, VIT
from keras_vit.finetune.protocols_meta import DEIT, DEIT3, DEIT3_IN21K, MAE
from keras_vit.finetune.recipe import Recipe, recipe_fields, unread_options
from keras_vit.layers.nearest import nearest_names
from keras_vit.models import VARIANTS

__all__ = [
    "BUDGETS",
    "DATA_SETS",
    "PROTOCOLS",
    "VTAB_TASKS",
    "Change",
    "Protocol",
    "Published",
    "find_protocol",
    "protocol_learning_rates",
    "protocol_recipe",
]

_CHOSEN = "chosen on images held out from CIFAR-10's training images (docs/recipes.md)"

TRANSFER = Protocol(
    name="transfer",
    title="keras_vit's own default, for any data",
    source=(
        "ViT's optimizer, learning rate and warm-up of a tenth (arXiv 2010.11929), in sizes that "
        "suit the machine: quick is minutes on two CPU cores for a Ti, the others are for a GPU"
    ),
    recipe=dataclasses.replace(
        Recipe(**steps(500, 50)), image_size=224, validation_fraction=0.05, evaluate_every=100
    ),
    changes=(
        Change(
            {"image_size": 160, "batch_size": 64, "learning_rate": 0.01, **steps(400, 40)},
            _CHOSEN,
            budget=("quick",),
        ),
        Change(steps(2500, 250), "AugReg's longer schedule (arXiv 2106.10270)", budget=("full",)),
        Change(
            {"optimizer": "adamw", "learning_rate": 0.002},
            _CHOSEN,
            adapt=("lora",),
            learning_rates=(0.0005, 0.001, 0.002, 0.004),
        ),
        # Steps on features cost next to nothing.
        Change(
            {"learning_rate": 0.003, "batch_size": 64, **steps(3000, 300)},
            _CHOSEN,
            adapt=("head",),
            learning_rates=(0.001, 0.003, 0.01, 0.03),
        ),
        *label_geometry(224),
        Change({"resize_size": 160}, "the size of quick", data=VTAB_NO_CROP, budget=("quick",)),
    ),
    learning_rates=(0.003, 0.01, 0.03, 0.1),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (TRANSFER, VIT, AUGREG, DEIT, DEIT3, DEIT3_IN21K, MAE, BIG_VISION)
}


def protocol_recipe(
    protocol: str,
    data: str,
    *,
    budget: str | None = None,
    model: str | None = None,
    adapt: str = "full",
    image_size: int | None = None,
) -> Recipe:
    """The recipe of a published protocol for a data set.

    Args:
        protocol: One of `PROTOCOLS`.
        data: A data set as `load_data` takes it; those of `DATA_SETS`, in any version, have values
            of their own where the paper gives some, all others get the protocol's general values.
        budget: "quick", "standard" or "full"; None: "full", the schedule of the paper.
        model: One of `keras-vit list`, for values that depend on the size; None: those of the
            protocol's base model, and the architecture of the checkpoint.
        adapt: "full", "head" or "lora"; values of the protocol that it would not read are left at
            their default.
        image_size: Side of the images, in pixels; None: the protocol's. What the images are
            resized to before the crop is scaled with it.

    Returns:
        A recipe without weights, which `dataclasses.replace` or the command line completes.

    Raises:
        ValueError: For a protocol, budget, model or VTAB task that does not exist.

    Example:

    >>> recipe = protocol_recipe("vit", "cifar10", budget="standard")
    >>> recipe.steps, recipe.warmup_steps, recipe.image_size
    (1000, 100, 384)
    """
    values = protocol_values(
        protocol, data, budget=budget, model=model, adapt=adapt, image_size=image_size
    )
    defaults = recipe_fields(Recipe())
    # What is left out may have been what another option is read for.
    while unread := unread_options(values):
        values |= {name: defaults[name] for name in unread}
    return Recipe(**values)


def protocol_values(
    protocol: str,
    data: str,
    *,
    budget: str | None = None,
    model: str | None = None,
    adapt: str = "full",
    image_size: int | None = None,
) -> dict[str, Any]:
    """The options of `protocol_recipe` by name, with those that `adapt` does not read.

    Takes and raises what `protocol_recipe` does.

    Example:

    >>> protocol_values("mae", "cifar10", adapt="head")["mixup"]
    0.8
    """
    chosen = find_protocol(protocol)
    name = _check_names(data, budget, model)
    values: dict[str, Any] = {}
    for change in chosen.changes:
        size = image_size or values.get("image_size", chosen.recipe.image_size)
        if change.applies(name, model=model, budget=budget or "full", adapt=adapt, image_size=size):
            values |= change.values
    short = re.sub(r"[^\w.-]+", "-", _short_name(name)).strip("-. ")
    parts = (short, protocol, budget, None if adapt == "full" else adapt)
    values |= {"name": "-".join(filter(None, parts)), "data": str(data), "model": model}
    values["adapt"] = adapt
    if image_size is not None:
        values |= _resized(chosen.recipe, values, image_size)
    return recipe_fields(chosen.recipe) | values


def protocol_learning_rates(
    protocol: str, data: str, *, model: str | None = None, adapt: str = "full"
) -> tuple[float, ...]:
    """The grid of learning rates that the paper tries on a data set; (): it gives one value.

    Args:
        protocol: One of `PROTOCOLS`.
        data: A data set, as for `protocol_recipe`.
        model: A model, as for `protocol_recipe`.
        adapt: As for `protocol_recipe`.

    Raises:
        ValueError: For a protocol, model or VTAB task that does not exist.

    Example:

    >>> protocol_learning_rates("vit", "cifar10")
    (0.001, 0.003, 0.01, 0.03)
    """
    chosen = find_protocol(protocol)
    name = _check_names(data, None, model)
    rates = chosen.learning_rates
    for change in chosen.changes:
        if change.learning_rates is not None and change.applies(
            name, model=model, budget="full", adapt=adapt
        ):
            rates = change.learning_rates
    return rates


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: If there is none; the message has the nearest names.

    Example:

    >>> find_protocol("mae").recipe.layer_decay
    0.65
    """
    if name not in PROTOCOLS:
        raise ValueError(
            f"`protocol` must be one of {', '.join(PROTOCOLS)}. Received: {name!r}. "
            f"{nearest_names(str(name), PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def _check_names(data, budget, model):
    """The data set by the name that `Change.data` knows it by: without a version of TFDS."""
    name = str(data).partition(":")[0]
    if name.startswith("vtab/") and name not in DATA_SETS:
        raise ValueError(
            f"VTAB has no task {name!r}. {nearest_names(name.removeprefix('vtab/'), VTAB_TASKS)}"
        )
    if budget is not None and budget not in BUDGETS:
        raise ValueError(f"`budget` must be one of {', '.join(BUDGETS)}. Received: {budget!r}")
    if model is not None and model not in VARIANTS:
        raise ValueError(
            f"`model` must be one of `keras-vit list`. Received: {model!r}. "
            f"{nearest_names(str(model), VARIANTS)}"
        )
    # Any other colon may be that of a path.
    return name if name in DATA_SETS else str(data)


def _short_name(data):
    return data if data in DATA_SETS else PurePath(data).stem


def _resized(recipe, values, image_size):
    """The image size, and the size before the crop in the protocol's proportion to it."""
    resize_size = values.get("resize_size", recipe.resize_size)
    if resize_size is None:
        return {"image_size": image_size}
    scale = image_size / values.get("image_size", recipe.image_size)
    return {"image_size": image_size, "resize_size": round(scale * resize_size)}
