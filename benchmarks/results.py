"""Writes what a suite found: JSON, Markdown and a plot, each whole or not at all."""

import datetime
import functools
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks import machine as machines
from benchmarks.ratios import best_of_each, is_ours, speed_ratio

RESULTS = Path(__file__).parent / "results"


def replace(path, data):
    """Writes a file beside its place and renames it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)


def command_line():
    """The command that this process was started with."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def write(suite, content, tables, *, bars=None, folder=RESULTS):
    """Writes `<suite>.json`, `.md` and, with bars, `.png`.

    Args:
        suite: Name of the files.
        content: Plain values, as JSON.
        tables: Markdown.
        bars: `(title, [(label, Spread)])` for each panel of the plot; see `ratio_bars`.
        folder: Where.

    Returns:
        The Markdown as written, with the command and the machine in its head.
    """
    machine = machines.describe()
    when, commit = f"{datetime.date.today()}", commit_of_the_start()
    head = f"# `{command_line()}`\n\n{when}, {commit}. {machines.sentence(machine)}\n"
    text = f"{head}\n{tables}\n"
    found = {"command": command_line(), "date": when, "commit": commit}
    found |= {"machine": machine, **content}
    replace(Path(folder, f"{suite}.json"), (json.dumps(found, indent=1) + "\n").encode())
    replace(Path(folder, f"{suite}.md"), text.encode())
    panels = [panel for panel in bars or () if panel[1]]
    image = draw(panels) if panels else None
    plot = Path(folder, f"{suite}.png")
    if image is not None:
        replace(plot, image)
    else:
        plot.unlink(missing_ok=True)  # That of another run.
    return text


@functools.cache
def commit_of_the_start():
    """The checkout's commit, and whether files differ from it; of the first call."""
    here = Path(__file__).parent.parent
    code = ["keras_vit", "benchmarks", ":!benchmarks/results"]
    changed = ["git", "status", "--porcelain", "--", *code]
    try:
        commit, changes = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout
            for command in (["git", "rev-parse", "--short", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return "no checkout"
    return f"commit {commit.strip()}{' with changes' if changes.strip() else ''}"


def ratio_bars(cells):
    """(label, Spread of how many times as fast ours is) of each peer that was timed."""
    ours, _ = best_of_each(cells)
    if ours is None:
        return []
    return [
        (cell.name, speed_ratio(ours.seconds, cell.seconds))
        for cell in cells
        if cell.seconds and not is_ours(cell)
    ]


def draw(panels):
    """Horizontal bars of ratios with their spread, as PNG; None without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("No plot: matplotlib is not installed (the extra `recipes`).")
        return None
    heights = [1 + 0.3 * len(bars) for _, bars in panels]
    figure = Figure(figsize=(8, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, bars) in zip(axes, panels, strict=True):
        labels = [label for label, _ in bars]
        medians = [ratio.median for _, ratio in bars]
        errors = [
            [ratio.median - ratio.least for _, ratio in bars],
            [ratio.most - ratio.median for _, ratio in bars],
        ]
        colors = ["#2a7f62" if median >= 1 else "#b5543a" for median in medians]
        axis.barh(labels, medians, xerr=errors, color=colors, height=0.65)
        axis.axvline(1, color="black", linewidth=1)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("our fastest is so many times as fast (median, least and most)")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
