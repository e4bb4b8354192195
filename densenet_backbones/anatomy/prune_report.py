"""Table of a pruning: what a model costs and is worth before, after, and fine-tuned."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from densenet_backbones.file_writing import save_json, save_text
from densenet_backbones.metrics.undefined import replace_nan
from densenet_backbones.reporting.tables import format_number, render
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

__all__ = ["TUNED", "Measured", "PruneReport"]

TUNED = "fine-tuned"
"""Title of the row of a fine-tuned model."""
_TABLE, _JSON = "prune.txt", "prune.json"
_QUALITY = ("accuracy", "top5", "AP", "AP50", "mIoU", "boundary_F")
"""Numbers of evaluations that the table shows; the JSON has all."""


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        title: ``before``, ``after`` or ``fine-tuned``.
        parameters: Learnable values.
        macs: Multiply-adds of an image.
        numbers: Of its evaluation; none without data.
    """

    title: str
    parameters: int
    macs: int
    numbers: Mapping[str, float]


@dataclass
class PruneReport:
    """Table of a pruning, as `prune.json` holds it.

    Attributes:
        connections_before: Number of connections between layers before.
        connections_after: Number of those left.
        absent_layers: Names of the layers taken out.
        rows: What was measured so far.
    """

    connections_before: int
    connections_after: int
    absent_layers: list[str]
    rows: list[Measured]

    def describe(self) -> list[str]:
        """Return a sentence that says what was taken out."""
        dropped = self.connections_before - self.connections_after
        names = ", ".join(self.absent_layers)
        layers = f"; layers taken out: {names}" if names else ""
        return [f"{dropped} of {self.connections_before} connections are taken out{layers}."]

    def render(self) -> str:
        """Return the table as text."""
        names = [name for name in _QUALITY if name in self.rows[0].numbers]
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("")
        for column in (*names, "parameters", "multiply-adds"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            quality = [format_number(row.numbers.get(name, float("nan"))) for name in names]
            table.add_row(row.title, *quality, f"{row.parameters:,}", f"{row.macs:,}")
        return "\n".join((*self.describe(), render([table])))

    def save(self, out: Path) -> None:
        """Write the table, as text and as JSON."""
        save_text(out / _TABLE, self.render())
        rows = [{**vars(row), "numbers": replace_nan(row.numbers)} for row in self.rows]
        save_json(out / _JSON, {**vars(self), "rows": rows}, indent=2)

    @classmethod
    def read(cls, out: Path) -> "PruneReport":
        """Read what was measured before a fine-tuning.

        Raises:
            ValueError: The folder has no such file, or a damaged one.
        """
        file = out / _JSON
        try:
            content: Any = parse_json(read_text(file, MAX_YAML_FILE, ValueError))
            rows = [
                Measured(
                    str(row["title"]),
                    int(row["parameters"]),
                    int(row["macs"]),
                    {k: float("nan") if v is None else float(v) for k, v in row["numbers"].items()},
                )
                for row in content["rows"]
                if row["title"] != TUNED
            ]
            if not rows:
                raise ValueError("nothing is in its table")
            before, after = int(content["connections_before"]), int(content["connections_after"])
            return cls(before, after, list(map(str, content["absent_layers"])), rows)
        except FileNotFoundError:
            raise ValueError(
                f"nothing to resume: there is no {file}; prune anew, without --resume"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{file} is no report of a pruning ({error}); prune anew") from error
