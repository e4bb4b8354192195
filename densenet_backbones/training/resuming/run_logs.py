"""Loggers of a run: a table that is always whole, and TensorBoard's files."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from densenet_backbones.file_writing import save_text

Row = dict[str, Any]


class ContinuedCSVLogger(CSVLogger):
    """CSV logger whose file is replaced as a whole, and whose resumed run keeps the rows before.

    Lightning's writes in the file itself, and removes it when a run is resumed.

    Args:
        save_dir: The run folder; the file is ``metrics.csv`` in it.
        until_step: Rows of this step and later are dropped: they will be written again.
    """

    def __init__(self, save_dir: Path, until_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="")
        self._file, self._until_step = Path(save_dir) / "metrics.csv", until_step
        self._table: _Table | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Table of all rows, those of earlier starts included."""
        if self._table is None:
            earlier = []
            if self._until_step is not None:
                rows = _read_rows(self._file)
                earlier = [row for row in rows if float(row["step"]) < self._until_step]
            self._table = self._experiment = _Table(self._file, earlier)  # type: ignore[assignment]
            # At once: a run that is killed before its first row has no rows of later steps.
            self._table.save()
        return self._table

    def log_hyperparams(self, params: object = None) -> None:
        """Leave them to ``config.yaml``."""


class _Table:
    """Rows of named numbers, and their file."""

    def __init__(self, file: Path, rows: list[Row]) -> None:
        self.file, self.metrics = file, rows
        self._saved = 0

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add a row; a tensor is a number of one element."""
        row = {k: v.item() if hasattr(v, "item") else v for k, v in metrics.items()}
        self.metrics.append({**row, "step": step})

    def save(self) -> None:
        """Write all rows, if there are new ones."""
        if len(self.metrics) == self._saved:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, sorted(set().union(*self.metrics)))
        writer.writeheader()
        writer.writerows(self.metrics)
        save_text(self.file, text.getvalue())
        self._saved = len(self.metrics)


def _read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a table without empty cells, as far as the file is whole."""
    if not file.is_file():
        return
    text = file.read_bytes().decode(errors="replace")
    text = text[: text.rfind("\n") + 1]  # what follows was cut off
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        names = next(reader, [])
        for cells in reader:
            row = {name: cell for name, cell in zip(names, cells, strict=False) if cell}
            if len(cells) == len(names) and _is_number(row.get("step", "")):
                yield row
    except csv.Error:
        return


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class EventLogger(TensorBoardLogger):
    """TensorBoard's logger without its file of hyperparameters, which ``config.yaml`` has."""

    @rank_zero_only
    def save(self) -> None:
        """Hand over what was logged."""
        self.experiment.flush()
