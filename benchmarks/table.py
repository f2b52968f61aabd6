"""Tables in Markdown that are read as plain text too."""

import statistics

from benchmarks.ratios import best_of_each, is_ours, rounded, speed_ratio, spread


def markdown(header, rows):
    """A table, its columns aligned; the first to the left, the others to the right."""
    rows = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        return "| " + " | ".join(cells) + " |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([line(header), rule, *map(line, rows)])


def mebibytes(number):
    """A number of bytes in MiB; what says so where it is unknown."""
    return "unknown" if number is None else f"{number / 2**20:.0f}"


def row_table(cells, batch_size, *, flops=None, rate=None):
    """The table of one row of contenders.

    Args:
        cells: A sequence of `Cell`.
        batch_size: Images a step.
        flops: Floating-point operations of a step.
        rate: Floating-point operations a second that the matrix products alone reached.

    Returns:
        Markdown. Ratios are how many times as fast our fastest contender is, pair by pair.
    """
    ours, _ = best_of_each(cells)
    header = ["contender", "images/s", "ms a step", "ours is x as fast", "difference"]
    header += ["utilisation", "peak MiB", "steps MiB", "build s", "first s"]
    rows = []
    for cell in cells:
        if cell.absent is not None:
            rows.append([cell.name, said_of(cell), *["" for _ in header[2:]]])
            continue
        rates = spread([batch_size / seconds for seconds in cell.seconds])
        median = statistics.median(cell.seconds)
        rows.append(
            [
                cell.name,
                rates,
                rounded(1000 * median),
                speed_ratio(ours.seconds, cell.seconds) if ours else "",
                "" if cell.difference is None else f"{cell.difference:.1e}",
                f"{flops / median / rate:.0%}" if rate and flops else "",
                mebibytes(cell.peak_memory),
                mebibytes(cell.step_memory),
                f"{cell.build_seconds:.1f}",
                f"{cell.first_seconds:.1f}",
            ]
        )
    return markdown(header, rows)


def said_of(cell):
    """Why a cell has no figures; empty for one that has."""
    return ("FAILED: " if cell.failed else "") + (cell.absent or "")


def conclusion(cells):
    """Ours beside the best peer, and beside each library's best, in a line.

    Where some take weights for frozen, in a second one for those that do not.
    """
    lines = [_conclusion(cells)]
    plain = [cell for cell in cells if "frozen" not in cell.name]
    if len(plain) < len(cells):
        lines += ["Without frozen weights: " + _conclusion(plain)]
    return "\n\n".join(lines)


def _conclusion(cells):
    ours, peer = best_of_each(cells)
    if ours is None or peer is None:
        return "Nothing to compare."
    said = [
        f"{ours.name} is {speed_ratio(ours.seconds, peer.seconds)} x {peer.name}, the best peer"
    ]
    for library in dict.fromkeys(cell.name.split()[0] for cell in cells if not is_ours(cell)):
        _, fastest = best_of_each([ours, *(c for c in cells if c.name.split()[0] == library)])
        if fastest is not None and fastest is not peer:
            said.append(f"{speed_ratio(ours.seconds, fastest.seconds)} x {fastest.name}")
    return "; ".join(said) + "."


def idle_warning(cells, cores=0.05):
    """A warning where a contender computed while it was not its turn; None where none did."""
    busy = [f"{cell.name} ({cell.idle:.2f} cores)" for cell in cells if cell.idle > cores]
    if not busy:
        return None
    return "WARNING: busy while it was the others' turn: " + ", ".join(busy)
