"""Tables of a comparison: for the terminal, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.table import Table

from densenet_backbones.comparison.runs import Run
from densenet_backbones.messages import show_controls
from densenet_backbones.reporting.tables import render

_LONGEST_NUMBER = 10  # letters of a cell that is shown in one line, where the name beside it folds
Rows = list[list[str]]
"""Cells of a table, the first row with its names."""


def tabulate_runs(runs: Sequence[Run]) -> Rows:
    """Return a row a run: what it reached and what it cost; "-" where its files do not say."""
    names = list(dict.fromkeys(run.monitor for run in runs if run.monitor))
    best = names[0] if len(names) == 1 else "best"
    head = ["run", best, "epoch", "params", "GMAC", "time", "images/s", "memory", "ended"]
    return [head, *(_list_cells(run, len(names) > 1) for run in runs)]


def _list_cells(run: Run, is_named: bool) -> list[str]:
    best = run.best
    number = f"{best[1]:.3f}" if best else "-"
    return [
        run.name,
        f"{run.monitor} {number}" if is_named and best else number,
        f"{best[0]:.0f}" if best else "-",
        "-" if run.parameters is None else f"{run.parameters / 1e6:.2f} M",
        "-" if run.macs is None else f"{run.macs / 1e9:.2f}",
        "-" if run.seconds is None else _format_time(run.seconds),
        "-" if run.images_per_second is None else f"{run.images_per_second:.3g}",
        "-" if run.peak_bytes is None else f"{run.peak_bytes / 2**30:.2f} GiB",
        (run.ended or "-").partition(":")[0],  # of a failure, the summary has the sentence
    ]


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def tabulate_differences(runs: Sequence[Run], differences: dict[str, list[str]]) -> Rows:
    """Return a row an option that differs, with its value in every run."""
    head = ["option", *(run.name for run in runs)]
    return [head, *([name, *values] for name, values in differences.items())]


def format_plain(rows: Rows, title: str, width: int) -> str:
    """Format a table for a terminal."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True)
    for place, column in enumerate(zip(*rows, strict=True)):
        is_short = place > 0 and max(map(len, column)) <= _LONGEST_NUMBER
        table.add_column(
            column[0],
            justify="left" if place == 0 else "right",
            overflow="fold",
            no_wrap=is_short,
        )
    for row in rows[1:]:
        table.add_row(*row)
    return render([table], width)


def format_markdown(rows: Rows) -> str:
    """Format a table as Markdown."""
    cells = [[show_controls(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


def format_csv(runs: Sequence[Run], differences: dict[str, list[str]]) -> str:
    """Format everything as CSV: a row a run, its exact numbers, and the options that differ."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    head = ["run", "number", "best", "epoch", "parameters", "macs", "seconds", "images_per_second"]
    writer.writerow([*head, "peak_bytes", "ended", *differences])
    for place, run in enumerate(runs):
        epoch, value = run.best or (None, None)
        costs = [run.parameters, run.macs, run.seconds, run.images_per_second, run.peak_bytes]
        given = [values[place] for values in differences.values()]
        writer.writerow([run.name, run.monitor, value, epoch, *costs, run.ended, *given])
    return text.getvalue()
