"""Medians, spreads, and ratios of what was timed in turn."""

import dataclasses
import statistics

from benchmarks.contenders import OURS


@dataclasses.dataclass(frozen=True)
class Spread:
    """The middle of several measurements and their ends."""

    median: float
    least: float
    most: float

    def __str__(self):
        return f"{rounded(self.median)} ({rounded(self.least)}..{rounded(self.most)})"


def spread(values):
    """The `Spread` of some measurements.

    >>> str(spread([3.0, 1.0, 2.0]))
    '2.00 (1.00..3.00)'
    """
    return Spread(statistics.median(values), min(values), max(values))


def rounded(value):
    """Three digits, or the whole part.

    >>> [rounded(value) for value in (1234.5, 23.45, 2.345, 0.02345)]
    ['1234', '23.4', '2.35', '0.0234']
    """
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 1:
        return f"{value:.{1 if abs(value) >= 10 else 2}f}"
    return f"{value:.3g}"


def speed_ratio(ours, theirs):
    """How many times as fast as `theirs` `ours` is: repetition by repetition, then the spread.

    What was measured in the same turn met the same machine, so its ratio is steadier than the
    ratio of two medians.

    Args:
        ours: Seconds of each repetition.
        theirs: The same of another contender, in the same order.

    Returns:
        A `Spread`; above one, ours is faster.

    Raises:
        ValueError: If there are not as many of the one as of the other.

    >>> speed_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 3.0]).median
    2.0
    """
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def best(cells):
    """The cell with the smallest median of seconds; None where none was timed."""
    timed = [cell for cell in cells if cell.seconds]
    return min(timed, key=lambda cell: statistics.median(cell.seconds), default=None)


def is_ours(cell):
    return cell.name.split()[0] == OURS


def best_of_each(cells):
    """(our fastest cell, the peer that is fastest beside it in the same turns); or None."""
    cells = list(cells)
    ours = best(filter(is_ours, cells))
    peers = [cell for cell in cells if cell.seconds and not is_ours(cell)]
    if ours is None:
        return None, best(peers)
    return ours, min(
        peers, key=lambda cell: speed_ratio(ours.seconds, cell.seconds).median, default=None
    )


def matrix_rate(cells, flops):
    """Most floating-point operations a second that matrix products alone reached; None without.

    The median of the fastest framework.
    """
    fastest = best(cells)
    return flops / statistics.median(fastest.seconds) if fastest else None
