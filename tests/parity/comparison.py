"""One pair after another: the library's model saved, loaded by keras_vit, compared."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import keras
import safetensors.torch
import timm
import transformers

import keras_vit

from . import libraries
from .cases import Case

# max |difference| / max |reference|, in float32.
BOUNDS = {"full": 1e-4, "tiny": 2e-5}


@dataclasses.dataclass(frozen=True)
class Row:
    """The outcome for one pair at one image size.

    Args:
        case: The pair.
        image_size: (height, width).
        resampled: Whether positions were resampled on both sides.
        parameters: Number of the library's parameters.
        error: max |difference| / max |reference|; None where the pair could not be compared.
        noise: The same between the library's float32 and float64 passes.
        seconds: What the Keras model's pass took; the first of its kind, so with tracing.
        problem: Why the pair could not be compared.
    """

    case: Case
    image_size: tuple[int, int] = (0, 0)
    resampled: bool = False
    parameters: int = 0
    error: float | None = None
    noise: float = 0.0
    seconds: float = 0.0
    problem: str = ""

    def agrees(self, size):
        """Whether the error is within the bound of `size`."""
        return self.error is not None and self.error <= BOUNDS[size]


def compare(case, size):
    """The rows of `case`: at its own image size and, where the library resamples, at another.

    Args:
        case: A `Case`.
        size: `"full"` or `"tiny"`.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = libraries.build(case, size, folder)
        native = libraries.native_size(case, model)
        runs = [(native, {}, libraries.run(case, model, native))]
        if case.other_size is not None:
            other = libraries.other_size(case, size)
            model = libraries.at_other_size(case, size, folder, model)
            runs.append((other, {"image_size": other}, libraries.run(case, model, other)))
        del model
        return [_row(case, size, folder, *run) for run in runs]


def load(case, size, folder, **fields):
    """The Keras model of what `libraries.build` saved in `folder`."""
    told = dict(case.expected) | fields
    if case.library == "torchvision" and size == "tiny":
        told["num_heads"] = 4  # A bare file does not tell.
    return keras_vit.from_checkpoint(folder, include_preprocessing=False, name=case.model, **told)


def _row(case, size, folder, image_size, fields, reference):
    row = Row(case, image_size, bool(fields), reference.parameters, noise=reference.noise)
    try:
        model = load(case, size, folder, **fields)
        start = time.perf_counter()
        output = keras.ops.convert_to_numpy(model(reference.images, training=False))
        seconds = time.perf_counter() - start
        if output.shape != reference.output.shape:
            raise ValueError(f"shapes differ: {output.shape}, {reference.output.shape}")
        error = libraries.relative_error(output, reference.output)
        return dataclasses.replace(row, error=error, seconds=seconds)
    except Exception as problem:
        message = str(problem).replace(f"{folder}/", "")
        return dataclasses.replace(row, problem=f"{type(problem).__name__}: {message}")
    finally:
        model = None
        keras.backend.clear_session()


def reopened(case, folder):
    """The library's own model of a folder that `keras_vit.save_checkpoint` wrote.

    Raises:
        RuntimeError: If a tensor is missing or one too many.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if case.library == "timm":
        arguments = {"num_classes": config["num_classes"], **(config.get("model_args") or {})}
        model = timm.create_model(config["architecture"], **arguments)
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        model.load_state_dict(tensors, strict=True)
        return model.eval()
    model_class = getattr(transformers, config["architectures"][0])
    # A file without a pooling layer is a ViTModel's too; transformers must be told.
    rest = {"add_pooling_layer": False} if case.output == "unmasked_class_token" else {}
    model, found = model_class.from_pretrained(folder, output_loading_info=True, **rest)
    wrong = {kind: names for kind, names in found.items() if names}
    if wrong:
        raise RuntimeError(f"transformers.{model_class.__name__}.from_pretrained: {wrong}")
    return model.eval()
