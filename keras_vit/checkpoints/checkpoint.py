"""A published checkpoint: its tensors, and what they tell of the model."""

import contextlib
import dataclasses
import math
from collections.abc import Callable

from keras_vit.checkpoints import (
    google,
    huggingface,
    keras_files,
    keras_hub,
    timm,
    torchvision,
    vit_keras,
)
from keras_vit.checkpoints.grids import PATCH_KERNEL, POSITIONS, locate
from keras_vit.checkpoints.layouts import Rule
from keras_vit.checkpoints.reading import CheckpointError, TensorFile, open_tensors, resolve_path
from keras_vit.checkpoints.report import grouped

# The first that recognises the names of a file's tensors reads it.
FORMATS = (google, timm, huggingface, torchvision, keras_hub, vit_keras)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a tensor's values are: a tensor of the file, or a slice of one.

    Args:
        name: Its name in the file.
        shape: Its shape, without what only stacks or pads it.
        index: Which slice along the first axis; None for all of it.
    """

    name: str
    shape: tuple[int, ...]
    index: int | None = None

    def __str__(self):
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint of a recognised format.

    Args:
        file: The open file.
        format: `"google"`, `"timm"`, `"hf"`, `"torchvision"`, `"keras-hub"`, `"vit-keras"` or
            `"keras"`, our own.
        tensors: Canonical name of a tensor → where it is.
        rules: Path of a weight of the model → where it is found.
        ignored: Name of a tensor in the file → why no model has a place for it.
        facts: What the file tells: fields of `VisionTransformerConfig`. What it does not tell
            is absent.
        notes: What was assumed, a sentence each.
        ambiguous: Fields that the file does not tell, and published models of such tensors have
            differently; the row of a named builder tells them, but for `activation`.
        is_grid_told: Whether the grid is the file's word, or the square that its positions make.
        resampling: Whose rule positions are resampled by.
        published_name: Function from a canonical name and the file's names to what a tensor that
            is missing would be called.
        added_layers: Of our .keras files: layers that no config tells of.
    """

    file: TensorFile
    format: str
    tensors: dict[str, Source]
    rules: dict[str, Rule]
    ignored: dict[str, str]
    facts: dict
    notes: tuple[str, ...]
    ambiguous: frozenset[str]
    is_grid_told: bool
    resampling: str
    published_name: Callable[[str, tuple[str, ...]], str]
    added_layers: tuple[str, ...] = ()

    @property
    def num_classes(self):
        """Number of classes; 0 where there is no head, or CLIP's projection in its place."""
        bias = self.rules.get("head/bias")
        is_projection = bias is not None and not bias.tensors
        return 0 if is_projection else self.facts.get("num_classes", 0)

    def file_name(self, name):
        """What the tensor of this canonical name is called in the file, or would be."""
        if name in self.tensors:
            return str(self.tensors[name])
        return self.published_name(name, tuple(self.file.shapes))

    def read(self, name):
        """The tensor of this canonical name."""
        source = self.tensors[name]
        if source.index is None:
            return self.file.read(source.name).reshape(source.shape)
        return self.file.read(source.name, source.index).reshape(source.shape)

    def __str__(self):
        shapes = self.file.shapes
        total = sum(map(math.prod, shapes.values()))
        lines = [
            f"{self.file.path}",
            f"  format      {self.format}",
            f"  tensors     {len(shapes)}, {total:,} values",
        ]
        for name, value in self.facts.items():
            lines.append(f"  {name:<20} {value}")
        if self.ambiguous:
            lines.append(f"  {'not told':<20} {', '.join(sorted(self.ambiguous))}")
        lines += [f"  assumed: {note}" for note in self.notes]
        for names, shape in grouped({name: str(shape) for name, shape in shapes.items()}):
            lines.append(f"    {names:<70} {shape}")
        return "\n".join(lines)


@contextlib.contextmanager
def open_checkpoint(path):
    """Opens a checkpoint and recognises its format by its tensors.

    Args:
        path: A .npz, .safetensors, .keras, .weights.h5 or .h5 file, the index of a sharded one, or
            a hub folder.

    Yields:
        A `Checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, a pickle, or of no known format.
    """
    path = resolve_path(path)
    if path.name.endswith(".keras"):
        with keras_files.open_keras_model(path) as (file, facts, added):
            notes = (f"layers that were added are left out: {', '.join(added)}",) if added else ()
            yield _keras_checkpoint(file, facts, notes, added)
        return
    with open_tensors(path) as file:
        if keras_files.recognises(file.shapes):
            facts = keras_files.weights_facts(file.path, file.shapes)
            yield _keras_checkpoint(file, facts, (keras_files.WEIGHTS_ONLY_NOTE,))
        else:
            yield recognise(file)


def _keras_checkpoint(file, facts, notes, added=()):
    return Checkpoint(
        file=file,
        format=keras_files.FORMAT,
        tensors={name: Source(name, tuple(shape)) for name, shape in file.shapes.items()},
        rules={name: Rule(name, (name,)) for name in file.shapes},
        ignored={},
        facts=facts,
        notes=notes,
        ambiguous=frozenset(),
        is_grid_told="image_size" in facts,
        resampling=timm.FORMAT,
        published_name=lambda name, file_names: name,
        added_layers=tuple(added),
    )


def recognise(file):
    """The `Checkpoint` that an open file of one of `FORMATS` is.

    Raises:
        CheckpointError: If it is of none, or its parts contradict each other.
    """
    for format in FORMATS:
        ignored, tensors = _sorted_tensors(file, format)
        if format.recognises(set(tensors)):
            break
    else:
        raise CheckpointError(
            f"{file.path}{_called(file)} is of no known format: expected a Vision Transformer of "
            "Google's .npz, of timm, transformers or torchvision as .safetensors, or of keras-hub "
            "or vit-keras as .h5. Its "
            f"{len(file.shapes)} tensors begin with "
            f"{', '.join(sorted(file.shapes)[:5]) or 'nothing'}"
        )
    shapes = {name: source.shape for name, source in tensors.items()}
    depth = _count_blocks(format.BLOCK, shapes)
    if depth > len(shapes):
        raise CheckpointError(
            f"{file.path}: the names of its {len(shapes)} tensors speak of {depth} blocks"
        )
    rules = format.rules(depth, shapes)
    try:
        weights = _weight_shapes(file, rules, shapes)
        _check_heads(weights, rules)
        facts, notes = format.facts(weights, shapes, file)
        resampling = facts.pop("resampling", getattr(format, "RESAMPLING", format.FORMAT))
        ambiguous = facts.pop("ambiguous", frozenset())
        _check_embedding(facts, weights, rules, tensors)
        names = {
            rule.weight: _tensors_of(rule.weight, rules, format, file)
            for rule in rules
            if rule.weight == POSITIONS
        }
        notes = list(notes)
        facts, is_grid_told = locate(facts, weights, notes, names)
        if not is_grid_told and "image_size" in facts:
            notes.append(f"a square of patches, {facts['image_size']} px, as none is stated")
        _check_sizes(facts)
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError),
        OverflowError,
    ) as error:
        what = error
        if isinstance(error, KeyError):
            what = f"{_tensors_of(error.args[0], rules, format, file)} is missing"
        raise CheckpointError(
            f"{file.path}: its tensors or the config.json beside it do not describe a Vision "
            f"Transformer ({what})"
        ) from error
    return Checkpoint(
        file=file,
        format=format.FORMAT,
        tensors=tensors,
        rules={rule.weight: rule for rule in rules},
        ignored=ignored,
        facts=facts,
        notes=tuple(notes),
        ambiguous=ambiguous,
        is_grid_told=is_grid_told,
        resampling=resampling,
        published_name=format.published_name,
    )


def _called(file):
    """What config.json calls the model, to be added to the file's name."""
    config = file.hub_config or {}
    names = config.get("architecture") or config.get("architectures") or config.get("model_type")
    return f" (config.json: {names})" if names else ""


def _tensors_of(weight, rules, format, file):
    """What the tensors of a weight would be called in the file."""
    names = next((rule.tensors for rule in rules if rule.weight == weight), (str(weight),))
    return ", ".join(format.published_name(name, tuple(file.shapes)) for name in names)


def _check_heads(weights, rules):
    """A head that is not as wide as its bias would be taken for one of other classes."""
    tensors = {rule.weight: rule.tensors for rule in rules}
    for layer in ("head", "head_distillation", "pre_logits"):
        kernel, bias = (weights.get(f"{layer}/{part}") for part in ("kernel", "bias"))
        if kernel is not None and bias is not None and kernel[-1:] != bias:
            raise ValueError(
                f"shape: {', '.join(tensors[f'{layer}/bias'])} is {bias}, and "
                f"{', '.join(tensors[f'{layer}/kernel'])} is for {kernel[-1]} outputs"
            )


def _check_sizes(facts):
    if len(facts.get("patch_size", (1, 1))) != 2:
        raise ValueError(f"the size of its patches would be {facts['patch_size']}")
    for name in ("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads"):
        value = facts.get(name, 1)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name} would be {value}")


def _count_blocks(pattern, names):
    return 1 + max((int(match[1]) for match in map(pattern.match, names) if match), default=-1)


def _reason_to_ignore(canonical, format):
    patterns = getattr(format, "IGNORED", ())
    return next((reason for pattern, reason in patterns if pattern.search(canonical)), None)


def _check_embedding(facts, weights, rules, tensors):
    """What a transposed kernel, or positions of another width, would be misread as."""
    if "stem_blocks" in facts or len(facts.get("patch_size", ())) != 2:
        return
    expected = {
        PATCH_KERNEL: (3 * math.prod(facts["patch_size"]), facts["hidden_size"]),
        POSITIONS: (*weights.get(POSITIONS, ())[:2], facts["hidden_size"]),
    }
    for rule in rules:
        if (
            rule.weight in expected
            and weights.get(rule.weight, expected[rule.weight]) != (expected[rule.weight])
        ):
            sources = [tensors[name] for name in rule.tensors]
            raise ValueError(
                "shape: "
                + ", ".join(f"{source} is {source.shape}" for source in sources)
                + f", which makes {weights[rule.weight]}; expected {expected[rule.weight]}, for "
                f"patches of 3 channels and tokens of {facts['hidden_size']}"
            )


def _sorted_tensors(file, format):
    """What is ignored, with reasons, and the rest by canonical names."""
    ignored, tensors = {}, {}
    for name, shape in file.shapes.items():
        canonical = format.canonical_name(name)
        reason = "it is empty" if 0 in shape else _reason_to_ignore(canonical, format)
        if reason is not None:
            ignored[name] = reason
            continue
        try:
            stacked = format.unstacked(canonical, shape) if hasattr(format, "unstacked") else None
        except ValueError as error:
            raise CheckpointError(f"{file.path}{_called(file)}: {error}") from error
        if stacked is not None:
            sources = {part: Source(name, shape[1:], i) for i, part in enumerate(stacked)}
        elif hasattr(format, "normalised_shape"):
            sources = {canonical: Source(name, format.normalised_shape(canonical, shape))}
        else:
            sources = {canonical: Source(name, tuple(shape))}
        for part, source in sources.items():
            if part in tensors:
                raise CheckpointError(
                    f"{file.path}{_called(file)} holds {name} beside {tensors[part].name}: two "
                    "tensors for one weight; of a model for pre-training, save the encoder inside "
                    "it alone"
                )
            tensors[part] = source
    return ignored, tensors


def _weight_shapes(file, rules, shapes):
    found = {}
    for rule in rules:
        if rule.tensors and all(name in shapes for name in rule.tensors):
            try:
                found[rule.weight] = rule.weight_shape([shapes[name] for name in rule.tensors])
            except (IndexError, ValueError) as error:
                raise CheckpointError(
                    f"{file.path}: shape: "
                    + ", ".join(f"{name} is {shapes[name]}" for name in rule.tensors)
                    + f", of which the weight {rule.weight} cannot be made"
                ) from error
    return found


def inspect_checkpoint(path):
    """What a checkpoint holds, to be printed.

    Args:
        path: As of `open_checkpoint`.

    Returns:
        A string: format, architecture, assumptions and tensors.
    """
    with open_checkpoint(path) as checkpoint:
        return str(checkpoint)
