"""Every option of a fine-tuning run, as one value."""

import dataclasses
import math
import os
import typing
from dataclasses import dataclass
from typing import Literal

# Options that say where files are or how often something is written: they do not change the
# weights a run ends with, so a run may go on with other values.
FREE_FIELDS = (
    "data_dir",
    "output",
    "evaluation_batch_size",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "export",
)


@dataclass(frozen=True)
class Recipe:
    """All options of a fine-tuning run.

    The defaults are the protocol of "An Image is Worth 16x16 Words" (arXiv 2010.11929, appendix
    B.1.1) as google-research/vision_transformer runs it: SGD with momentum 0.9 and no weight
    decay, batches of 512, linear warm-up, cosine decay to zero, gradients clipped to a global
    norm of 1, and a head that starts at zero. Where that code crops at random by area and keeps
    the momentum in bfloat16, this resizes, crops and mirrors as the paper's CIFAR runs do and
    keeps the momentum in the dtype of the weights.

    Raises:
        ValueError: For a value outside its range; the message names the option.

    Example:

    >>> Recipe(name="pets", data="oxford_iiit_pet", steps=500).optimizer
    'sgd'
    """

    name: str = "finetune"
    """Name of the run; its folder is OUTPUT/NAME."""

    model: str | None = None
    """Architecture, one of `keras-vit list`; None: the checkpoint's, vit_ti16 without one."""

    weights: str | None = None
    """Checkpoint to start from (.npz, .safetensors or its folder, .h5, .keras), or a name of
    `keras-vit list --weights`; None: random."""

    preprocessing: Literal["inception", "imagenet"] | None = None
    """Scaling of pixels; None: what the checkpoint says, inception (to -1..1) for random
    weights."""

    data: str = "digits"
    """A TFDS name, "digits", a folder with one sub-folder a class, or a .csv manifest."""

    data_dir: str | None = None
    """Folder of prepared TFDS data sets; None: the default of TFDS."""

    image_size: int = 224
    """Height and width of the images the network sees, in pixels."""

    resize_size: int | None = None
    """Size that training images are resized to before the random crop, in pixels; None: 8/7 of
    the image size."""

    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized."""

    horizontal_flip: bool = True
    """Whether half of the training images are mirrored."""

    train_images: int | None = None
    """Use a stratified, seeded subset of so many training images (the validation split is taken
    from it); None: all."""

    test_images: int | None = None
    """Test on a stratified, seeded subset of so many images; None: all."""

    validation_fraction: float = 0.02
    """Share of the training images held out for validation; 0: none. Not used where the data
    set has a validation split of its own."""

    steps: int = 500
    """Number of optimizer steps."""

    batch_size: int = 512
    """Images an optimizer step."""

    micro_batch_size: int | None = None
    """Images on the device at once; gradients are averaged over a batch made of several. None:
    the whole batch; on a CPU what needs about the memory of 64 images of 224 px."""

    evaluation_batch_size: int = 128
    """Images a batch of the evaluation."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's SGD with momentum, or AdamW."""

    learning_rate: float = 0.03
    """Highest learning rate, reached after the warm-up; it then falls to zero by a cosine."""

    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly from zero."""

    momentum: float = 0.9
    """Momentum of SGD."""

    weight_decay: float = 0.0
    """Decoupled weight decay of kernels, multiplied by the learning rate."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""

    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""

    dropout: float = 0.0
    """Dropout rate after dense layers and positions."""

    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""

    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, rising linearly from the first."""

    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Dtype policy; auto: mixed_bfloat16 where the accelerator has it, mixed_float16 with loss
    scaling on older GPUs, float32 on CPU."""

    seed: int = 0
    """Seed of splits, initial weights, order and augmentation."""

    output: str = "runs"
    """Folder of all runs."""

    log_every: int = 10
    """Steps between rows of log.csv."""

    evaluate_every: int = 100
    """Steps between evaluations on the validation split; 0: only at the end."""

    checkpoint_every: int = 100
    """Steps between training checkpoints; 0: only at the end."""

    export: bool = False
    """Whether to write saved_models/NAME for TensorFlow Serving at the end (needs the
    TensorFlow backend)."""

    def __post_init__(self) -> None:
        for field in ("weights", "data", "data_dir", "output"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, os.fspath(getattr(self, field)))
        _check_name(self.name)
        _check_range("image_size", self.image_size, 1)
        _check_range("resize_size", self.resize_size, self.image_size)
        _check_range("train_images", self.train_images, 2)
        _check_range("test_images", self.test_images, 1)
        _check_range("steps", self.steps, 1)
        _check_range("batch_size", self.batch_size, 1)
        _check_range("micro_batch_size", self.micro_batch_size, 1, self.batch_size)
        _check_range("evaluation_batch_size", self.evaluation_batch_size, 1)
        _check_range("warmup_steps", self.warmup_steps, 0, self.steps)
        _check_range("log_every", self.log_every, 1)
        _check_range("evaluate_every", self.evaluate_every, 0)
        _check_range("checkpoint_every", self.checkpoint_every, 0)
        _check_range("seed", self.seed, 0, 2**32 - 1)
        _check_range("learning_rate", self.learning_rate, 0.0)
        _check_range("weight_decay", self.weight_decay, 0.0)
        _check_range("clip_norm", self.clip_norm, 0.0)
        for field in (
            "validation_fraction",
            "momentum",
            "label_smoothing",
            "dropout",
            "attention_dropout",
            "drop_path",
        ):
            _check_range(field, getattr(self, field), 0.0, below=1.0)
        for field in ("preprocessing", "interpolation", "optimizer", "precision"):
            choices = _choices(Recipe.__annotations__[field])
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"`{field}` must be one of {', '.join(map(str, choices))}. "
                    f"Received: {field}={getattr(self, field)!r}"
                )
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                "`batch_size` must be a multiple of `micro_batch_size`. Received: "
                f"batch_size={self.batch_size}, micro_batch_size={self.micro_batch_size}"
            )

    @property
    def accumulation_steps(self) -> int:
        """Number of micro-batches whose gradients are averaged for one optimizer step."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


def differing_fields(recipe: dict, other: dict) -> list[str]:
    """The options by which two runs differ, as lines `name: value here, value there`.

    Args:
        recipe: Options by name.
        other: Options by name, of the run to compare with.

    Returns:
        One line an option whose values differ, without those of `FREE_FIELDS`.

    Example:

    >>> differing_fields({"steps": 10, "output": "a"}, {"steps": 20, "output": "b"})
    ['steps: 10, there 20']
    """
    names = [name for name in {**recipe, **other} if name not in FREE_FIELDS]
    return [
        f"{name}: {recipe.get(name)!r}, there {other.get(name)!r}"
        for name in names
        if recipe.get(name) != other.get(name)
    ]


def recipe_fields(recipe: Recipe) -> dict:
    """The options of a recipe by name, as plain values that JSON can hold.

    >>> recipe_fields(Recipe(steps=7, warmup_steps=1))["steps"]
    7
    """
    return dataclasses.asdict(recipe)


def _choices(annotation):
    """The values that a `Literal`, or one in a union with None, allows."""
    parts = typing.get_args(annotation)
    return [value for part in parts for value in (typing.get_args(part) or (part,))] + (
        [None] if type(None) in parts else []
    )


def _check_name(name):
    if not name or name.strip(". ") != name or any(c in name for c in '/\\:*?"<>|\0'):
        raise ValueError(
            f"`name` must be usable as the name of a folder (no slashes). Received: name={name!r}"
        )


def _check_range(field, value, smallest, largest=None, *, below=None):
    if value is None:
        return
    expected_type = int if isinstance(smallest, int) else (int, float)
    is_number = isinstance(value, expected_type) and not isinstance(value, bool)
    if (
        is_number
        and math.isfinite(value)
        and value >= smallest
        and (largest is None or value <= largest)
        and (below is None or value < below)
    ):
        return
    kind = "an integer" if isinstance(smallest, int) else "a number"
    upper = f" and at most {largest}" if largest is not None else ""
    upper += f" and below {below}" if below is not None else ""
    raise ValueError(
        f"`{field}` must be {kind}, at least {smallest}{upper}. Received: {field}={value!r}"
    )
