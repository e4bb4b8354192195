"""Draw tables as a picture: times as bars, memory against time as points."""

import itertools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from densenet_backbones.benchmark.report import Cell, Table
from densenet_backbones.file_writing import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.lines import Line2D

__all__ = ["check_chart", "draw"]

_SUFFIXES = (".png", ".svg")
_INK, _GRAY, _GRID = "#22262b", "#8d97a3", "#e3e6ea"
_OURS = "#d1495b"
# Told apart with any color vision: P. Tol, "Colour schemes" (2021), "bright".
_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_MARKERS = "osD^vPX<>"
_ABREAST = 3  # panels
_WIDTH, _LINE = 4.6, 0.24  # inches: of a panel, of a line of text


class _Style(TypedDict):
    color: str
    marker: str


def check_chart(file: Path) -> None:
    """Check, before anything is measured, that `draw` could write a file.

    Raises:
        ValueError: Its name ends otherwise than a picture's, or matplotlib is not installed.
    """
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"--plot must end in {' or '.join(_SUFFIXES)}, got {file.name!r}")
    try:
        import matplotlib  # noqa: F401 - not a requirement of the package
    except ModuleNotFoundError as error:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from error


def draw(tables: Sequence[Table], caption: str, file: Path) -> None:
    """Draw the tables that name columns for it: bars above, points below.

    Args:
        tables: Tables to draw; those without `Table.chart` are left out.
        caption: A line below, such as the machine's kind.
        file: PNG or SVG, by its ending.

    Raises:
        ValueError: No table has anything to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars, points = ([t for t in tables if len(t.chart) == axes] for axes in (1, 2))
    if not bars and not points:
        raise ValueError(
            "there is nothing to draw: neither inference nor memory was measured; leave out --plot"
        )
    rows = [*_arrange_rows(bars), *_arrange_rows(points)]
    heights = [max(map(_measure_height, row)) for row in rows]
    width = _WIDTH * max(map(len, rows))
    styles = _choose_styles([name for table in points for name in _read_names(table)])
    keys = math.ceil(len(styles) / math.floor(width / 2.2))  # lines of the legend
    words = textwrap.wrap(caption, width=math.floor(width * 15))
    heights += [_LINE * max(keys, 0.2), 0.7 * _LINE * len(words)]
    with rc_context({"font.size": 9, "text.color": _INK, "axes.edgecolor": _GRAY}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        parts_of_figure = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
        *parts, legend, foot = parts_of_figure[:, 0]
        for part, row in zip(parts, rows, strict=True):
            for axis, table in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
                if table in bars:
                    _draw_bars(axis, table)
                else:
                    _draw_points(axis, table, styles)
                _finish(axis, table, math.floor(9.5 * width / len(row)))
        if styles:
            handles = [_make_point(legend, style, label) for label, style in styles.items()]
            columns = math.ceil(len(styles) / keys)
            legend.legend(handles=handles, loc="center", ncols=columns, frameon=False, fontsize=8)
        foot.text(0.5, 0.5, "\n".join(words), ha="center", va="center", fontsize=7, color=_GRAY)
        with replace_file(file) as draft:
            figure.savefig(draft, format=file.suffix[1:], dpi=160, facecolor="white")


def _arrange_rows(tables: Sequence[Table]) -> list[Sequence[Table]]:
    """Arrange panels with as many in one row as in the next: four are two and two."""
    count = math.ceil(len(tables) / _ABREAST)
    abreast = math.ceil(len(tables) / max(count, 1))
    return [tables[i * abreast : (i + 1) * abreast] for i in range(count)]


def _measure_height(table: Table) -> float:
    """Return the height of a panel in inches."""
    return 3.3 if len(table.chart) == 2 else 1.2 + 0.32 * len(table.rows)


def _read_names(table: Table) -> list[str]:
    return [str(name) for name in table.column(table.columns[0].name)]


def _choose_styles(names: Sequence[str]) -> dict[str, _Style]:
    """Choose one marker and color for a name in every panel: gray for others, colors for ours."""
    known = list(dict.fromkeys(names))
    ours = [name for name in known if name.startswith("ours")]
    colors = dict(zip(ours, itertools.cycle(_COLORS), strict=False))
    return {
        name: {"color": colors.get(name, _GRAY), "marker": marker}
        for name, marker in zip(known, itertools.cycle(_MARKERS), strict=False)
    }


def _make_point(figure: "SubFigure", style: _Style, label: str) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], **style, linestyle="", markersize=7, label=label, figure=figure)


def _draw_bars(axis: "Axes", table: Table) -> None:
    """Draw horizontal bars of ratios, with whiskers from the smallest to the largest turn."""
    (column,) = table.chart
    names = _read_names(table)
    spreads = [_read_spread(cell) for cell in table.column(column)]
    top = max(high for _, _, high in spreads)
    for y, (name, (middle, low, high)) in enumerate(zip(names, spreads, strict=True)):
        color = _OURS if name.startswith("ours") else _GRAY
        axis.barh(y, middle, height=0.62, color=color, alpha=0.85)
        axis.plot([low, high], [y, y], color=_INK, linewidth=1.1, solid_capstyle="butt")
        axis.text(high + 0.02 * top, y, f"{middle:.2f}", va="center", fontsize=8)
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.14 * top)
    axis.set_xlabel(f"{column}, median and range")
    axis.grid(axis="x", color=_GRID, linewidth=0.8)


def _draw_points(axis: "Axes", table: Table, styles: Mapping[str, _Style]) -> None:
    """Draw points with whiskers along x, from the smallest to the largest turn."""
    x_name, y_name = table.chart
    cells = zip(_read_names(table), table.column(x_name), table.column(y_name), strict=True)
    for name, x, y in cells:
        (middle, low, high), (height, *_) = _read_spread(x), _read_spread(y)
        style = styles[name]
        axis.plot([low, high], [height] * 2, color=style["color"], linewidth=1.2, alpha=0.6)
        axis.plot(middle, height, **style, markersize=7, linestyle="")
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel(f"{x_name}, median and range")
    axis.set_ylabel(y_name)
    axis.set_yscale("log")
    _write_log_ticks(axis)
    axis.grid(color=_GRID, linewidth=0.8)


def _write_log_ticks(axis: "Axes") -> None:
    """Write ticks at 1, 2 and 5 times powers of ten, written as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _finish(axis: "Axes", table: Table, letters: int) -> None:
    axis.set_title("\n".join(textwrap.wrap(table.title, letters)), fontsize=9, loc="left")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _read_spread(cell: Cell) -> tuple[float, float, float]:
    """Return the median, smallest and largest value."""
    values = cell if isinstance(cell, tuple) else (float(cell or 0),)
    return statistics.median(values), min(values), max(values)
