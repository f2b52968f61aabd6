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
        patch_positions: Number of positions without that of the class token.
        resampling: Whose rule positions are resampled by.
        published_name: Function from a canonical name and the file's names to what a tensor that
            is missing would be called.
    """

    file: TensorFile
    format: str
    names: dict[str, str]
    rules: Callable[..., list[Rule]]
    facts: dict
    notes: tuple[str, ...]
    patch_positions: int
    resampling: str
    published_name: Callable[[str, tuple[str, ...]], str]

    def file_name(self, name):
        """What the tensor of this canonical name is called in the file, or would be."""
        return self.names.get(name) or self.published_name(name, tuple(self.file.shapes))

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
def open_checkpoint(path):
    """Opens a checkpoint and recognises its format by its tensors.

    Args:
        path: A .npz, .safetensors, .keras or .weights.h5 file, or a hub folder.

    Yields:
        A `Checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, a pickle, or of no known format.
    """
    path = resolve_path(path)
    if path.name.endswith(".keras"):
        with keras_files.open_keras_model(path) as (file, facts):
            yield _keras_checkpoint(file, facts, ())
    elif path.name.endswith(".weights.h5"):
        with keras_files.open_keras_weights(path) as (file, facts):
            yield _keras_checkpoint(file, facts, (keras_files.WEIGHTS_ONLY_NOTE,))
    else:
        with open_tensors(path) as file:
            yield _recognise(file)


def _keras_checkpoint(file, facts, notes):
    names = {name: name for name in file.shapes}
    rules = keras_files.rules(file.shapes)
    return Checkpoint(
        file=file,
        format=keras_files.FORMAT,
        names=names,
        rules=lambda config: rules,
        facts=facts,
        notes=notes,
        patch_positions=_patch_positions(file.shapes, keras_files.POSITIONS, facts),
        resampling=timm.FORMAT,
        published_name=keras_files.published_name,
    )


def _recognise(file):
    for format in FORMATS:
        names = {format.canonical_name(name): name for name in file.shapes}
        if format.recognises(names):
            break
    else:
        raise CheckpointError(
            f"{file.path} is of no known format: expected a Vision Transformer of Google's .npz or "
            f"timm's .safetensors. Its {len(file.shapes)} tensors begin with "
            f"{', '.join(sorted(file.shapes)[:5]) or 'nothing'}"
        )
    twice = sorted(set(file.shapes) - set(names.values()))
    if twice:
        raise CheckpointError(
            f"{file.path} holds {twice[0]} beside {names[format.canonical_name(twice[0])]}: two "
            "tensors for one weight"
        )
    shapes = {name: file.shapes[original] for name, original in names.items()}
    try:
        facts, notes = format.facts(shapes, file.hub_config)
        patch_positions = _patch_positions(shapes, format.POSITIONS, facts)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{file.path}: its tensors or the config.json beside it do not describe a Vision "
            f"Transformer ({error})"
        ) from error
    return Checkpoint(
        file=file,
        format=format.FORMAT,
        names=names,
        rules=format.rules,
        facts=facts,
        notes=tuple(notes),
        patch_positions=patch_positions,
        resampling=format.FORMAT,
        published_name=format.published_name,
    )


def _patch_positions(shapes, name, facts):
    if name not in shapes:
        raise CheckpointError(f"the tensor {name} is missing")
    return shapes[name][1] - int(facts["class_token"])


def inspect_checkpoint(path):
    """What a checkpoint holds, to be printed.

    Args:
        path: A .npz, .safetensors or .keras file, or a hub folder.

    Returns:
        A string: format, architecture, assumptions and tensors.
    """
    with open_checkpoint(path) as checkpoint:
        return str(checkpoint)
