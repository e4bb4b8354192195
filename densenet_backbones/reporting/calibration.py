"""Picture of how often predictions are right against how sure they are."""

from pathlib import Path

import numpy as np

from densenet_backbones.metrics.calibration import Calibration
from densenet_backbones.reporting.figures import make_figure, save_figure


def plot_calibration(
    calibration: Calibration, path: str | Path, what: str = "detections", confidence: str = "score"
) -> None:
    """Plot how often predictions are right against how sure they are, and the number of each.

    On the diagonal a model is as often right as it says; below it, it is too sure.

    Args:
        calibration: Result of `calibrate`.
        path: The PNG file.
        what: What is counted.
        confidence: Name of what they are sure by.
    """
    figure, (curve, bars) = make_figure(1, 2, width=10.5, height=4.4)
    bins = len(calibration.counts)
    filled = calibration.counts > 0
    edges = np.arange(bins) / bins
    curve.bar(
        edges[filled], calibration.accuracy[filled], 1 / bins, align="edge", color="#8fb7dd",
        edgecolor="white", label="right",
    )  # fmt: skip
    curve.plot((0, 1), (0, 1), color="black", linewidth=1, linestyle="--", label="as sure as right")
    curve.plot(
        calibration.confidence[filled], calibration.accuracy[filled], color="#c0392b", marker="o",
        markersize=4, linewidth=1.2, label="mean of a bin",
    )  # fmt: skip
    curve.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=confidence, ylabel="right")
    curve.set_title(f"calibration error {calibration.error:.3f}", loc="left")
    curve.legend(frameon=False, fontsize=8, loc="upper left")
    bars.bar(edges, calibration.counts, 1 / bins, align="edge", color="#9aa5b1", edgecolor="white")
    bars.set(xlim=(0, 1), yscale="log", xlabel=confidence, ylabel=what)
    bars.set_title(f"{what} of each bin", loc="left")
    save_figure(figure, path)
