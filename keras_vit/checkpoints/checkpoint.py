"""A published checkpoint: its tensors, and what they tell of the model."""

import contextlib
import dataclasses
from collections.abc import Callable

from keras_vit.checkpoints import google, keras_files, timm
from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, open_tensors, resolve_path
from keras_vit.checkpoints.report import grouped

FORMATS = (google, timm)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint of a recognised format.

    Args:
        file: The open file.
        format: `"google"`, `"timm"` or `"keras"`.
        names: Canonical name of a tensor → its name in the file.
        rules: Function from a config to the `Rule` of each weight, in canonical names.
        facts: What the file tells: fields of `VisionTransformerConfig`. What it does not tell
            is absent.
        notes: What was assumed, a sentence each.
        resampling: Whose rule positions are resampled by.
    """

    file: TensorFile
    format: str
    names: dict[str, str]
    rules: Callable[..., list[Rule]]
    facts: dict
    notes: tuple[str, ...]
    resampling: str

    def __str__(self):
        shapes = self.file.shapes
        total = sum(map(_size, shapes.values()))
        lines = [
            f"{self.file.path}",
            f"  format      {self.format}",
            f"  tensors     {len(shapes)}, {total:,} values",
        ]
        for name, value in self.facts.items():
            lines.append(f"  {name:<20} {value}")
        lines += [f"  assumed: {note}" for note in self.notes]
        for names, shape in grouped({name: str(shape) for name, shape in shapes.items()}):
            lines.append(f"    {names:<70} {shape}")
        return "\n".join(lines)


def _size(shape):
    size = 1
    for side in shape:
        size *= side
    return size


@contextlib.contextmanager
def open_checkpoint(path, config=None):
    """Opens a checkpoint and recognises its format by its tensors.

    Args:
        path: A .npz, .safetensors, .keras or .weights.h5 file, or a hub folder.
        config: Config of the model to be loaded; only a .weights.h5 file needs it.

    Yields:
        A `Checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, a pickle, or of no known format.
    """
    path = resolve_path(path)
    if path.name.endswith((".keras", ".weights.h5")):
        with keras_files.open_keras_file(path, config) as (file, stored):
            yield Checkpoint(
                file,
                keras_files.FORMAT,
                {name: name for name in file.shapes},
                lambda _: keras_files.rules(file.shapes),
                keras_files.facts(stored),
                (),
                "timm",
            )
        return
    with open_tensors(path) as file:
        for format in FORMATS:
            names = {format.canonical_name(name): name for name in file.shapes}
            if format.recognises(names):
                break
        else:
            raise CheckpointError(
                f"{path} is of no known format: expected a Vision Transformer of Google's .npz or "
                f"timm's .safetensors. Its {len(file.shapes)} tensors begin with "
                f"{', '.join(sorted(file.shapes)[:5]) or 'nothing'}"
            )
        shapes = {name: file.shapes[original] for name, original in names.items()}
        try:
            facts, notes = format.facts(shapes, file.hub_config)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: its tensors or the config.json beside it do not describe a Vision "
                f"Transformer ({error})"
            ) from error
        yield Checkpoint(
            file, format.FORMAT, names, format.rules, facts, tuple(notes), format.FORMAT
        )


def inspect_checkpoint(path):
    """What a checkpoint holds, to be printed.

    Args:
        path: A .npz, .safetensors or .keras file, or a hub folder.

    Returns:
        A string: format, architecture, assumptions and tensors.
    """
    with open_checkpoint(path) as checkpoint:
        return str(checkpoint)
