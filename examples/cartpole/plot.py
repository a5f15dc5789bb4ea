"""The plot of a training run: how well each version of the policy played."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from cogment_model_registry import Version

WINDOW = 10


def plot_returns(path: str, returns: Mapping[int, Sequence[float]], promoted: Sequence[Version], title: str) -> None:
    """Write a plot to a file, whose name says the format.

    Args:
        path: The file.
        returns: The returns of the episodes that were played with each version, by its number.
        promoted: The versions that were promoted, with the metric `return`; those with an alias are named.
        title: What stands above it.
    """
    numbers = np.array(sorted(returns))
    means = np.array([np.mean(returns[number]) for number in numbers])
    window = min(WINDOW, len(means))
    running = np.convolve(means, np.ones(window) / window, mode="valid")
    # A fixed salt makes the same file of the same run.
    with mpl.rc_context({"svg.hashsalt": "returns", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(numbers, means, ".", color="tab:blue", alpha=0.4, label="training: mean return of a version")
        axes.plot(numbers[window - 1 :], running, color="tab:blue", label=f"training: mean of {window} versions")
        promoted_numbers = [version.number for version in promoted]
        scores = [version.metrics["return"] for version in promoted]
        axes.plot(promoted_numbers, scores, "o", color="tab:orange", label="evaluation: promoted versions")
        for version in promoted:
            for alias in version.aliases:
                place = (version.number, version.metrics["return"])
                arrow = {"arrowstyle": "->", "color": "tab:red"}
                axes.annotate(alias, place, (0, -40), textcoords="offset points", color="tab:red", arrowprops=arrow)
        axes.set(title=title, xlabel="version number", ylabel="return of an episode", ylim=(0, 520))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
