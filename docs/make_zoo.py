"""Writes docs/zoo.md out of the table of variants and the catalog of published weights.

python docs/make_zoo.py
"""

import dataclasses
from pathlib import Path
from urllib.parse import urlsplit

from keras_vit.checkpoints.huggingface import MODEL_TYPES
from keras_vit.models import (
    VARIANTS,
    Preprocessing,
    VisionTransformerConfig,
    count_macs,
    count_parameters,
)
from keras_vit.zoo.catalog import read_catalog

PAGE = Path(__file__).with_name("zoo.md")
# Beginning of a variant's name → its family, and where that was published. The first that fits.
FAMILIES = {
    "vit_r": ("ViT, hybrid", "2106.10270"),
    "vit": ("ViT", "2010.11929"),
    "big_vision": ("big_vision", "2205.01580"),
    "deit3": ("DeiT III", "2204.07118"),
    "deit": ("DeiT", "2012.12877"),
    "mae": ("MAE", "2111.06377"),
    "dinov2_reg": ("DINOv2, registers", "2309.16588"),
    "dinov2": ("DINOv2", "2304.07193"),
    "dinov3": ("DINOv3", "2508.10104"),
    "dino": ("DINO", "2104.14294"),
    "siglip2": ("SigLIP 2", "2502.14786"),
    "siglip": ("SigLIP", "2303.15343"),
    "clip": ("CLIP", "2103.00020"),
    "beitv2": ("BEiT v2", "2208.06366"),
    "beit": ("BEiT", "2106.08254"),
}
SIZES = ("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads")

INTRODUCTION = """\
<!-- Written by `make zoo` (docs/make_zoo.py) out of the package's tables: change those. -->

# The zoo

One call gives the model, whichever of these families it is of. All are the same few layers with
other switches (`keras_vit.models.VisionTransformerConfig`), and every switch can be set for a model
of one's own.

```python
import keras_vit

# Random weights, published ones by name, and the same where the name tells the size.
model = keras_vit.create("dinov2_s14", num_classes=10)
model = keras_vit.create("vit_b16", num_classes=10, weights="augreg-in21k")
model = keras_vit.from_checkpoint("b16-augreg-in21k", num_classes=10)
# A file, at a resolution of one's own; and another resolution later, weights kept.
model = keras_vit.from_checkpoint("checkpoints/B_16.npz", num_classes=10, image_size=384)
model = keras_vit.resize(model, image_size=(256, 512))

keras_vit.list_models("dino*")      # keras-vit list
keras_vit.list_weights("b16-*")     # keras-vit list --weights
config = keras_vit.models.config_of(model)
keras_vit.models.count_parameters(config), keras_vit.models.count_macs(config)
```

Published weights are fetched into the Keras cache when they are first asked for, gone on with after
a cut, and verified: against the publisher's digest, or else against that of the first use, which a
lock file keeps (`KERAS_VIT_LOCK` says where; it can be committed) once the file is found to be what
the table below says. `KERAS_VIT_MIRROR` names a folder to look in first, for NAME/FILE, or for FILE
where only one file of that table is called so; and `KERAS_VIT_OFFLINE=1` forbids fetching.
"""

FORMATS_HEADER = """\
## Formats

Format, architecture and patch size are read off names, shapes and the config beside the file; what
none of them tells is asked for by an error. The model's `load_report` says what became of each
tensor, and what was assumed. PyTorch's `.pth` and `.bin` are pickles and refused, with the line
that converts them.

| format | files that are read | written by |
|---|---|---|
"""
FORMATS = (
    (
        "Google's vision_transformer and big_vision",
        "`.npz` in all layouts: older and newer names, `opt/target/`, `params/`, `params/img/`, "
        "stacked blocks, hybrids",
        '`keras_vit.save_checkpoint(model, path, format="google")`',
    ),
    (
        "timm, and DeiT's state dicts",
        "`.safetensors`, its hub folder, sharded with an index",
        '`format="timm"`',
    ),
    (
        f"transformers: {', '.join(f'`{name}`' for name in MODEL_TYPES)}",
        "the same",
        '`format="hf"`',
    ),
    ("torchvision", "`.safetensors`", ""),
    ("keras-hub", "`.h5` and presets", ""),
    ("vit-keras", "`.h5`", ""),
    ("keras_vit", "`.keras`, `.weights.h5`", "`model.save`, `model.save_weights`"),
)

VARIANTS_HEADER = """\
## Models

With 1,000 classes at 224 px. A MAC is one multiply-add of a convolution, a linear layer or a
product of attention; FLOPs are twice as many. Switches are the fields of the config that differ
from ViT's.

| name | family | patch | width | depth | heads | MLP | parameters | GMACs | switches |
|---|---|--:|--:|--:|--:|--:|--:|--:|---|
"""

WEIGHTS_HEADER = """\
## Published weights

{count} by name. GMACs are those at the resolution and with the head of the weights. ≈ stands before
what the publisher does not tell: the parameters are then those of the model in the table above, and
the size 4 bytes for each. Accuracies are published ones in per cent, none measured here; the number
in brackets is that of the source below. 🔒: the publisher hands the files to those alone who
accepted the licence.

| name | model | px | classes | parameters | GMACs | MB | licence | accuracy | address |
|---|---|--:|--:|--:|--:|--:|---|---|---|
"""


def page():
    """The text of docs/zoo.md."""
    entries = read_catalog().values()
    sources = list(dict.fromkeys(result.source for entry in entries for result in entry.accuracy))
    parts = [
        INTRODUCTION,
        FORMATS_HEADER + "".join(table_row(*row) for row in FORMATS),
        VARIANTS_HEADER + "".join(map(variant_row, VARIANTS)),
        WEIGHTS_HEADER.format(count=len(entries))
        + "".join(weights_row(entry, sources) for entry in entries),
        "Sources of the accuracies:\n\n"
        + "".join(f"{number}. {source}\n" for number, source in enumerate(sources, start=1)),
    ]
    return "\n".join(parts)


def variant_row(name):
    row = VARIANTS[name]
    config = VisionTransformerConfig(**row)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    switches = {
        field: value
        for field, value in row.items()
        if field not in SIZES and value != defaults[field]
    }
    return table_row(
        f"`{name}`",
        family(name),
        row["patch_size"],
        row["hidden_size"],
        row["depth"],
        row["num_heads"],
        row["mlp_dim"],
        f"{count_parameters(config):,}",
        billions(count_macs(config)),
        ", ".join(f"`{field}={switch(value)}`" for field, value in switches.items()),
    )


def family(name):
    title, paper = next(facts for start, facts in FAMILIES.items() if name.startswith(start))
    return f"[{title}](https://arxiv.org/abs/{paper})"


def switch(value):
    if isinstance(value, Preprocessing):
        pair = ((round(number, 3) for number in part) for part in (value.mean, value.std))
        return repr(tuple(map(tuple, pair)))
    return f'"{value}"' if isinstance(value, str) else repr(value)


def weights_row(entry, sources):
    config = published_config(entry)
    counted = entry.parameters or count_parameters(config)
    size = entry.size or 4 * counted
    return table_row(
        f"`{entry.name}`" + (" 🔒" if entry.gated else ""),
        f"`{entry.variant}`",
        entry.image_size,
        {0: "none", None: "?"}.get(entry.num_classes, entry.num_classes),
        ("" if entry.parameters else "≈ ") + f"{counted / 1e6:,.1f} M",
        billions(count_macs(config)),
        ("" if entry.size else "≈ ") + f"{size / 1e6:,.0f}",
        entry.licence,
        "; ".join(accuracy(result, sources) for result in entry.accuracy),
        link(entry.files[0]),
    )


def published_config(entry):
    """The config of published weights, as far as the catalog tells."""
    head = {"num_classes": entry.num_classes} if entry.num_classes else {"include_top": False}
    return VisionTransformerConfig(
        **{**VARIANTS[entry.variant], "image_size": entry.image_size, **head}
    )


def accuracy(result, sources):
    note = sources.index(result.source) + 1
    return f"{result.value:g} {result.metric} {result.data} ({note})"


def link(file):
    """The address under the name of the hub's repository, or else of the file."""
    repository = urlsplit(file.address).path.partition("/resolve/")
    return f"[{repository[0].strip('/') if repository[1] else file.name}]({file.address})"


def billions(macs):
    return f"{macs / 1e9:,.2f}" if macs < 1e10 else f"{macs / 1e9:,.1f}"


def table_row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
