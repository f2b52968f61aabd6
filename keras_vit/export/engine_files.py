"""What lies beside a model for another engine, for readers and for programs."""

import json
from pathlib import Path
from typing import Any

_README = """\
# {name}, version {version}

{title}, {precision}: `{model}` with {classes} classes. `signatures.json` says the same for
programs.

| | name | type | shape |
|---|---|---|---|
| input | `pixels` | uint8 | batch, height, width, 3 |
| output | `probabilities`, `logits` | float32 | batch, {classes} |

The batch, the height and the width may have any size from 1 on: the graph resizes, crops and scales
what it is given, for a network of {size} pixels. Give decoded RGB images as they are, those of one
batch of one size. An image so long and narrow that a side times what it is resized to reaches 2^29,
such as 3 x 16384, gets no numbers (NaN).

When it was written, {runtime} {installed} was compared with the Keras model on {images} pictures:
the largest difference of a probability was {max_probability_difference:.1e}, and {same_best_class}
of {images} best classes were the same.

With `pip install {runtime} numpy pillow`, in this folder:

```python
{example}
names = open("class_names.txt", encoding="utf-8").read().splitlines()
for index in probabilities[0].argsort()[::-1][:5]:
    print(f"{{probabilities[0, index]:.4f}}  {{names[index]}}")
```
"""


def describe_engine(folder: Path, engine, name: str, version: str, facts: dict[str, Any]) -> None:
    """Writes `signatures.json` and `README.md` of a model for another engine.

    Args:
        folder: Folder to write to.
        engine: The `Engine`.
        name: Name of the model.
        version: Its version.
        facts: What else a reader should know; entries of `signatures.json` as they are.
    """
    outputs = {
        name: {"dtype": "float32", "shape": [None, facts["classes"]]}
        for name in ("probabilities", "logits")
    }
    signature = {
        "inputs": {"pixels": {"dtype": "uint8", "shape": [None, None, None, 3]}},
        "outputs": outputs,
    }
    text = json.dumps({**facts, **signature}, indent=2) + "\n"
    (folder / "signatures.json").write_text(text, encoding="utf-8")
    check = facts["check"]
    (folder / "README.md").write_text(
        _README.format(
            name=name,
            version=version,
            title=engine.title,
            example=engine.example(facts["precision"]),
            **{key: facts[key] for key in ("model", "precision", "classes")},
            size=" x ".join(map(str, facts["image_size"])),
            runtime=engine.runtime,
            installed=facts["runtime"][engine.runtime],
            **check,
        ),
        encoding="utf-8",
    )
