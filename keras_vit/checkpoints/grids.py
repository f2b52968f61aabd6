"""The grid of patches that a file's positions are for, and which tokens have positions."""

import dataclasses

from keras_vit.checkpoints.positions import square_grid
from keras_vit.layers.patches import as_pair
from keras_vit.layers.resnet_stem import stem_stride

PATCH_KERNEL = "patch_encoder/projection/kernel"
POSITIONS = "patch_encoder/position_embedding"
RELATIVE_POSITIONS = "attention/relative_position_bias/table"
SLOTS = ("patches", "class", "all")


@dataclasses.dataclass(frozen=True)
class LearnedPositions:
    """Positions that a file stores.

    Args:
        count: How many.
        prefixes: Each of `position_slots` that is possible → how many of the positions then
            belong to tokens before the patches.
    """

    count: int
    prefixes: dict[str, int]

    def slots(self, grid):
        """Those with which the positions are right for this grid; None if there are none."""
        patches = grid[0] * grid[1]
        fitting = (
            slots for slots, prefix in self.prefixes.items() if self.count - prefix == patches
        )
        return next(fitting, None)

    def squares(self):
        """Possible slots → the square grid that the other positions make."""
        grids = {slots: square_grid(self.count - prefix) for slots, prefix in self.prefixes.items()}
        return {slots: grid for slots, grid in grids.items() if grid}

    def __str__(self):
        return f"{self.count} positions"


@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """A table of relative positions that a file stores.

    Args:
        offsets: How many offsets of two patches it knows.
    """

    offsets: int

    def slots(self, grid):
        """As of `LearnedPositions`."""
        fits = (2 * grid[0] - 1) * (2 * grid[1] - 1) == self.offsets
        return "patches" if fits else None

    def squares(self):
        """As of `LearnedPositions`."""
        sides = square_grid(self.offsets)
        return {"patches": ((sides[0] + 1) // 2,) * 2} if sides and sides[0] % 2 else {}

    def __str__(self):
        return f"{self.offsets} relative positions"


def stored_positions(facts, weights):
    """What a file's weights of these shapes store of positions; None if nothing.

    Args:
        facts: What the file tells.
        weights: Path of each weight that it holds → its shape in the model.
    """
    table = weights.get(f"block_0/{RELATIVE_POSITIONS}")
    if table is not None:
        return RelativePositions(table[0] - 3 * facts["class_token"])
    if POSITIONS not in weights:
        return None
    prefixes = {slots: prefix_positions(facts, slots) for slots in SLOTS}
    if "position_slots" in facts:
        prefixes = {facts["position_slots"]: prefixes[facts["position_slots"]]}
    # The least that says the same.
    distinct = {prefix: slots for slots, prefix in reversed(prefixes.items())}
    prefixes = {slots: prefix for prefix, slots in distinct.items()}
    return LearnedPositions(weights[POSITIONS][1], prefixes)


def prefix_positions(facts, slots):
    """How many tokens before the patches have positions in a model of these facts.

    Example:

    >>> prefix_positions({"class_token": True, "register_tokens": 4}, "all")
    5
    """
    class_tokens = facts["class_token"] + facts.get("distillation_token", False)
    return {
        "patches": 0,
        "class": class_tokens,
        "all": class_tokens + facts.get("register_tokens", 0),
    }[slots]


def patch_stride(facts):
    """Pixels from patch to patch."""
    blocks = facts.get("stem_blocks")
    stride = 1 if blocks is None else stem_stride(blocks)
    return tuple(stride * side for side in facts["patch_size"])


def locate(facts, weights, notes, tensors=None):
    """The facts with image size and slots of positions, where both are certain.

    Args:
        facts: What the file tells; `image_size` if its config says it, `likely_image_size` if
            that may be an ancestor's.
        weights: Path of each weight that the file holds → its shape in the model.
        notes: List that gains a sentence where the patches cover less than the image size that is
            told: So400m/14 of 384 px has 27 patches a side, and its convolution leaves out 6 px.
        tensors: Path of a weight → names of its tensors in the file, for errors.

    Returns:
        A pair: the facts, and whether the grid was told rather than found to be a square.

    Raises:
        ValueError: If the config's image size contradicts the positions.
    """
    facts = dict(facts)
    told, likely = (_stated(facts.pop(name, None)) for name in ("image_size", "likely_image_size"))
    if "patch_size" not in facts:
        return facts, False
    stride, stored = patch_stride(facts), stored_positions(facts, weights)
    for size in filter(None, (told, likely)):
        grid = (size[0] // stride[0], size[1] // stride[1])
        slots = "patches" if stored is None else stored.slots(grid)
        if slots is not None:
            known = {"position_slots": slots} if isinstance(stored, LearnedPositions) else {}
            covered = (grid[0] * stride[0], grid[1] * stride[1])
            if covered != size:
                notes.append(f"images of {covered} px, which {grid} patches cover, not {size}")
            return facts | {"image_size": covered} | known, True
        if size is told:
            name = (tensors or {}).get(POSITIONS, POSITIONS)
            missing = (
                "" if facts["class_token"] else "; or the tensor of the class token is missing"
            )
            raise ValueError(
                f"{name} stores {stored}, which are not the {grid[0]}x{grid[1]} of config.json's "
                f"image_size (timm: img_size) {size}{missing}"
            )
    squares = stored.squares() if stored is not None else {}
    if len(squares) == 1:
        slots, grid = squares.popitem()
        size = (grid[0] * stride[0], grid[1] * stride[1])
        facts["image_size"] = size
        if isinstance(stored, LearnedPositions):
            facts["position_slots"] = slots
    return facts, False


def _stated(size):
    """A pair, or None where a config leaves the size or a side of it open."""
    is_open = None in size if isinstance(size, (list, tuple)) else size is None
    return None if is_open else as_pair(size, "image_size")
