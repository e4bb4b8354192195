"""Report of measurements: tables as data, text and JSON, under a head that names the machine."""

import os
import platform
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from densenet_backbones.file_writing import save_json
from densenet_backbones.messages import pluralize, print_lines

__all__ = ["Cell", "Column", "Report", "Table", "Unavailable", "describe_machine"]

Cell = str | int | float | tuple[float, ...] | None
"""Value of a cell: a tuple holds one number a turn, None stands for an empty cell."""

_PACKAGES = ("torch", "timm", "torchvision", "segmentation-models-pytorch", "onnxruntime")


class Unavailable(ValueError):  # noqa: N818 - nothing went wrong
    """Error for a measurement that needs a device or an optional package that is missing."""


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        name: Its head, with the unit.
        spec: How numbers are written, as of `format`.
        spread: Write the smallest and largest of the turns beside the median.
    """

    name: str
    spec: str = ""
    spread: bool = False

    def head(self) -> str:
        """Return the text above the column."""
        return f"{self.name} (min .. max)" if self.spread else self.name

    def write(self, cell: Cell) -> str:
        """Write a cell in words; of several turns the median."""
        if cell is None or isinstance(cell, str):
            return "-" if cell is None else cell
        if not isinstance(cell, tuple):
            return format(cell, self.spec)
        middle, *ends = (format(f(cell), self.spec) for f in (statistics.median, min, max))
        return f"{middle} ({ends[0]} .. {ends[1]})" if self.spread else middle


@dataclass(frozen=True)
class Table:
    """Figures measured under one condition.

    Attributes:
        title: The condition.
        columns: The first names the rows.
        rows: A cell for each column.
        note: What the columns mean, and what is missing.
        chart: Names of the columns to draw: one as bars, two as points (x, y), or none.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    chart: tuple[str, ...] = ()

    def text(self) -> str:
        """Return text for people: names to the left, numbers to the right."""
        lines = [[column.head() for column in self.columns]]
        lines += [[c.write(v) for c, v in zip(self.columns, row, strict=True)] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = [
            "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(line))
            for line in lines
        ]
        return "\n".join(line for line in (self.title, *body, self.note) if line)

    def values(self) -> dict[str, object]:
        """Return values for JSON: rows by the names of columns, with every turn's value."""
        names = [column.name for column in self.columns]
        rows = [dict(zip(names, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "note": self.note}

    def column(self, name: str) -> list[Cell]:
        """Return the cells under a name."""
        index = [column.name for column in self.columns].index(name)
        return [row[index] for row in self.rows]


class Report:
    """Tables printed as they come in, and written to a file that is complete at any time.

    Args:
        command: The command line.
        quick: True if the figures are of a trial run.
        file: Where to write JSON, or None.
    """

    def __init__(self, command: Sequence[str], quick: bool = False, file: Path | None = None):
        self.command, self.quick, self.file = shlex.join(command), quick, file
        self.machine = describe_machine()
        self.tables: list[tuple[str, Table]] = []
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        facts = [f"{name}: {fact}" for name, fact in self.machine.items()]
        if quick:
            facts.append("A quick run, tiny and with one turn: its figures are not to be quoted.")
        print_lines(f"$ {self.command}", *facts, "")

    def add(self, measurement: str, table: Table) -> None:
        """Print a table, and write it to the file."""
        self.tables.append((measurement, table))
        print_lines(*f"{measurement}: {table.text()}".splitlines(), "")
        self._write()

    def miss(self, measurement: str, reason: str) -> None:
        """Report that something cannot be measured here."""
        self.missing[measurement] = reason
        print_lines(f"{measurement}: not measured, {reason}", "")
        self._write()

    def fail(self, measurement: str, error: Exception) -> None:
        """Report that a measurement ended with an error."""
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        self.failed[measurement] = reason
        print_lines(f"{measurement}: FAILED, {reason}", "")
        self._write()

    def _write(self) -> None:
        if self.file is None:
            return
        values = {
            "command": self.command,
            "quick": self.quick,
            "machine": self.machine,
            "tables": [{"measurement": name, **table.values()} for name, table in self.tables],
            "not_measured": self.missing,
            "failed": self.failed,
        }
        save_json(self.file, values)


def describe_machine() -> dict[str, str]:
    """Describe the kind of machine, how busy it is, and the versions of what is compared."""
    import torch

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = pluralize(torch.get_num_threads(), "thread")
    facts = {
        "CPU": f"{_read_processor()}, {affinity} cores, {threads} used",
        "memory": _read_memory(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {_read_version(name)}" for name in _PACKAGES),
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = f"{os.getloadavg()[0]:.1f} processes in the minute before"
    return facts


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _read_memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):  # Windows
        return "unknown"


def _read_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(none)"
