"""The augmentation policy of a training run, and the drawing of its parameters on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from keras_vit.data.images import covering_size
from keras_vit.layers.patches import as_pair
from keras_vit.layers.resampling import INTERPOLATIONS

CROPS = ("resize", "squash", "inception", "pad")
POLICIES = ("none", "randaugment", "augmix", "three")

# Number of an operation in what is drawn: its place here. 0 leaves an image as it is.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "contrast",
    "brightness",
    "color",
    "sharpness",
    "blur",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
GEOMETRIC_OPERATIONS = OPERATIONS[OPERATIONS.index("rotate") :]

# Of timm 1.0's "increasing" set, and of the paper's code for AugMix, which leaves out what the
# corruptions that it is tested on resemble.
RANDAUGMENT_OPERATIONS = tuple(name for name in OPERATIONS if name not in ("identity", "blur"))
AUGMIX_OPERATIONS = (
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    *GEOMETRIC_OPERATIONS,
)
THREE_AUGMENT_OPERATIONS = ("color", "solarize", "blur")
JITTER_OPERATIONS = ("brightness", "contrast", "color")

# timm applies each operation that RandAugment chose half of the time.
RANDAUGMENT_PROBABILITY = 0.5
LARGEST_MAGNITUDE = 10.0
AUGMIX_CHAINS = 3
AUGMIX_DEPTH = 3
INCEPTION_TRIES = 10
INCEPTION_ASPECT = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_TRIES = 10
IDENTITY_MATRIX = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# Each part of a policy draws from a stream of its own, so that one more part changes no other.
_STREAMS = ("crop", "flip", "operations", "jitter", "erasing", "mixing")


def resize_pair(
    resize_size: int | tuple[int, int] | None, image_size: tuple[int, int]
) -> tuple[int, int]:
    """The size that random crops are taken from: 8/7 of the crop unless it is said (256 to 224).

    Example:

    >>> resize_pair(None, (224, 224))
    (256, 256)
    """
    if resize_size is None:
        return round(image_size[0] * 8 / 7), round(image_size[1] * 8 / 7)
    height, width = as_pair(resize_size, "resize_size")
    if height < image_size[0] or width < image_size[1]:
        raise ValueError(
            f"`resize_size` must not be below `image_size`, as crops are taken from it. Received: "
            f"resize_size={resize_size}, image_size={image_size}"
        )
    return height, width


@dataclass(frozen=True)
class Augmentation:
    """What happens to the images of a training run; the default is a random crop and a flip.

    An image is cropped and mirrored, changed by the operations of a policy, jittered in colour,
    partly erased and mixed with another, in this order. Of the operations of one image, those on
    colour come first, in their drawn order; its shears, shifts and rotation are one resampling
    after them, so that the grey that it fills in stays grey; only the jitter after the mixed
    chains of `"augmix"` changes it.

    Args:
        image_size: Side, or `(height, width)`, of the images in training, in pixels.
        resize_size: Side, or `(height, width)`, that the crops `"resize"` and `"squash"` are taken
            from; None: 8/7 of `image_size`.
        crop: `"resize"`: the image is resized to cover `resize_size`, its aspect ratio kept, and
            cropped at random; `"squash"`: the same, but resized to just `resize_size`
            (big_vision); `"inception"`: a random part of `crop_min_area` to all of the image, its
            aspect ratio 3/4 to 4/3, resized (Szegedy et al., 2015, arXiv 1409.4842; drawn as in
            torchvision's RandomResizedCrop); `"pad"`: a crop of the image's own size, out of the
            image with a border of zeros, resized (He et al., 2016, arXiv 1512.03385).
        crop_min_area: Smallest share of the image's area for `"inception"`.
        crop_padding: Width of the border for `"pad"`, in pixels of the image before it is resized.
        interpolation: `"nearest"`, `"bilinear"` or `"bicubic"`, with antialias.
        horizontal_flip: Whether every second image, at random, is mirrored.
        augment: `"none"`; `"randaugment"` (Cubuk et al., 2019, arXiv 1909.13719) with timm's
            severities, which increase with the magnitude, each chosen operation applied half of
            the time; `"augmix"` (Hendrycks et al., 2019, arXiv 1912.02781): three chains of one
            to three operations, mixed; `"three"` (Touvron et al., 2022, arXiv 2204.07118): one of
            greyscale, solarisation and Gaussian blur.
        augment_operations: Operations an image, for `"randaugment"`.
        augment_magnitude: Strength of the operations, 0 to 10. `"augmix"` draws each strength
            uniformly from 0.1 up to it (the paper: 3).
        augment_magnitude_std: Standard deviation of the strength for `"randaugment"`.
        color_jitter: Brightness, contrast and saturation change, in random order, by a factor that
            is uniform in 1 - `color_jitter` to 1 + `color_jitter`.
        random_erasing: Probability that a box of an image, of 2 % to a third of it, is filled with
            random pixels (Zhong et al., 2017, arXiv 1708.04896).
        mixup: The alpha of MixUp (Zhang et al., 2017, arXiv 1710.09412); 0: none.
        cutmix: The alpha of CutMix (Yun et al., 2019, arXiv 1905.04899); 0: none. With both, a
            batch takes one of them, each half of the time.
        mix_probability: Probability that a batch is mixed at all.
        repeated_augmentation: How many times in turn an image is taken, each time with its own
            augmentation (Hoffer et al., 2019, arXiv 1901.09335). An epoch keeps its length, so it
            sees that many times fewer different images.

    Raises:
        ValueError: If a value is outside its range; the message names it.

    Example:

    >>> Augmentation(224, crop="inception", mixup=0.8).mixes
    True
    """

    image_size: int | tuple[int, int] = 224
    resize_size: int | tuple[int, int] | None = None
    crop: str = "resize"
    crop_min_area: float = 0.05
    crop_padding: int = 4
    interpolation: str = "bilinear"
    horizontal_flip: bool = True
    augment: str = "none"
    augment_operations: int = 2
    augment_magnitude: float = 9.0
    augment_magnitude_std: float = 0.5
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    repeated_augmentation: int = 1

    def __post_init__(self):
        resize_pair(self.resize_size, as_pair(self.image_size, "image_size"))
        for name, known in (
            ("crop", CROPS),
            ("interpolation", INTERPOLATIONS),
            ("augment", POLICIES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. Received: "
                    f"{name}={getattr(self, name)!r}"
                )
        for name, kind, low, high, range_text in (
            ("crop_min_area", Real, math.ulp(0.0), 1, "(0, 1]"),
            ("crop_padding", Integral, 0, math.inf, "an int of 0 or more"),
            ("augment_operations", Integral, 1, math.inf, "an int of 1 or more"),
            ("augment_magnitude", Real, 0, LARGEST_MAGNITUDE, "0..10"),
            ("augment_magnitude_std", Real, 0, math.inf, "0 or more"),
            ("color_jitter", Real, 0, math.inf, "0 or more"),
            ("random_erasing", Real, 0, 1, "0..1"),
            ("mixup", Real, 0, math.inf, "0 or more"),
            ("cutmix", Real, 0, math.inf, "0 or more"),
            ("mix_probability", Real, 0, 1, "0..1"),
            ("repeated_augmentation", Integral, 1, math.inf, "an int of 1 or more"),
        ):
            value = getattr(self, name)
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not (is_number and low <= value <= high and value < math.inf):
                raise ValueError(f"`{name}` must be {range_text}. Received: {name}={value!r}")

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the images in training."""
        return as_pair(self.image_size, "image_size")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, so that targets are shares of classes."""
        return bool(self.mixup or self.cutmix)

    @property
    def padding(self) -> int:
        """Width of the border of zeros around a source image, in its pixels."""
        return self.crop_padding if self.crop == "pad" else 0


def generator(seed: int, step: int, stream: str) -> np.random.Generator:
    """The random numbers of one part of the policy at one step."""
    # One more than the place: (seed, step, 0) would seed like (seed, step), the epochs.
    return np.random.default_rng((seed, step, _STREAMS.index(stream) + 1))


# crop --------------------------------------------------------------------------------------------


def draw_crops(augmentation: Augmentation, seed: int, step: int, count: int) -> np.ndarray:
    """What places the crops, whatever the size of their images: numbers in [0, 1).

    Returns:
        A float64 array `(count, tries, 4)` for `"inception"`, `(count, 2)` otherwise.
    """
    shape = (INCEPTION_TRIES, 4) if augmentation.crop == "inception" else (2,)
    return generator(seed, step, "crop").random((count, *shape))


def draw_flips(augmentation: Augmentation, seed: int, step: int, count: int) -> np.ndarray:
    """Which of the images are mirrored, as a bool array `(count,)`."""
    if not augmentation.horizontal_flip:
        return np.zeros(count, bool)
    return generator(seed, step, "flip").random(count) < 0.5


def crop_boxes(
    augmentation: Augmentation, numbers: np.ndarray, source_size: tuple[int, int]
) -> np.ndarray:
    """Where the crops lie in images of one size.

    Args:
        augmentation: The policy.
        numbers: What `draw_crops` drew.
        source_size: `(height, width)` of the images, in pixels.

    Returns:
        A float64 array `(count, 4)`: top, left, bottom and right of each crop, in pixels of its
        image. With `"pad"` they may lie outside of it.
    """
    size = np.array(source_size)
    if augmentation.crop == "inception":
        return _inception_boxes(augmentation, numbers, *source_size)
    if augmentation.crop == "pad":
        corner = np.floor(numbers * (2 * augmentation.padding + 1)) - augmentation.padding
        return np.concatenate([corner, corner + size], axis=1)
    image_size = np.array(augmentation.size)
    target = resize_pair(augmentation.resize_size, augmentation.size)
    resized = np.array(
        target if augmentation.crop == "squash" else covering_size(*source_size, target)
    )
    corner = np.floor(numbers * (resized - image_size + 1))
    return np.concatenate([corner, corner + image_size], axis=1) * np.tile(size / resized, 2)


def _inception_boxes(augmentation, numbers, height, width):
    """The first of the tries that fits; else the largest central part of allowed aspect."""
    low, high = INCEPTION_ASPECT
    area = height * width * _between(numbers[..., 0], augmentation.crop_min_area, 1.0)
    aspect = _log_between(numbers[..., 1], low, high)
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    pick = np.arange(len(numbers)), fits.argmax(axis=1)
    heights, widths = heights[pick], widths[pick]
    tops = np.floor(numbers[*pick, 2] * (height - heights + 1))
    lefts = np.floor(numbers[*pick, 3] * (width - widths + 1))
    boxes = np.stack([tops, lefts, tops + heights, lefts + widths], axis=1)
    middle_height, middle_width = (
        min(height, max(1, round(width / low))),
        min(width, max(1, round(height * high))),
    )
    top, left = (height - middle_height) // 2, (width - middle_width) // 2
    middle = [top, left, top + middle_height, left + middle_width]
    return np.where(fits.any(axis=1)[:, None], boxes, middle)


# operations --------------------------------------------------------------------------------------


def draw_operations(
    augmentation: Augmentation, seed: int, step: int, count: int
) -> dict[str, np.ndarray]:
    """The operations of a batch.

    Returns:
        Nothing without a policy and jitter. Otherwise `operations`, int32 `(count, operations)`:
        places in `OPERATIONS`, in their order, and `operation_values`, float32, their arguments.
        Where the policy has geometric operations, `matrices`, float32 `(count, 6)`: what all of
        an image's come to, as two rows of a matrix from a place (x, y, 1) in the changed image to
        its place in the image before. For AugMix these have a second axis of chains, and there
        are `chain_weights`, float32 `(count, chains + 1)`, the last that of the image itself;
        jitter has arrays of its own then, whose names begin with `jitter_`.
    """
    random = generator(seed, step, "operations")
    drawn = {}
    if augmentation.augment == "randaugment":
        kinds, values = _draw_randaugment(augmentation, random, count)
        drawn = _with_matrices(kinds, values, augmentation.size)
    elif augmentation.augment == "augmix":
        drawn = _draw_augmix(augmentation, random, count)
    elif augmentation.augment == "three":
        drawn = _draw_three(random, count)
    if not augmentation.color_jitter:
        return drawn
    jitter = _draw_jitter(augmentation, generator(seed, step, "jitter"), count)
    if augmentation.augment == "augmix":
        return drawn | {f"jitter_{name}": array for name, array in jitter.items()}
    return drawn | {
        name: np.concatenate([drawn[name], array], axis=1) if drawn else array
        for name, array in jitter.items()
    }


def operation_value(name: str, level: np.ndarray, sign: np.ndarray, *, shift: float) -> np.ndarray:
    """The argument of an operation at a level of 0 to 10, as timm's increasing set has them.

    Args:
        name: The operation.
        level: Strengths, 0 to 10.
        sign: -1 or 1 for each.
        shift: Share of the image's side that a translation of level 10 moves it by.

    Returns:
        Degrees, bits, thresholds, factors, shares of a side, as the operation takes them.
    """
    part = level / LARGEST_MAGNITUDE
    match name:
        case "rotate":
            return sign * part * 30.0
        case "shear_x" | "shear_y":
            return sign * part * 0.3
        case "translate_x" | "translate_y":
            return sign * part * shift
        case "posterize":
            return 4 - np.floor(part * 4)
        case "solarize":
            return 256 - np.floor(part * 256)
        case "solarize_add":
            return np.floor(part * 110)
        case "contrast" | "brightness" | "color" | "sharpness":
            return np.maximum(0.1, 1 + sign * part * 0.9)
    return np.zeros_like(level)


def _draw_levels(random, names, levels, shift):
    """Random operations out of `names` for an array of levels: their numbers and arguments."""
    choice = random.integers(len(names), size=levels.shape)
    sign = random.choice([-1.0, 1.0], size=levels.shape)
    values = np.stack([operation_value(name, levels, sign, shift=shift) for name in names])
    kinds = np.array([OPERATIONS.index(name) for name in names])[choice]
    return kinds, np.take_along_axis(values, choice[None], axis=0)[0]


def _draw_randaugment(augmentation, random, count):
    shape = count, augmentation.augment_operations
    levels = random.normal(
        augmentation.augment_magnitude, augmentation.augment_magnitude_std, shape
    ).clip(0, LARGEST_MAGNITUDE)
    kinds, values = _draw_levels(random, RANDAUGMENT_OPERATIONS, levels, shift=0.45)
    return np.where(random.random(shape) < RANDAUGMENT_PROBABILITY, kinds, 0), values


def _draw_augmix(augmentation, random, count):
    shape = count, AUGMIX_CHAINS, AUGMIX_DEPTH
    levels = _between(random.random(shape), 0.1, max(0.1, augmentation.augment_magnitude))
    kinds, values = _draw_levels(random, AUGMIX_OPERATIONS, levels, shift=1 / 3)
    depth = random.integers(1, AUGMIX_DEPTH + 1, size=(count, AUGMIX_CHAINS, 1))
    kinds = np.where(np.arange(AUGMIX_DEPTH) < depth, kinds, 0)
    mixed = random.beta(1.0, 1.0, size=(count, 1))
    weights = mixed * random.dirichlet([1.0] * AUGMIX_CHAINS, size=count)
    drawn = _with_matrices(kinds, values, augmentation.size)
    return drawn | {"chain_weights": np.concatenate([weights, 1 - mixed], 1).astype(np.float32)}


def _draw_three(random, count):
    """As in the authors' code: greyscale, solarisation from 128 on, or a blur of up to 2 pixels."""
    choice = random.integers(3, size=(count, 1))
    kinds = np.array([OPERATIONS.index(name) for name in THREE_AUGMENT_OPERATIONS])[choice]
    sigma = _between(random.random((count, 1)), 0.1, 2.0)
    return _arrays(kinds, np.choose(choice, [0.0, 128.0, sigma]))


def _draw_jitter(augmentation, random, count):
    strength, number = augmentation.color_jitter, len(JITTER_OPERATIONS)
    order = random.permuted(np.tile(np.arange(number), (count, 1)), axis=1)
    kinds = np.array([OPERATIONS.index(name) for name in JITTER_OPERATIONS])[order]
    return _arrays(
        kinds, _between(random.random((count, number)), max(0.0, 1 - strength), 1 + strength)
    )


def _arrays(kinds, values):
    return {
        "operations": kinds.astype(np.int32),
        "operation_values": values.astype(np.float32),
    }


def _with_matrices(kinds, values, image_size):
    """Operations in their order, and one matrix for all geometric ones."""
    matrices = np.broadcast_to(np.eye(3), (*kinds.shape[:-1], 3, 3))
    for slot in range(kinds.shape[-1]):
        matrices = matrices @ operation_matrices(kinds[..., slot], values[..., slot], image_size)
    rows = matrices[..., :2, :].reshape(*kinds.shape[:-1], 6)
    return _arrays(kinds, values) | {"matrices": rows.astype(np.float32)}


def operation_matrices(
    kinds: np.ndarray, values: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """What geometric operations do to places, as Pillow has it; others leave them.

    Args:
        kinds: Places in `OPERATIONS`, of any shape.
        values: Their arguments: degrees, counter-clockwise, or shares of a side.
        image_size: `(height, width)` of the images, in pixels.

    Returns:
        float64 matrices `(*shape, 3, 3)` from a place (x, y, 1) in the changed image to its place
        in the image before.
    """
    height, width = image_size
    matrices = np.zeros((*kinds.shape, 3, 3)) + np.eye(3)

    def of(name):
        return np.where(kinds == OPERATIONS.index(name), values, 0.0)

    angle = np.deg2rad(of("rotate"))
    cosine, sine = np.cos(angle), np.sin(angle)
    matrices[..., 0, 0] = matrices[..., 1, 1] = cosine
    # Counter-clockwise around the centre, seen with y downwards.
    matrices[..., 0, 1] = of("shear_x") - sine
    matrices[..., 1, 0] = of("shear_y") + sine
    x, y = width / 2, height / 2
    matrices[..., 0, 2] = of("translate_x") * width + x - cosine * x + sine * y
    matrices[..., 1, 2] = of("translate_y") * height + y - sine * x - cosine * y
    return matrices


# erasing and mixing ------------------------------------------------------------------------------


def draw_erasing(
    augmentation: Augmentation, seed: int, step: int, count: int
) -> dict[str, np.ndarray]:
    """The erased boxes of a batch and the seeds of what fills them.

    Returns:
        Nothing without random erasing. Otherwise `erased_boxes`, int32 `(count, 4)`: top, left,
        bottom and right, all 0 where nothing is erased; and `erased_seeds`, int32 `(count,)`.
    """
    if not augmentation.random_erasing:
        return {}
    random = generator(seed, step, "erasing")
    height, width = augmentation.size
    erased = random.random(count) < augmentation.random_erasing
    seeds = random.integers(2**31, size=count, dtype=np.int32)
    numbers = random.random((count, ERASING_TRIES, 4))
    area = height * width * _between(numbers[..., 0], *ERASED_AREA)
    aspect = _log_between(numbers[..., 1], *ERASED_ASPECT)
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    pick = np.arange(count), fits.argmax(axis=1)
    heights, widths = heights[pick], widths[pick]
    tops = np.floor(numbers[*pick, 2] * (height - heights + 1))
    lefts = np.floor(numbers[*pick, 3] * (width - widths + 1))
    boxes = np.stack([tops, lefts, tops + heights, lefts + widths], axis=1)
    boxes *= (erased & fits.any(axis=1))[:, None]
    return {"erased_boxes": boxes.astype(np.int32), "erased_seeds": seeds}


def draw_mixing(
    augmentation: Augmentation, seed: int, step: int, count: int, micro_batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Partners, ratios and boxes of a batch; one ratio and one box for each micro-batch, as timm.

    Returns:
        `(arrays, own)`. `arrays` has `partners`, int32 `(count,)`, places within the micro-batch;
        with MixUp `mix_ratios`, float32 `(count,)`, the share of an image's own pixels; with
        CutMix `mix_boxes`, int32 `(count, 4)`: top, left, bottom and right of what comes from the
        partner. `own`, float32 `(count,)`, is the share of the image's own class.
    """
    random = generator(seed, step, "mixing")
    groups = count // micro_batch_size
    height, width = augmentation.size
    mixed = random.random(groups) < augmentation.mix_probability
    by_box = random.random(groups) < 0.5
    if not (augmentation.mixup and augmentation.cutmix):
        by_box = np.full(groups, bool(augmentation.cutmix))
    ratios, shares = (
        random.beta(alpha, alpha, size=groups) if alpha else np.ones(groups)
        for alpha in (augmentation.mixup, augmentation.cutmix)
    )
    centre = np.floor(random.random((groups, 2)) * (height, width))
    sides = np.floor(np.sqrt(1 - shares)[:, None] * (height, width))
    limits = (height, width)
    boxes = (
        np.concatenate(
            [
                np.clip(centre - sides // 2, 0, limits),
                np.clip(centre + (sides + 1) // 2, 0, limits),
            ],
            axis=1,
        )
        * (mixed & by_box)[:, None]
    )
    ratios = np.where(mixed & ~by_box, ratios, 1.0)
    # What is cut off at the border belongs to the image.
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    own = np.where(by_box, 1 - area / (height * width), ratios)
    # Batches come in random order, so that the reversed one is as good a partner as any.
    partners = np.tile(np.arange(micro_batch_size, dtype=np.int32)[::-1], groups)
    arrays: dict[str, np.ndarray] = {"partners": partners}
    if augmentation.mixup:
        arrays["mix_ratios"] = ratios.astype(np.float32).repeat(micro_batch_size)
    if augmentation.cutmix:
        arrays["mix_boxes"] = boxes.astype(np.int32).repeat(micro_batch_size, axis=0)
    return arrays, own.astype(np.float32).repeat(micro_batch_size)


def _between(numbers, low, high):
    return low + (high - low) * numbers


def _log_between(numbers, low, high):
    return np.exp(_between(numbers, math.log(low), math.log(high)))
