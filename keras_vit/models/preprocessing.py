"""How images become what a network was trained on."""

import dataclasses
import math

from keras_vit.layers.image_preprocessing import check_evaluation_policy, check_scaling
from keras_vit.layers.nearest import nearest_names


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Scaling of pixels, and how an image is brought to the model's size for evaluation.

    The arguments of `keras_vit.layers.ImagePreprocessing`, which see.

    Example:

    >>> Preprocessing(mean=0.5, std=0.5).mean
    (0.5, 0.5, 0.5)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            values = tuple(map(float, value)) if hasattr(value, "__len__") else (float(value),)
            object.__setattr__(self, name, values * 3 if len(values) == 1 else values)
        check_scaling(self.mean, self.std)
        check_evaluation_policy(self.crop_fraction, self.crop_mode, self.interpolation)

    def scales_like(self, other):
        """Whether mean and std are those of `other`."""
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=True)
        return all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs)


# Crop fractions and interpolation as timm evaluates ViT (AugReg) and DeiT.
PRESETS = {
    "inception": Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=0.9),
    "imagenet": Preprocessing(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_fraction=0.9
    ),
}
# CLIP's own mean and std, of its images from the web.
CLIP_SCALING = Preprocessing(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)


def get_preprocessing(value):
    """A `Preprocessing` from a preset's name, a pair (mean, std), or itself.

    Raises:
        ValueError: For anything else.

    Example:

    >>> get_preprocessing("inception").std
    (0.5, 0.5, 0.5)
    """
    if isinstance(value, Preprocessing):
        return value
    if isinstance(value, str) and value in PRESETS:
        return PRESETS[value]
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return Preprocessing(mean=value[0], std=value[1])
    hint = nearest_names(value, PRESETS) if isinstance(value, str) else ""
    raise ValueError(
        '`preprocessing` must be "inception", "imagenet", a pair (mean, std) in units of 0..1, or '
        f"a `Preprocessing`. {hint} Received: preprocessing={value!r}"
    )
