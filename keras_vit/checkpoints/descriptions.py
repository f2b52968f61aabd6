"""What a format's writing half says of a model before anything is written."""

import dataclasses
import math
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Description:
    """A model in the terms of one format.

    Args:
        naming: Canonical names that tell the format's `rules` which of its namings is meant.
        file_name: Function from a canonical name to the tensor's name in the file.
        hub_config: Content of config.json, or None.
        preprocessor_config: Content of preprocessor_config.json, or None.
        zeros: Name in the file → shape of a tensor that the format's own code expects and no
            result depends on.
        implied: Field of `VisionTransformerConfig` → what the format's own code implies, where
            that is not the model's and the tensors alone would not show it.
        notes: What the format's own code computes otherwise, but so little that the file is
            written, a sentence each.
    """

    naming: tuple[str, ...] = ()
    file_name: Callable[[str], str] = str
    hub_config: dict | None = None
    preprocessor_config: dict | None = None
    zeros: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    implied: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def differing(config, wanted):
    """Those of the `wanted` fields that `config` has otherwise.

    Example:

    >>> import types
    >>> differing(types.SimpleNamespace(depth=2, qk_norm=True), {"depth": 2, "qk_norm": False})
    {'qk_norm': False}
    """
    return {name: value for name, value in wanted.items() if getattr(config, name) != value}


def exact_ratio(width, base):
    """The number by which `int(base * ratio)` is `width`, whatever the rounding.

    Example:

    >>> int(29 * exact_ratio(57, 29))
    57
    """
    if width % base == 0:
        return width // base
    ratio = width / base
    return ratio if int(base * ratio) == width else math.nextafter(ratio, math.inf)
