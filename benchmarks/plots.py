"""Curves as SVG files, by matplotlib, which only the benchmarks need: it is imported for the first plot."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measures import Curve

_HINT = "matplotlib is not installed: `make bench` installs requirements/bench.txt, which has it"


class NoPlotsError(Exception):
    """matplotlib is not installed."""


def load_matplotlib() -> Any:
    """Return `matplotlib.pyplot`, for drawing without a screen.

    Raises:
        NoPlotsError: It is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise NoPlotsError(_HINT) from None
    matplotlib.use("svg")
    # Reproducible files, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"})
    return importlib.import_module("matplotlib.pyplot")


def draw(curves: Sequence[Curve], directory: Path, caption: str) -> list[Path]:
    """Draw each curve into a file of its name; return the files.

    Args:
        curves: The curves.
        directory: The directory of the files.
        caption: The text below each plot: where and when it was measured.

    Raises:
        NoPlotsError: matplotlib is not installed.
    """
    pyplot = load_matplotlib()
    directory.mkdir(parents=True, exist_ok=True)
    return [_draw(pyplot, curve, directory / f"{curve.name}.svg", caption) for curve in curves]


def _draw(pyplot: Any, curve: Curve, path: Path, caption: str) -> Path:
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for series in curve.series:
        xs = [x for x, _ in series.points]
        medians = [spread.median for _, spread in series.points]
        marker, style = "o" if curve.is_log_x else "", "--" if series.is_floor else "-"
        [line] = axes.plot(xs, medians, marker=marker, linestyle=style, label=series.name)
        lower = [spread.lower for _, spread in series.points]
        upper = [spread.upper for _, spread in series.points]
        axes.fill_between(xs, lower, upper, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set_xscale("log" if curve.is_log_x else "linear")
    axes.set_yscale("log" if curve.is_log_y else "linear")
    if not curve.is_log_y:
        axes.set_ylim(bottom=0)
    axes.set_title(curve.title)
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(curve.y_label)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.text(0.01, -0.04, caption, fontsize=7)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path
