"""The plots of a run: as PNG files, and as drawings inside a page that follow its colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vit.finetune.log import read_log
from keras_vit.finetune.metrics import Calibration
from keras_vit.finetune.state import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is drawn in these colours takes the page's own: each has a CSS variable of templates/style.
# They are the page's light colours, which the PNG files have.
INK, MUTED, LINE = "#1f2933", "#5b6672", "#d5dbe1"
RIGHT, WRONG = "#2563b0", "#c2571a"
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
}
# Of several runs; each can be told apart from the others and seen on white and on black.
RUN_COLOURS = (
    "#3b7dd8",
    "#d9682b",
    "#2f9e6e",
    "#a65fc4",
    "#c9a227",
    "#d1477a",
    "#4aa3b5",
    "#8a8f98",
)
DOTS_PER_INCH = 192  # Twice a screen's.
# More classes than these are not drawn one by one.
MOST_CLASSES_DRAWN = 30
LONGEST_NAME = 18

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    # Text stays text, in the page's font; the salt makes equal plots equal files.
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_vit",
}


def draw_learning_curves(runs: Mapping[str, str | Path], path: str | Path, title: str = "") -> None:
    """Draws loss and accuracy over the steps of several runs as a PNG.

    Args:
        runs: Folder of each run by its label.
        path: The PNG file to write.
        title: Heading of the picture.

    Raises:
        ImportError: If matplotlib is not installed; it comes with the extra `recipes`.
    """
    rows = {label: read_log(Path(folder) / "log.csv") for label, folder in runs.items()}
    with plot_style():
        figure = _new_figure(9, 3.6)
        for axes, column in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            _draw_runs(axes, rows, column)
            axes.legend()
        figure.suptitle(title, color=INK)
        replace_file(path, _png(figure))


def plot_style():
    """The context in which all plots are made and saved."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def run_curves(rows: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """The plots of a run's log by name: loss, accuracy, learning rate and throughput over steps.

    Args:
        rows: What `read_log` gives.
    """
    figures = {}
    for name, (column, label) in _CURVES.items():
        figures[name] = figure = _new_figure(4.8, 2.9)
        axes = figure.subplots()
        _draw_curve(axes, rows, column, RIGHT, "training" if name == "accuracy" else None)
        if name == "accuracy" and any("validation_accuracy" in row for row in rows):
            _draw_curve(axes, rows, "validation_accuracy", WRONG, "validation", marker="o")
            axes.legend(loc="lower right")
        _label(axes, "step", label, from_zero=name == "throughput")
        axes.set_title(label)
        axes.set_ylabel("")
    return figures


_CURVES = {
    "loss": ("loss", "training loss"),
    "accuracy": ("accuracy", "accuracy"),
    "learning_rate": ("learning_rate", "learning rate"),
    "throughput": ("images_per_second", "images per second"),
}


def comparison_curves(
    rows: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, Figure]:
    """The plots of several runs' logs by name: training loss and accuracy, validation accuracy.

    Args:
        rows: What `read_log` gives, by the label of the run.
    """
    figures = {}
    for column in ("loss", "validation_accuracy", "accuracy"):
        if not any(column in row for run in rows.values() for row in run):
            continue
        figures[column] = figure = _new_figure(6, 3.8)
        axes = figure.subplots()
        _draw_runs(axes, rows, column)
        axes.set_title(axes.get_ylabel())
        axes.set_ylabel("")
        if len(rows) <= len(RUN_COLOURS):
            axes.legend()
        else:
            figure.legend(loc="outside right upper")
    return figures


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix: right classes as rows, answers as columns.

    Args:
        matrix: Counts `(rows, columns)`.
        class_names: A name a row; or, for groups of classes, the names of all classes.
    """
    size = len(matrix)
    grouped = len(class_names) != size
    side = 5.6 if grouped else max(2.6, 1.6 + 0.3 * size)
    figure = _new_figure(side + 0.6, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(_confusion_colours(shares), interpolation="none", aspect="equal")
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0)
    if grouped:
        ticks = np.linspace(0, size - 1, 6).round().astype(int)
        starts = [str(-(-tick * len(class_names) // size)) for tick in ticks]
        axes.set_xticks(ticks, starts)
        axes.set_yticks(ticks, starts)
        axes.set(xlabel="answer (index of the class)", ylabel="right class (index)")
        return figure
    names = [short_name(name) for name in class_names]
    axes.set_xticks(range(size), names, rotation=45 if max(map(len, names)) > 2 else 0)
    for label in axes.get_xticklabels():
        label.set(ha="right" if label.get_rotation() else "center", rotation_mode="anchor")
    if max(map(len, names)) <= 2:
        axes.tick_params(axis="x", pad=9)
    axes.set_yticks(range(size), names)
    axes.set(xlabel="answer", ylabel="right class")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            axes.text(
                column,
                row,
                str(count),
                color="#ffffff" if _opacity(shares[row, column], row == column) > 0.6 else INK,
                fontsize=7.5 if len(str(matrix.max())) < 4 else 6,
                ha="center",
                va="center",
            )
    return figure


def _opacity(share, is_right):
    # A few mistakes must be seen beside many right answers.
    return share if is_right else share**0.4


def _confusion_colours(shares):
    size = len(shares)
    right = np.eye(size, dtype=bool)
    colours = np.where(right[..., None], _rgb(RUN_COLOURS[0]), _rgb(RUN_COLOURS[1]))
    opacity = np.where(right, _opacity(shares, True), _opacity(shares, False))
    return np.dstack([colours, opacity])


def _rgb(colour):
    return np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])


def calibration_figure(calibration: Calibration) -> Figure:
    """A reliability diagram with the distribution of the confidence under it.

    Bars show how often the answers of a bin are right; where they end below the diagonal, the
    model is surer than it should be.
    """
    bins = len(calibration.counts)
    left = np.arange(bins) / bins
    centres = left + 0.5 / bins
    figure = _new_figure(4.8, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    some = calibration.counts > 0
    above.bar(centres[some], calibration.accuracy[some], 0.9 / bins, color=RIGHT, label="accuracy")
    above.scatter(
        calibration.confidence[some],
        calibration.confidence[some],
        s=14,
        color=WRONG,
        zorder=3,
        label="mean confidence",
    )
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    above.legend(loc="upper left")
    _label(above, "", "share of right answers")
    shares = calibration.counts / max(1, calibration.counts.sum())
    below.bar(centres, shares, 0.9 / bins, color=MUTED)
    below.set(ylim=(0, max(0.02, 1.1 * shares.max())))
    _label(below, "confidence", "share of images")
    return figure


def save_figures(figures: Mapping[str, Figure], folder: str | Path) -> dict[str, str]:
    """Writes each plot as `folder/NAME.png` and hands it back as SVG for the inside of a page.

    Args:
        figures: The plots by name.
        folder: Where the PNG files go; it is made.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawings = {}
    for name, figure in figures.items():
        replace_file(Path(folder) / f"{name}.png", _png(figure))
        drawings[name] = _inline_svg(figure)
    return drawings


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, cut where it is long.

    >>> short_name("a very long name of a class")
    'a very long name…'
    """
    # Bytes of file names that are no UTF-8 cannot be drawn.
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= longest else name[: longest - 1].rstrip() + "…"


def _new_figure(width, height):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_runs(axes: Axes, rows, column):
    for index, (label, run) in enumerate(rows.items()):
        style = ("-", "--", ":")[index // len(RUN_COLOURS) % 3]
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        marker = "o" if column == "validation_accuracy" else None
        name = short_name(label, 40)
        # Matplotlib leaves out of legends what begins with "_"; this space has no width.
        name = f"\u200b{name}" if name.startswith("_") else name
        _draw_curve(axes, run, column, colour, name, marker, style)
    _label(axes, "step", column.replace("_", " ") if "_" in column else f"training {column}")


def _draw_curve(axes: Axes, rows, column, colour, label=None, marker=None, style="-"):
    """A column over the steps; one of many points as its running mean over the points."""
    rows = [row for row in rows if column in row]
    steps, values = [row["step"] for row in rows], [row[column] for row in rows]
    options = {"color": colour, "linestyle": style, "marker": marker, "markersize": 3.5}
    width = len(rows) // 25
    if width < 3 or column in ("learning_rate", "validation_accuracy"):
        # A line of one point is none.
        options["marker"] = marker or ("o" if len(rows) == 1 else None)
        axes.plot(steps, values, label=label, **options)
        return
    axes.plot(steps, values, **options, alpha=0.3, linewidth=0.8)
    kernel = np.ones(width)
    weights = np.convolve(np.ones(len(values)), kernel, "same")
    axes.plot(steps, np.convolve(values, kernel, "same") / weights, label=label, **options)


def _label(axes: Axes, x, y, *, from_zero=False):
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.margins(x=0.02)
    if x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if from_zero:
        axes.set_ylim(bottom=0)


def _png(figure):
    metadata = {"Software": None}
    return _saved(figure, format="png", dpi=DOTS_PER_INCH, facecolor="#ffffff", metadata=metadata)


def _inline_svg(figure):
    """The drawing without its frame of a file, without ids that mean nothing, in CSS colours."""
    svg = _saved(figure, format="svg", facecolor="none", metadata={"Date": None}).decode()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="--width: \1pt"', svg, count=1)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", svg)


def _saved(figure, **options):
    """What Matplotlib writes as a file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name may have letters that the plots' font has not; the page's font may.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, **options)
    return buffer.getvalue()
