"""Picture of the feature-reuse heat map, as figure 5 of 1608.06993."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from densenet_backbones.analysis.feature_reuse import BlockReuse
from densenet_backbones.reporting.figures import escape_name, make_figure, save_figure

_CELL = 0.17  # inches
_MOST_LABELS = 16


def plot_heatmap(blocks: Sequence[BlockReuse], title: str, path: str | Path) -> None:
    """Plot every block: plain weights above, weights scaled by batch norm below.

    Each column is divided by its largest value, as readers differ in scale. What is no layer of
    the block has a black frame.

    Args:
        blocks: Of a model.
        title: Line above.
        path: The PNG file.
    """
    largest = max(max(len(b.sources), len(b.readers)) for b in blocks)
    side = min(max(2.6, _CELL * largest + 1.2), 8.0)
    figure, axes = make_figure(2, len(blocks), width=side * len(blocks) + 1, height=2 * side)
    image = None
    for row, scaled in enumerate((False, True)):
        for column, block in enumerate(blocks):
            axis = axes[row * len(blocks) + column]
            image = _plot_block(axis, block, scaled)
            kind = "scaled by batch norm" if scaled else "mean |weight|"
            axis.set_title(f"{escape_name(block.name)}:\n{kind}", loc="left", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30)
    bar.ax.tick_params(labelsize=8.5)
    bar.set_label("share of the column's largest", fontsize=8.5)
    figure.suptitle(escape_name(title), x=0.01, ha="left")
    save_figure(figure, path)


def _plot_block(axis: Axes, block: BlockReuse, scaled: bool) -> AxesImage:
    values = np.ma.masked_invalid(block.values(scaled).numpy())
    most = values.max(axis=0).filled(0)  # a layer that was pruned away reads nothing
    shares = values / np.where(most > 0, most, 1)
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="equal")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    names = ["input", *(str(n) for n in range(1, len(block.sources)))]
    step = -(-len(names) // _MOST_LABELS)
    axis.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    labels = [_name_reader(r.kind, n) for n, r in enumerate(block.readers, start=1)]
    shown = [n for n, r in enumerate(block.readers) if r.kind != "layer" or n % step == 0]
    axis.set_xticks(shown, [labels[n] for n in shown], fontsize=7, rotation=90)
    axis.set(xlabel="target layer", ylabel="source layer")
    for n, reader in enumerate(block.readers):
        if reader.kind != "layer":
            axis.add_patch(
                Rectangle((n - 0.5, -0.5), 1, len(block.sources), fill=False, linewidth=1.2)
            )
    return image


def _name_reader(kind: str, number: int) -> str:
    return str(number) if kind == "layer" else kind
