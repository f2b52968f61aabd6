"""Compares every pair, prints the table, and writes it into docs/parity.md.

python -m tests.parity             all pairs at full size
python -m tests.parity --tiny      the same at tiny size, printed only
python -m tests.parity dinov2      pairs whose name contains it, printed only
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import keras
import transformers

from .cases import CASES
from .comparison import BOUNDS, compare

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
BEGIN, END = "<!-- begin: python -m tests.parity -->", "<!-- end -->"
COLUMNS = (
    "family",
    "library",
    "model",
    "parameters (M)",
    "image",
    "max relative error",
    "library's float32 error",
    "seconds",
)


def main():
    """The command: 0 where every pair agrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="only pairs whose name contains it")
    parser.add_argument("--tiny", action="store_true", help="tiny models, seconds in all")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    size = "tiny" if options.tiny else "full"
    lines = [_line(COLUMNS), _line("---" for _ in COLUMNS)]
    print("\n".join(lines), flush=True)
    rows = []
    for case in CASES:
        if options.name.lower() in str(case).lower():
            for row in compare(case, size):
                rows.append(row)
                lines.append(_line(_cells(row, size)))
                print(lines[-1], flush=True)
    wrong = [row for row in rows if not row.agrees(size)]
    agreeing = f"{len(rows) - len(wrong)} of {len(rows)} comparisons"
    summary = f"{agreeing} within {BOUNDS[size]:g}. {_versions()}"
    print(summary)
    if not options.name and size == "full":
        _write("\n".join([*lines, "", summary]))
    return int(bool(wrong))


def _cells(row, size):
    depth = row.case.full.get("depth") or row.case.full.get("num_hidden_layers")
    model = str(row.case).partition("-")[2] + (
        f" ({depth} blocks)" * (size == "full" and bool(depth))
    )
    image = "x".join(map(str, row.image_size)) + (" resampled" if row.resampled else "")
    outcome = _short(row.problem) if row.error is None else f"{row.error:.1e}"
    if row.error is not None and not row.agrees(size):
        outcome = f"**{outcome}**"
    return (
        row.case.family,
        row.case.library,
        f"`{model}`",
        f"{row.parameters / 1e6:.2f}",
        image,
        outcome,
        f"{row.noise:.1e}",
        f"{row.seconds:.1f}",
    )


def _short(problem):
    """A cell's worth of an error's message."""
    return " ".join(problem.replace("|", "/").split()[:40])


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def _versions():
    libraries = ("timm", "transformers", "torchvision", "torch", "keras")
    listed = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"{listed} on {keras.backend.backend()}; {platform.machine()} CPU, float32."


def _write(text):
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    temporary = PAGE.with_suffix(".part")
    temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    temporary.replace(PAGE)


if __name__ == "__main__":
    raise SystemExit(main())
