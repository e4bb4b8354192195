"""What a run tells its user: on the terminal, and kept in the run's log file."""

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

_terminal = Console(highlight=False, soft_wrap=True)
_log_files: list[Path] = []


def log_to(path: Path | None) -> None:
    """Keep a copy of all that is said from now on in this file (appended), or in none."""
    _log_files[:] = [path] if path else []


def process_number() -> int:
    """This process among those that train together, from 0."""
    return int(getattr(rank_zero_only, "rank", 0))


def is_first_process() -> bool:
    """Whether this is the process that prints and writes, of the one or many that run."""
    return process_number() == 0


@rank_zero_only
def say(*what: Any, style: str | None = None) -> None:
    """Print text or rich tables, once however many processes run."""
    _terminal.print(*what, style=style)
    for path in _log_files:
        with path.open("a") as file:
            Console(file=file, width=120, highlight=False, soft_wrap=True).print(*what)
