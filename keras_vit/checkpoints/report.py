"""What loading a checkpoint did."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Accounts for every tensor of a file and every weight of a model.

    Each tensor of the file is in exactly one of `used`, `resampled` and `dropped`; each weight of
    the model is in exactly one of `used`, `resampled` and `new`. Printed, it fits a screen.

    Args:
        path: The file.
        format: Its format.
        used: Weight of the model → the tensors that it was made of.
        resampled: Weight → its tensors, for position grids brought to another size.
        dropped: Tensor of the file → why it was left out.
        new: Weight → how it starts.
        notes: What was assumed or resampled, a sentence each.
        num_classes: Number of the file's classes; 0 where it has no head, or CLIP's projection in
            its place.
    """

    path: str
    format: str
    used: dict[str, tuple[str, ...]]
    resampled: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    new: dict[str, str]
    notes: tuple[str, ...] = ()
    num_classes: int = 0

    def __str__(self):
        tensors = sum(map(len, (*self.used.values(), *self.resampled.values())))
        lines = [
            f"{self.path} ({self.format})",
            f"  used       {len(self.used)} weights from "
            f"{tensors - sum(map(len, self.resampled.values()))} tensors",
        ]
        for title, entries in (
            ("resampled", {w: ", ".join(t) for w, t in self.resampled.items()}),
            ("dropped", self.dropped),
            ("new", self.new),
        ):
            for names, reason in grouped(entries):
                lines.append(f"  {title:<10} {names}: {reason}")
        return "\n".join(lines + [f"  note       {note}" for note in self.notes])


def grouped(entries):
    """Names that differ only by their numbers and share a reason, as one line each.

    Example:

    >>> grouped({"block_0/a": "x", "block_1/a": "x", "head": "y"})
    [('block_*/a (2)', 'x'), ('head', 'y')]
    """
    groups: dict = {}
    for name, reason in entries.items():
        groups.setdefault((re.sub(r"\d+", "*", name), reason), []).append(name)
    return [
        (f"{pattern} ({len(names)})" if len(names) > 1 else names[0], reason)
        for (pattern, reason), names in groups.items()
    ]
