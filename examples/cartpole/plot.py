"""The plot of a training run: how well each version of the policy played."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

WINDOW = 10


def plot_returns(path: str, returns: Mapping[int, Sequence[float]], stored: Mapping[int, float], title: str) -> None:
    """Write a plot to a file, whose name says the format.

    Args:
        path: The file.
        returns: The returns of the episodes that were played with each version, by its number.
        stored: What was known of the returns of the versions that were archived, by their numbers. They are copies,
            which few episodes were played with.
        title: What stands above it.
    """
    numbers = np.array(sorted(returns.keys() - stored.keys()))
    means = np.array([np.mean(returns[number]) for number in numbers])
    window = min(WINDOW, len(means))
    running = np.convolve(means, np.ones(window) / window, mode="valid")
    # A fixed salt makes the same file of the same run.
    with mpl.rc_context({"svg.hashsalt": "returns", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(numbers, means, ".", color="tab:blue", alpha=0.4, label="mean return of a version")
        axes.plot(numbers[window - 1 :], running, color="tab:blue", label=f"mean of {window} versions")
        axes.plot(list(stored), list(stored.values()), "o", color="tab:orange", mfc="none", label="archived")
        axes.set(title=title, xlabel="version number", ylabel="return of an episode", ylim=(0, 510))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
