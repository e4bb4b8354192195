"""Tables as a picture: times as bars, memory against time as points."""

import itertools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densenet_backbones.benchmark.report import Table

__all__ = ["check_chart", "draw"]

_SUFFIXES = (".png", ".svg")
_INK, _GREY, _GRID = "#22262b", "#8d97a3", "#e3e6ea"
_OURS = "#d1495b"
# Told apart with any colour vision: P. Tol, "Colour schemes" (2021), "bright".
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_MARKERS = "osD^vPX<>"
_ABREAST = 3  # panels
_WIDTH, _LINE = 4.6, 0.24  # inches: of a panel, of a line of text


def check_chart(file: Path) -> None:
    """Says before anything is measured whether `draw` could write a file.

    Raises:
        ValueError: Its name ends otherwise than a picture's, or matplotlib is not installed.
    """
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"--plot must end in {' or '.join(_SUFFIXES)}, not {file.name!r}")
    try:
        import matplotlib  # noqa: F401 - not a requirement of the package
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error


def draw(tables: Sequence[Table], caption: str, file: Path) -> None:
    """Draws the tables that name columns for it: bars above, points below.

    Args:
        tables: Any; see `Table.chart`.
        caption: A line below, such as the machine's kind.
        file: PNG or SVG, by its ending.

    Raises:
        ValueError: No table has anything to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars, points = ([t for t in tables if len(t.chart) == axes] for axes in (1, 2))
    if not bars and not points:
        raise ValueError("there is nothing to draw: neither inference nor memory was measured")
    rows = [*_rows(bars), *_rows(points)]
    heights = [max(map(_height, row)) for row in rows]
    width = _WIDTH * max(map(len, rows))
    styles = _styles([name for table in points for name in _names(table)])
    keys = math.ceil(len(styles) / math.floor(width / 2.2))  # lines of the legend
    words = textwrap.wrap(caption, width=math.floor(width * 15))
    heights += [_LINE * max(keys, 0.2), 0.7 * _LINE * len(words)]
    with rc_context({"font.size": 9, "text.color": _INK, "axes.edgecolor": _GREY}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        grid: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        *parts, legend, foot = grid
        for part, row in zip(parts, rows, strict=True):
            for axis, table in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
                if table in bars:
                    _draw_bars(axis, table)
                else:
                    _draw_points(axis, table, styles)
                _finish(axis, table, math.floor(9.5 * width / len(row)))
        if styles:
            handles = [_point(legend, style, label) for label, style in styles.items()]
            columns = math.ceil(len(styles) / keys)
            legend.legend(handles=handles, loc="center", ncols=columns, frameon=False, fontsize=8)
        foot.text(0.5, 0.5, "\n".join(words), ha="center", va="center", fontsize=7, color=_GREY)
        figure.savefig(file, dpi=160, facecolor="white")


def _rows(tables: Sequence[Table]) -> list[Sequence[Table]]:
    """As many abreast in one row as in the next: four panels are two and two."""
    count = math.ceil(len(tables) / _ABREAST)
    abreast = math.ceil(len(tables) / max(count, 1))
    return [tables[i * abreast : (i + 1) * abreast] for i in range(count)]


def _height(table: Table) -> float:
    """Inches of a panel."""
    return 3.3 if len(table.chart) == 2 else 1.2 + 0.32 * len(table.rows)


def _names(table: Table) -> list[str]:
    return [str(name) for name in table.column(table.columns[0].name)]


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One marker and colour for a name in every panel: grey for others, colours for ours."""
    known = list(dict.fromkeys(names))
    ours = [name for name in known if name.startswith("ours")]
    colours = dict(zip(ours, itertools.cycle(_COLOURS), strict=False))
    return {
        name: {"color": colours.get(name, _GREY), "marker": marker}
        for name, marker in zip(known, itertools.cycle(_MARKERS), strict=False)
    }


def _point(figure: Any, style: Mapping[str, Any], label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style, linestyle="", markersize=7, label=label, figure=figure)


def _draw_bars(axis: Any, table: Table) -> None:
    """Horizontal bars of ratios, with whiskers from the smallest to the largest turn."""
    (column,) = table.chart
    names = _names(table)
    spreads = [_spread(cell) for cell in table.column(column)]
    top = max(high for _, _, high in spreads)
    for y, (name, (middle, low, high)) in enumerate(zip(names, spreads, strict=True)):
        colour = _OURS if name.startswith("ours") else _GREY
        axis.barh(y, middle, height=0.62, color=colour, alpha=0.85)
        axis.plot([low, high], [y, y], color=_INK, linewidth=1.1, solid_capstyle="butt")
        axis.text(high + 0.02 * top, y, f"{middle:.2f}", va="center", fontsize=8)
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.14 * top)
    axis.set_xlabel(f"{column}, median and range")
    axis.grid(axis="x", color=_GRID, linewidth=0.8)


def _draw_points(axis: Any, table: Table, styles: Mapping[str, dict[str, Any]]) -> None:
    """Points with whiskers along x, from the smallest to the largest turn."""
    x_name, y_name = table.chart
    cells = zip(_names(table), table.column(x_name), table.column(y_name), strict=True)
    for name, x, y in cells:
        (middle, low, high), (height, *_) = _spread(x), _spread(y)
        style = styles[name]
        axis.plot([low, high], [height] * 2, color=style["color"], linewidth=1.2, alpha=0.6)
        axis.plot(middle, height, **style, markersize=7, linestyle="")
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel(f"{x_name}, median and range")
    axis.set_ylabel(y_name)
    axis.set_yscale("log")
    _readable_log(axis)
    axis.grid(color=_GRID, linewidth=0.8)


def _readable_log(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _finish(axis: Any, table: Table, letters: int) -> None:
    axis.set_title("\n".join(textwrap.wrap(table.title, letters)), fontsize=9, loc="left")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _spread(cell: Any) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    values = cell if isinstance(cell, tuple) else (cell,)
    return statistics.median(values), min(values), max(values)
