"""Picture of a model's report: costs, receptive fields, memory, and boxes where there are some."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.colors import get_class_color
from densenet_backbones.reporting.figures import escape_name, make_figure, save_figure, to_floats

__all__ = ["plot_report"]

_BLUE, _ORANGE, _GREEN = (to_floats(get_class_color(n)) for n in (1, 2, 3))

Table = dict[str, Any]


def plot_report(report: Table, path: str | Path) -> None:
    """Plot a report, as `measure_model` makes it.

    Args:
        report: Numbers; with ``boxes`` there is a panel more.
        path: The PNG file.
    """
    has_boxes = "boxes" in report
    figure, axes = make_figure(1, 4 if has_boxes else 3, width=19 if has_boxes else 15, height=4.6)
    _plot_costs(axes[0], [row for row in report["stages"] if row["macs"] or row["parameters"]])
    _plot_fields(axes[1], report["levels"], max(report["size"]))
    _plot_memory(axes[2], report["memory"])
    if has_boxes:
        _plot_boxes(axes[3], report["boxes"])
    figure.suptitle(escape_name(report["name"]), x=0.01, ha="left")
    save_figure(figure, path)


def _plot_costs(axis: Axes, stages: Sequence[Table]) -> None:
    totals = [max(1, sum(row[key] for row in stages)) for key in ("parameters", "macs")]
    places = range(len(stages))
    for shift, key, total, color in zip(
        (-0.2, 0.2), ("parameters", "macs"), totals, (_BLUE, _ORANGE), strict=True
    ):
        shares = [row[key] / total for row in stages]
        label = "parameters" if key == "parameters" else "multiply-adds"
        axis.barh([p + shift for p in places], shares, height=0.4, color=color, label=label)
    axis.set_yticks(places, [escape_name(row["name"]) for row in stages], fontsize=8)
    axis.invert_yaxis()
    axis.set_title("share of costs", loc="left")
    axis.legend(frameon=False, fontsize=8.5)


def _plot_fields(axis: Axes, levels: Sequence[Table], side: int) -> None:
    names = [f"{level['name']} @ {level['stride']}" for level in levels]
    for key, color, label in (
        ("receptive_field", _BLUE, "theoretical"),
        ("effective_field", _GREEN, "effective"),
    ):
        known = [(n, level[key]) for n, level in zip(names, levels, strict=True) if level[key]]
        if known:
            axis.plot(*zip(*known, strict=True), marker="o", color=color, label=label)
    axis.axhline(side, color="#b8bcc4", linestyle="--", label="image")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(ylabel="pixels a side")
    axis.set_title("receptive fields", loc="left")
    axis.legend(frameon=False, fontsize=8.5)


def _plot_memory(axis: Axes, memory: Table) -> None:
    modes = list(memory["modes"])
    sizes = [memory["modes"][mode]["saved_bytes"] / 2**20 for mode in modes]
    bars = axis.bar(modes, sizes, color=_BLUE)
    axis.bar_label(bars, [f"{size:.0f}" for size in sizes], fontsize=8)
    axis.tick_params(axis="x", labelrotation=30)
    axis.set(ylabel="MiB")
    axis.set_title(f"kept for backward, {pluralize(memory['batch'], 'image')}", loc="left")


def _plot_boxes(axis: Axes, boxes: Table) -> None:
    sides, shapes = boxes["sides"], boxes["shapes"]
    widths, heights = zip(*sides, strict=True)
    axis.scatter(widths, heights, s=6, color=_BLUE, alpha=0.4, label="boxes of the data")
    label = f"{boxes['kind']} of the model"
    widths, heights = zip(*shapes, strict=True)
    axis.scatter(widths, heights, s=30, color=_ORANGE, marker="x", label=label)
    if boxes["fitted"] is not None:
        widths, heights = zip(*boxes["fitted_shapes"], strict=True)
        axis.scatter(widths, heights, s=30, color=_GREEN, marker="+", label="fitted")
    axis.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter("{x:g}")
    axis.set_title(f"{boxes['now']['coverage']:.1%} overlap one by half", loc="left")
    axis.legend(frameon=False, fontsize=8.5)
