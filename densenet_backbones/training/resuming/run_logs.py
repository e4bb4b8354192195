"""Loggers of a run: a table that is always whole, and TensorBoard's files."""

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_only

from densenet_backbones.file_writing import save_text
from densenet_backbones.messages import quote_word

Row = dict[str, Any]
_PROJECT = "densenet-backbones"


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


def make_loggers(wanted: object, folder: Path, until_step: int | None = None) -> list[Logger]:
    """Return a run's loggers: that of its table, from which curves are drawn, and those wanted.

    Args:
        wanted: Name of one, an instance of Lightning's or several; None or True for TensorBoard's,
            False for none.
        folder: The run's.
        until_step: As of `ContinuedCSVLogger`.

    Raises:
        MisconfigurationException: Its library is not installed.
    """
    table = ContinuedCSVLogger(folder, until_step)
    if wanted in ("csv", False):
        return [table]
    if isinstance(wanted, Logger | Sequence) and not isinstance(wanted, str):
        return [*(wanted if isinstance(wanted, Sequence) else [wanted]), table]
    try:
        if wanted == "wandb":
            return [WandbLogger(project=_PROJECT, name=folder.name, save_dir=folder), table]
        if wanted == "mlflow":
            return [_make_mlflow_logger(folder), table]
    except ModuleNotFoundError as error:
        raise MisconfigurationException(
            f"--logger {wanted} needs {wanted}, which is not installed; pip install "
            f'"densenet-backbones[{wanted}]"'
        ) from error
    return [EventLogger(folder, name="", version=""), table]


def _make_mlflow_logger(folder: Path) -> MLFlowLogger:
    """Return MLflow's logger, which writes beside the run's folder if no server is named.

    (It writes at once, before the run owns its folder; and runs in one store can be compared.)
    """
    beside = folder.absolute().parent
    files = beside / "mlruns"
    place = os.environ.get("MLFLOW_TRACKING_URI")
    if place is None and _is_installed("mlflow"):
        beside.mkdir(parents=True, exist_ok=True)
        place = f"sqlite:///{beside / 'mlflow.db'}"
    elif place is None:  # mlflow-skinny brings no database, and asks for this word since 3.7
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        place = files.as_uri()
    with _say_cannot_start("MLFlowLogger"):
        return MLFlowLogger(
            _PROJECT, folder.name, tracking_uri=place, artifact_location=files.as_uri()
        )


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def start_loggers(trainer: pl.Trainer) -> None:
    """Start what the loggers write to, before the training.

    Raises:
        MisconfigurationException: One of a service cannot: nobody is logged in, or no network.
    """
    for logger in trainer.loggers:
        advice = "; WANDB_MODE=offline needs neither" if isinstance(logger, WandbLogger) else ""
        with _say_cannot_start(type(logger).__name__, advice):
            _ = logger.experiment  # type: ignore[attr-defined]  # every one of Lightning's has it


@contextmanager
def _say_cannot_start(kind: str, advice: str = "") -> Iterator[None]:
    """Make one sentence of whatever keeps a service from starting."""
    try:
        yield
    except ModuleNotFoundError:  # the caller says how to install it
        raise
    except Exception as error:  # each service has its own types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise MisconfigurationException(
            f"{kind} cannot start ({reason}): log in and check the network, or give --logger "
            f"csv{advice}"
        ) from error


def tell_curves(loggers: Sequence[Logger], folder: Path, pictures: Path) -> str:
    """Return the command that shows a run's curves, or the picture of them.

    Args:
        loggers: The run's.
        folder: The run's.
        pictures: Folder of its pictures.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            return f"tensorboard --logdir {quote_word(folder)}"
        if isinstance(logger, WandbLogger) and logger.experiment.offline:
            return f"wandb sync {quote_word(Path(logger.experiment.dir).parent)}"
        if isinstance(logger, WandbLogger):
            return str(logger.experiment.url)
        if isinstance(logger, MLFlowLogger):
            store = quote_word(str(logger._tracking_uri))  # no public name has it
            return f"mlflow ui --backend-store-uri {store}"
    return str(pictures / "training_curves.png")


class EventLogger(TensorBoardLogger):
    """TensorBoard's logger without its file of hyperparameters, which ``config.yaml`` has."""

    @rank_zero_only
    def save(self) -> None:
        """Hand over what was logged."""
        self.experiment.flush()
