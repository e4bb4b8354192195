"""Print what a run tells its user, on the terminal and into the run's log file."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, RenderableType
from rich.text import Text

from densenet_backbones.messages import show_controls


class PlainConsole(Console):
    """Console to which every text is data: no markup, no emoji codes, control codes spelled.

    Rich makes its lines, table cells and titles from strings in one method, which is replaced.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as it is; rich's options for the styles of parts are left out."""
        layout = {k: v for k, v in options.items() if k in ("style", "justify", "overflow")}
        layout["style"] = layout.get("style") or ""
        return Text(show_controls(text), **layout)


_terminal = PlainConsole(soft_wrap=True)
_log_files: list[Path] = []


def log_to(path: Path | None) -> None:
    """Append a copy of all that is said from now on to this file, or to none."""
    _log_files[:] = [path] if path else []


def get_process_number() -> int:
    """Return the number of this process among those that train together, from 0."""
    return int(getattr(rank_zero_only, "rank", 0))


def is_first_process() -> bool:
    """Return True in the process that prints and writes, of the one or many that run."""
    return get_process_number() == 0


@rank_zero_only
def say(*texts: RenderableType, style: str | None = None) -> None:
    """Print text, as it is, or rich tables, once however many processes run."""
    _terminal.print(*texts, style=style)
    for path in _log_files:
        with path.open("a", encoding="utf-8") as file:
            PlainConsole(file=file, width=120, soft_wrap=True).print(*texts)


def fail(message: str, code: int) -> NoReturn:
    """Print one error and exit; every process does, since each has its own images."""
    rank = "" if is_first_process() else f"process {get_process_number()}: "
    print(f"error: {rank}{show_controls(message)}", file=sys.stderr)
    sys.exit(code)


def quiet_libraries() -> None:
    """Silence adverts and deprecations inside the libraries, which users can do nothing about."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")  # rows are kept
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    adverts = ["litlogger", "litmodels", "Loading `train_dataloader`"]
    adverts += ["TPU available", "HPU available"]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in adverts)
    )
    torch.set_float32_matmul_precision("high")  # tensor cores on GPUs that have them
