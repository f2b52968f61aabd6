"""Every option of a fine-tuning run, as one value."""

import dataclasses
import math
import os
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import keras

from keras_vit.layers.nearest import nearest_names

# Options that say where files are, how often something is written or how many devices compute:
# they do not change the weights a run ends with, but for the last bits on other devices, so a run
# may go on with other values.
FREE_FIELDS = (
    "data_dir",
    "output",
    "distribute",
    "evaluation_batch_size",
    "evaluate_every",
    "checkpoint_every",
    "log_every",
    "export",
    "report",
    "accept_changes",
    "fresh",
)

# `sgd` and `keras_sgd` differ under a schedule, see `keras_vit.finetune.SGD`.
OPTIMIZERS = (
    "sgd",
    "keras_sgd",
    *sorted(
        name.lower()
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "SGD")
        # Schedule-free AdamW evaluates with other weights than it trains. FTRL's are a function of
        # the gradients alone, not of those it starts from; at a rate of zero they are NaN.
        and name not in ("ScheduleFreeAdamW", "Ftrl")
    ),
)

Rules = tuple[tuple[str, float], ...]


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

    damaged_images: Literal["error", "skip"] = "error"
    """What becomes of images that are missing, lead outside of the folder or cannot be decoded:
    the run does not begin and names them, or goes without them and lists them. A run that goes on
    leaves out the same ones."""

    train_images: int | None = None
    """Use a stratified, seeded subset of so many training images, of what `own_validation` adds to
    them too (the validation split is taken from it); no more than there are. None: all."""

    test_images: int | None = None
    """Test on a stratified subset of so many images, the same whatever the seed; no more than there
    are. None: all."""

    validation_fraction: float = 0.02
    """Share of the training images held out for validation, at least as many as there are classes
    of several images, never the only one of a class; 0: none. Not used where the data set's own
    validation images are."""

    own_validation: Literal["hold_out", "train", "ignore"] = "hold_out"
    """What becomes of validation images that the data set sets apart: choices are made by them,
    they are trained on, or they are left out."""

    adapt: Literal["full", "head", "lora"] = "full"
    """What is fitted: all weights; the head alone, on features that are computed once, from images
    prepared as for evaluation; or low-rank additions to the kernels of attention and MLP, and the
    head (LoRA, arXiv 2106.09685)."""

    trainable_blocks: int | None = None
    """Train only the last so many blocks and what follows them; None: all."""

    lora_rank: int = 8
    """Rank of LoRA's additions."""

    lora_alpha: float | None = None
    """LoRA's additions are multiplied by this over the rank; None: the rank."""

    layer_decay: float = 1.0
    """Factor of the learning rate from a block to the one before it."""

    trainable_rules: tuple[tuple[str, bool], ...] = ()
    """Which weights train: pairs of a pattern and True or False. The first pattern (a regular
    expression) that is the whole of a weight's path decides; empty: as the options above say."""

    learning_rate_rules: Rules = ()
    """Factor of the learning rate of each weight, likewise; empty: as `layer_decay` says."""

    weight_decay_rules: Rules = ()
    """Factor of the weight decay of each weight, likewise; empty: 1 for kernels, 0 for biases,
    norms, positions and tokens."""

    image_size: int = 224
    """Height and width of the images the network sees, in pixels."""

    crop: Literal["resize", "squash", "inception", "pad"] = "resize"
    """How training images are cropped at random: resized to cover `resize_size`; resized to it,
    whatever their aspect; a box of random area and aspect; or padded with black."""

    resize_size: int | None = None
    """Size that training images are resized to before the random crop, in pixels; None: 8/7 of
    the image size."""

    crop_min_area: float = 0.05
    """Smallest share of the image in the crop `inception`."""

    crop_padding: int = 4
    """Pixels of padding on each side in the crop `pad`, before the image is resized."""

    evaluation_crop: Literal["center", "squash"] = "center"
    """How images are prepared for evaluation: resized with their aspect, of which the middle is
    kept, or resized to the image size whatever their aspect."""

    evaluation_crop_fraction: float = 1.0
    """Share of the resized image's side that the middle is."""

    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized."""

    horizontal_flip: bool = True
    """Whether half of the training images are mirrored."""

    augment: Literal["none", "randaugment", "augmix", "three"] = "none"
    """RandAugment (arXiv 1909.13719), AugMix (arXiv 1912.02781), or one of greyscale, solarisation
    and blur (arXiv 2204.07118)."""

    augment_operations: int = 2
    """Operations in a row, in RandAugment."""

    augment_magnitude: float = 9.0
    """Strength of the operations, 0 to 10; in AugMix the largest, which its paper has at 3."""

    augment_magnitude_std: float = 0.5
    """Standard deviation of that strength from operation to operation."""

    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by a random factor in 1 ± this."""

    random_erasing: float = 0.0
    """Share of the images with a box of noise in them (arXiv 1708.04896)."""

    mixup: float = 0.0
    """Alpha of MixUp, which blends pairs of images and labels (arXiv 1710.09412); 0: none."""

    cutmix: float = 0.0
    """Alpha of CutMix, which pastes a box of one image into another (arXiv 1905.04899); 0: none.
    With both, each batch takes one of them."""

    mix_probability: float = 1.0
    """Share of the batches that are mixed."""

    repeated_augmentation: int = 1
    """How often an image comes, each time augmented anew, in the epochs that see it
    (arXiv 1901.09335)."""

    steps: int = 500
    """Number of optimizer steps."""

    epochs: float | None = None
    """Passes over the training images, instead of `steps`."""

    batch_size: int = 512
    """Images an optimizer step."""

    micro_batch_size: int | None = None
    """Images on all devices at once; gradients are averaged over a batch made of several. None:
    the largest that fits an accelerator; on a CPU what needs about the memory of 64 images of
    224 px."""

    evaluation_batch_size: int = 128
    """Images a batch of the evaluation."""

    optimizer: str = "sgd"
    """The paper's SGD with momentum; "keras_sgd", whose velocity holds the learning rate; or an
    optimizer of Keras in lower case: "adamw", "lion", …, but for "ftrl" and "schedulefreeadamw"."""

    optimizer_options: dict[str, float] = field(default_factory=dict)
    """Further options of the optimizer by name, such as beta_2 0.95."""

    momentum: float = 0.9
    """Momentum of SGD."""

    learning_rate: float = 0.03
    """Highest learning rate, reached after the warm-up."""

    learning_rate_batch_size: int | None = None
    """Batch size that the learning rate is meant for; it is scaled in proportion to
    `batch_size`. None: the rate is meant as it is."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""

    schedule_interval: Literal["step", "epoch"] = "step"
    """How often the learning rate changes."""

    cosine_from: Literal["warmup", "start"] = "warmup"
    """Where the cosine begins: at the end of the warm-up, or at the start of the run, so that the
    warm-up is cut out of it."""

    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""

    warmup_epochs: float | None = None
    """Epochs of warm-up, instead of `warmup_steps`."""

    warmup_learning_rate: float = 0.0
    """Learning rate at the start of the warm-up."""

    final_learning_rate: float = 0.0
    """Learning rate at the end."""

    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""

    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Softmax cross-entropy, or a sigmoid for each class whose target is 1 for every class in a
    mixed image (arXiv 2204.07118)."""

    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""

    dropout: float = 0.0
    """Dropout rate after dense layers and positions."""

    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""

    drop_path: float = 0.0
    """Stochastic depth: rate of the last block, rising linearly from the first."""

    efficient_drop_path: bool = False
    """Whether the samples that stochastic depth drops are not computed: the same number of each
    batch, for less time."""

    remat: bool = False
    """Whether each block's activations are computed again in the backward pass instead of being
    kept: less memory, more time, the same training."""

    ema_decay: float = 0.0
    """Share of the running average of the weights that a step keeps; the average is what is
    evaluated and saved. 0: none."""

    early_stopping: int | None = None
    """Training ends after so many evaluations in a row without a better validation accuracy;
    None: never."""

    keep: Literal["last", "best"] = "last"
    """Which weights the run ends with: those of the last step, or those of the best validation
    accuracy."""

    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Dtype policy; auto: mixed_bfloat16 where the accelerator has it, mixed_float16 with loss
    scaling on older GPUs, float32 on CPU."""

    seed: int = 0
    """Seed of what is held out of train, of initial weights, order and augmentation. The test
    images are the same whatever it is."""

    deterministic: bool = False
    """Whether only operations are used that give the same bits each time on a GPU, which takes
    longer. On a CPU they do anyway."""

    distribute: Literal["none", "mirrored", "data_parallel"] = "none"
    """Which devices compute: one; all of this host (TensorFlow); or all of one or several hosts
    (JAX). Each batch is divided among them."""

    output: str = "runs"
    """Folder of all runs."""

    log_every: int = 10
    """Steps between rows of log.csv."""

    evaluate_every: int = 100
    """Steps between evaluations on the validation split; 0: only at the end."""

    checkpoint_every: int = 100
    """Steps between training checkpoints; 0: only at the end."""

    export: bool = False
    """Whether to write the next version in saved_models/NAME for TensorFlow Serving at the end
    (needs the TensorFlow backend); a model that was written is not written again."""

    report: bool = True
    """Whether to write report.html at the end (needs matplotlib and Jinja)."""

    accept_changes: bool = False
    """Whether a run may go on with other options than it began with; they are listed, in
    recipe.json too. Never with other data, another seed or another division, by which images that
    were trained on could be held out or tested, nor with another optimizer, which has a state of
    its own."""

    fresh: bool = False
    """Whether to start over, in the new folder OUTPUT/NAME-2 (NAME-3, …) where OUTPUT/NAME is
    taken."""

    def __post_init__(self) -> None:
        for name in ("weights", "data", "data_dir", "output"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name in ("trainable_rules", "learning_rate_rules", "weight_decay_rules"):
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        _check_name(self.name)
        _check_kinds(self)
        for name, bounds in _BOUNDS.items():
            _check_range(name, getattr(self, name), *bounds)
        for name in _SHARES:
            _check_range(name, getattr(self, name), 0.0, below=1.0)
        _check_range("resize_size", self.resize_size, self.image_size)
        _check_range("micro_batch_size", self.micro_batch_size, 1, self.batch_size)
        if self.epochs is None and self.warmup_epochs is None:
            _check_range("warmup_steps", self.warmup_steps, 0, self.steps)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(str, choices))}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"`optimizer` must be one of {', '.join(OPTIMIZERS)}. "
                f"Received: optimizer={self.optimizer!r}. "
                f"{nearest_names(str(self.optimizer), OPTIMIZERS)}"
            )
        if self.micro_batch_size == 1 and self.batch_size > 1 and (self.mixup or self.cutmix):
            raise ValueError(
                "mixup and cutmix mix the images of a micro-batch: expected 2 or more. Received: "
                "micro_batch_size=1; choose a larger one, or leave it out"
            )
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError(
                "`batch_size` must be a multiple of `micro_batch_size`. Received: "
                f"batch_size={self.batch_size}, micro_batch_size={self.micro_batch_size}"
            )
        _check_all_are_read(self)

    @property
    def accumulation_steps(self) -> int:
        """Number of micro-batches whose gradients are averaged for one optimizer step."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate, scaled to the batch size where the recipe says so."""
        return (
            self.learning_rate
            * self.batch_size
            / (self.learning_rate_batch_size or self.batch_size)
        )


def differing_fields(recipe: dict, other: dict) -> dict[str, str]:
    """The options by which two runs differ, as `value here, there value` by name.

    Args:
        recipe: Options by name.
        other: Options by name, of the run to compare with.

    Returns:
        A text for each option whose values differ, without those of `FREE_FIELDS`.

    Example:

    >>> differing_fields({"steps": 10, "output": "a"}, {"steps": 20, "output": "b"})
    {'steps': '10, there 20'}
    """
    names = [name for name in {**recipe, **other} if name not in FREE_FIELDS]
    return {
        name: f"{recipe.get(name)!r}, there {other.get(name)!r}"
        for name in names
        if recipe.get(name) != other.get(name)
    }


def recipe_fields(recipe: Recipe) -> dict:
    """The options of a recipe by name, as plain values that JSON can hold.

    >>> recipe_fields(Recipe(steps=7, warmup_steps=1))["steps"]
    7
    """
    return dataclasses.asdict(recipe)


def _choices(annotation):
    """The values that a `Literal`, or one in a union with None, allows; () for other types."""
    parts = typing.get_args(annotation)
    if annotation in (str, bool) or not any(
        typing.get_origin(part) is Literal for part in (annotation, *parts)
    ):
        return ()
    values = [value for part in parts for value in (typing.get_args(part) or (part,))]
    return tuple(None if value is type(None) else value for value in values)


_CHOICES = {
    field.name: _choices(field.type) for field in dataclasses.fields(Recipe) if _choices(field.type)
}

# The smallest value allowed, and the largest where there is one; integers where the smallest is.
_BOUNDS: dict[str, tuple[Any, ...]] = {
    "image_size": (1,),
    "train_images": (2,),
    "test_images": (1,),
    "trainable_blocks": (0,),
    "lora_rank": (1,),
    "early_stopping": (1,),
    "lora_alpha": (1e-9,),
    "layer_decay": (1e-9, 1.0),
    "crop_min_area": (1e-9, 1.0),
    "evaluation_crop_fraction": (0.01, 1.0),
    "crop_padding": (0,),
    "augment_operations": (1,),
    "augment_magnitude": (0.0, 10.0),
    "augment_magnitude_std": (0.0,),
    "color_jitter": (0.0, 1.0),
    "random_erasing": (0.0, 1.0),
    "mixup": (0.0,),
    "cutmix": (0.0,),
    "mix_probability": (0.0, 1.0),
    "repeated_augmentation": (1,),
    "steps": (1,),
    "epochs": (1e-9,),
    "batch_size": (1,),
    "evaluation_batch_size": (1,),
    "learning_rate": (0.0,),
    "learning_rate_batch_size": (1,),
    "warmup_steps": (0,),
    "warmup_epochs": (0.0,),
    "warmup_learning_rate": (0.0,),
    "final_learning_rate": (0.0,),
    "weight_decay": (0.0,),
    "clip_norm": (0.0,),
    "seed": (0, 2**32 - 1),
    "log_every": (1,),
    "evaluate_every": (0,),
    "checkpoint_every": (0,),
}
_SHARES = (
    "validation_fraction",
    "momentum",
    "label_smoothing",
    "dropout",
    "attention_dropout",
    "drop_path",
    "ema_decay",
)

# Options that are read only where others have certain values: who sets one in vain is told.
_READ_WHERE: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (
        (
            *("crop", "resize_size", "crop_min_area", "crop_padding", "augment", "color_jitter"),
            *("random_erasing", "mixup", "cutmix", "repeated_augmentation", "horizontal_flip"),
            *("dropout", "attention_dropout", "drop_path", "layer_decay", "trainable_blocks"),
            *("trainable_rules", "remat", "efficient_drop_path"),
        ),
        "adapt is full or lora (the head is fitted to features that are computed once)",
        lambda recipe: recipe.adapt != "head",
    ),
    (
        ("trainable_blocks", "layer_decay"),
        "adapt is full (LoRA keeps the blocks as they are)",
        lambda recipe: recipe.adapt == "full",
    ),
    (("lora_rank", "lora_alpha"), "adapt is lora", lambda recipe: recipe.adapt == "lora"),
    (
        ("trainable_blocks",),
        "there are no trainable_rules",
        lambda recipe: not recipe.trainable_rules,
    ),
    (
        ("layer_decay",),
        "there are no learning_rate_rules",
        lambda recipe: not recipe.learning_rate_rules,
    ),
    (
        ("weight_decay_rules",),
        "weight_decay is above 0",
        lambda recipe: recipe.weight_decay > 0,
    ),
    (
        ("resize_size",),
        "crop is resize or squash",
        lambda recipe: recipe.crop in ("resize", "squash"),
    ),
    (
        ("evaluation_crop_fraction",),
        "evaluation_crop is center",
        lambda recipe: recipe.evaluation_crop == "center",
    ),
    (("crop_min_area",), "crop is inception", lambda recipe: recipe.crop == "inception"),
    (("crop_padding",), "crop is pad", lambda recipe: recipe.crop == "pad"),
    (
        ("augment_operations", "augment_magnitude_std"),
        "augment is randaugment",
        lambda recipe: recipe.augment == "randaugment",
    ),
    (
        ("augment_magnitude",),
        "augment is randaugment or augmix",
        lambda recipe: recipe.augment in ("randaugment", "augmix"),
    ),
    (
        ("mix_probability",),
        "mixup or cutmix is above 0",
        lambda recipe: recipe.mixup > 0 or recipe.cutmix > 0,
    ),
    (
        ("efficient_drop_path",),
        "drop_path is above 0, and distribute is not data_parallel (a sample stays on its device)",
        lambda recipe: recipe.drop_path > 0 and recipe.distribute != "data_parallel",
    ),
    (("steps",), "epochs is not set", lambda recipe: recipe.epochs is None),
    (("warmup_steps",), "warmup_epochs is not set", lambda recipe: recipe.warmup_epochs is None),
    (
        ("momentum",),
        "optimizer is sgd or keras_sgd",
        lambda recipe: recipe.optimizer in ("sgd", "keras_sgd"),
    ),
    (("cosine_from",), "schedule is cosine", lambda recipe: recipe.schedule == "cosine"),
    (
        ("final_learning_rate",),
        "schedule is cosine or linear",
        lambda recipe: recipe.schedule != "constant",
    ),
    (
        ("label_smoothing",),
        "loss is cross_entropy",
        lambda recipe: recipe.loss == "cross_entropy",
    ),
    (
        ("early_stopping", "keep"),
        "evaluate_every is above 0",
        lambda recipe: recipe.evaluate_every > 0,
    ),
)


def unread_options(options: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, str]:
    """The options that nothing reads under the others and that are not at their default.

    Args:
        options: All options of a recipe by name.
        given: Options that count even at their default.

    Returns:
        For each of them, where it would be read.

    Example:

    >>> unread_options(recipe_fields(Recipe()) | {"lora_rank": 4})
    {'lora_rank': 'adapt is lora'}
    """
    recipe = SimpleNamespace(**options)
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    return {
        name: condition
        for names, condition, is_read in _READ_WHERE
        if not is_read(recipe)
        for name in names
        if options[name] != defaults[name] or name in given
    }


def _check_all_are_read(recipe):
    """Raises a ValueError that names every option set to something that nothing reads."""
    unread = unread_options(vars(recipe))
    if unread:
        lines = [
            f"{name}={getattr(recipe, name)!r}: read only where {condition}; leave it at "
            f"{getattr(Recipe, name)!r}"
            for name, condition in unread.items()
        ]
        raise ValueError("Nothing would read these options:\n  " + "\n  ".join(lines))


def recipe_from_fields(fields: Mapping[str, Any], where: str | os.PathLike[str]) -> Recipe:
    """The recipe of options by name, as `recipe_fields` gives them or JSON holds them.

    Args:
        fields: Options by name; those that are absent have their default.
        where: Where they come from, for the message.

    Raises:
        ValueError: For an option that there is not, or a value out of its range.

    Example:

    >>> recipe_from_fields({"stesp": 3}, "recipe.json")
    Traceback (most recent call last):
      ...
    ValueError: recipe.json has the unknown option 'stesp'. Did you mean steps?
    """
    names = [field.name for field in dataclasses.fields(Recipe)]
    for name in fields:
        if name not in names:
            raise ValueError(
                f"{where} has the unknown option {name!r}. {nearest_names(name, names)}"
            )
    return Recipe(**fields)


# Settings that other options decide.
_RESERVED_OPTIMIZER_OPTIONS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "use_ema": "ema_decay",
    "ema_momentum": "ema_decay",
    "ema_overwrite_frequency": "ema_decay",
    "clipnorm": "clip_norm",
    "clipvalue": "clip_norm",
    "global_clipnorm": "clip_norm",
    "gradient_accumulation_steps": "micro_batch_size",
    "loss_scale_factor": "precision",
}


def _check_kinds(recipe):
    """Raises a ValueError for what is no text, no truth value, no rule or no optimizer option."""
    kinds = {bool: "True or False", str: "text"}
    for option in dataclasses.fields(recipe):
        value = getattr(recipe, option.name)
        if option.type in kinds and not isinstance(value, option.type):
            raise ValueError(
                f"`{option.name}` must be {kinds[option.type]}. Received: {option.name}={value!r}"
            )
    for name in ("trainable_rules", "learning_rate_rules", "weight_decay_rules"):
        for rule in getattr(recipe, name):
            if len(rule) != 2 or not isinstance(rule[0], str) or not _is_rule_value(name, rule[1]):
                kind = "True or False" if name == "trainable_rules" else "a number, at least 0"
                raise ValueError(
                    f"`{name}` must be pairs of a pattern and {kind}. Received: {rule!r}"
                )
    momentum_is_free = recipe.optimizer not in ("sgd", "keras_sgd")
    for name in recipe.optimizer_options:
        instead = _RESERVED_OPTIMIZER_OPTIONS.get(name)
        if instead and not (name == "momentum" and momentum_is_free):
            raise ValueError(
                f"`optimizer_options` has {name!r}, which the option {instead} decides. "
                f"Set `{instead}`"
            )


def _is_rule_value(name, value):
    if name == "trainable_rules":
        return isinstance(value, bool)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


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
