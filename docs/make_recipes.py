"""Writes docs/recipes.md out of the protocols and docs/measured.toml.

python docs/make_recipes.py
"""

import dataclasses
import tomllib
from pathlib import Path

from keras_vit.finetune import Recipe
from keras_vit.finetune.protocols import (
    BUDGETS,
    DATA_SETS,
    PROTOCOLS,
    protocol_learning_rates,
    protocol_recipe,
)

PAGE = Path(__file__).with_name("recipes.md")
MEASURED = Path(__file__).with_name("measured.toml")
RECIPES = Path(__file__).parent.parent / "recipes"

# Rows of the tables; VTAB's tasks share one, as they differ in flip and crop alone.
ROWS = (*DATA_SETS[:5], "vtab/caltech101", "other data")
FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
PLACES = ("name", "data", "model")

INTRODUCTION = """\
<!-- Written by docs/make_recipes.py out of the protocols and docs/measured.toml: change those. -->

# Recipes

A **recipe** is a value with every option of a run (`keras_vit.finetune.Recipe`). A **protocol** is
how a paper fine-tunes: general values, and what changes with data set, model and budget, each with
its source, so that they can be read beside the paper.

```python
from keras_vit.finetune.protocols import PROTOCOLS, protocol_recipe

recipe = protocol_recipe("vit", "cifar10", budget="quick")           # 500 steps
recipe = protocol_recipe("mae", "imagenet2012", model="mae_l16")     # values of ViT-L
recipe = protocol_recipe("augreg", "photographs/flowers")            # a folder: the general values
PROTOCOLS["deit"].differences                                        # what is not to the letter
```

The full budget, the default in Python, is the paper's own schedule; the command line takes quick
on a CPU and standard on an accelerator unless `--budget` says otherwise. Quick and standard are
1/20 and 1/10 of it, the ratios of ViT's CIFAR runs (500 and 1,000 of 10,000 steps), or a shorter
schedule of the authors where there is one; the tables say which. Where a source is "ours", the
authors have no value that would do.

Accuracies under "published" are the authors', with their source. Those under "measured" are ours. A
protocol, data set or model that is not under "measured" was not measured.
"""

MEASURED_HEADER = """\
## Measured

| recipe | what | accuracy | seed | machine | minutes | GiB at most |
|---|---|--:|--:|---|--:|--:|
"""

FILES_HEADER = """\
## Recipe files

One short file a benchmark, with command, hardware and results in its head.

| file | what |
|---|---|
"""


def page():
    """The text of docs/recipes.md."""
    measured = tomllib.loads(MEASURED.read_text(encoding="utf-8"))["measured"]
    parts = [INTRODUCTION, FILES_HEADER + "".join(map(file_row, sorted(RECIPES.glob("*.py"))))]
    parts.append(
        MEASURED_HEADER
        + "".join(map(measured_row, measured))
        + "\nCommands:\n\n"
        + "".join(f"- `{entry['command']}`\n" for entry in measured)
    )
    parts += [protocol_section(protocol, measured) for protocol in PROTOCOLS.values()]
    return "\n".join(parts)


def file_row(path):
    head = path.read_text(encoding="utf-8").removeprefix('"""').split("\n\n")[0]
    return table_row(f"[`{path.name}`](../recipes/{path.name})", " ".join(head.split()))


def measured_row(entry):
    low, high = entry["interval"]
    return table_row(
        f"`{entry['recipe']}`",
        entry["what"],
        f"{entry['accuracy']:.2f} % ({low} to {high})",
        entry["seed"],
        entry["machine"],
        entry["minutes"],
        entry.get("memory", ""),
    )


def protocol_section(protocol, measured):
    parts = [
        f"## {protocol.title}: `{protocol.name}`\n",
        f"{protocol.source}.\n",
        f"General values: {options(protocol.recipe)}.\n",
        "Schedules, learning rates and results:\n",
        schedule_table(protocol, measured),
    ]
    if protocol.changes:
        parts += [
            "What changes with data, model, image size, budget and the way to adapt:\n",
            "| data | model | px | budget | adapt | values | source |\n"
            "|---|---|---|---|---|---|---|\n" + "".join(map(change_row, protocol.changes)),
        ]
    if protocol.published:
        parts += [
            "Published:\n",
            "| data | model | px | accuracy | budget | source |\n|---|---|--:|--:|---|---|\n"
            + "".join(map(published_row, protocol.published)),
        ]
    if protocol.differences:
        parts += [
            "Not to the letter:\n",
            "".join(f"- {difference}\n" for difference in protocol.differences),
        ]
    return "\n".join(parts)


def schedule_table(protocol, measured):
    rows = []
    for data in ROWS:
        recipes = [protocol_recipe(protocol.name, data, budget=budget) for budget in BUDGETS]
        rates = protocol_learning_rates(protocol.name, data)
        found = [
            f"{entry['accuracy']:.2f} % ({entry['what'].split(',')[0]}, a subset)"
            for entry in measured
            if entry["protocol"] == protocol.name and entry["data"] == data
        ]
        rows.append(
            table_row(
                "VTAB-1k" if data.startswith("vtab/") else data,
                recipes[-1].image_size,
                *map(schedule, recipes),
                recipes[-1].batch_size,
                f"{recipes[-1].learning_rate:g}",
                ", ".join(f"{rate:g}" for rate in rates) or "one value",
                published(protocol, data),
                ", ".join(found) or "not measured",
            )
        )
    names = ("data", "px", *BUDGETS, "batch", "rate", "grid", "published (full)", "measured")
    return table_row(*names) + table_row(*("---",) * len(names)) + "".join(rows)


def schedule(recipe):
    if recipe.epochs is not None:
        return f"{recipe.epochs:g} / {recipe.warmup_epochs:g} epochs"
    return f"{recipe.steps:,} / {recipe.warmup_steps:,} steps"


def published(protocol, data):
    """The accuracy of the base model, or else of the first one that the protocol has."""
    data = "vtab" if data.startswith("vtab/") else data
    entries = [e for e in protocol.published if e.data == data and e.budget == "full"]
    entries.sort(key=lambda entry: "-B/16" not in entry.model)
    return f"{entries[0].accuracy:g} %, {entries[0].model}" if entries else "none"


def change_row(change):
    values = ", ".join(f"`{name}={value!r}`" for name, value in change.values.items())
    if change.learning_rates is not None:
        rates = ", ".join(f"{rate:g}" for rate in change.learning_rates)
        values = ", ".join(filter(None, (values, f"grid {{{rates}}}")))
    patterns = (change.data, change.model, change.budget, change.adapt)
    cells = ["" if names == ("*",) else ", ".join(names) for names in patterns]
    cells.insert(2, f"> {change.above}" if change.above else "")
    return table_row(*(cell.replace("*", "\\*") for cell in cells), values, change.source)


def published_row(entry):
    return table_row(
        entry.data,
        entry.model,
        entry.image_size,
        f"{entry.accuracy:g} %",
        entry.budget,
        entry.source,
    )


def options(recipe):
    """The options that differ from those of `Recipe`, and the ones that every paper states."""
    stated = ("optimizer", "learning_rate", "batch_size", "weight_decay", "clip_norm", "image_size")
    default = Recipe()
    shown = [
        name
        for name in FIELDS
        if name not in PLACES
        and (name in stated or getattr(recipe, name) != getattr(default, name))
    ]
    return ", ".join(f"`{name}={getattr(recipe, name)!r}`" for name in shown)


def table_row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
