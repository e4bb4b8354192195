"""Figures in the house style: made empty, named safely and written whole."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densenet_backbones.file_writing import save_bytes
from densenet_backbones.messages import show_controls
from densenet_backbones.reporting.colors import RGB
from densenet_backbones.reporting.png import PNG_LEVEL

GRAY = "#5b6068"
_LONGEST_NAME = 40  # letters


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make an empty figure in the house style; sizes in inches of 110 pixels."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#b8bcc4")
        axis.tick_params(colors=GRAY, labelsize=8.5)
        axis.grid(color="#e8eaee", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file."""
    buffer = io.BytesIO()
    packed = {"compress_level": PNG_LEVEL}
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1, pil_kwargs=packed)
    save_bytes(path, buffer.getvalue())


def to_floats(color: RGB) -> tuple[float, float, float]:
    """Return a color as matplotlib takes it, each part in [0, 1]."""
    return color[0] / 255, color[1] / 255, color[2] / 255


def escape_name(name: str) -> str:
    """Make matplotlib take a name as it is: $ begins a formula, a leading _ hides a label.

    The middle of a long name is left out: its plot would have no room for anything else.
    """
    name = show_controls(name)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 10]}…{name[-9:]}"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
