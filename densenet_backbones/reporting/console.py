"""Print what a run tells its user, on the terminal and into the run's log file."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.text import Text

from densenet_backbones.data.faults import DataError
from densenet_backbones.messages import describe_error, print_lines, show_controls


class PlainConsole(Console):
    """Console to which every text is data: no markup, no emoji codes, control codes spelled.

    Rich makes its lines, table cells and titles from strings in one method, which is replaced.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as one line; rich's options for the styles of parts are left out."""
        layout = {k: v for k, v in options.items() if k in ("style", "justify", "overflow")}
        layout["style"] = layout.get("style") or ""
        return Text(show_controls(text), **layout)


_terminal = PlainConsole(soft_wrap=True)
_log_files: list[Path] = []


def log_to(path: Path | None) -> None:
    """Append a copy of all that is said from now on to this file, or to none."""
    _log_files[:] = [path] if path else []


_LIGHTNING = "lightning.fabric.utilities.rank_zero"
_NUMBERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning reads them


def get_process_number() -> int:
    """Return the number of this process among those that train together, from 0."""
    # Lightning's, which knows best; before it is imported, what the launcher says.
    if _LIGHTNING in sys.modules:
        return int(getattr(sys.modules[_LIGHTNING].rank_zero_only, "rank", 0))
    return int(next((os.environ[name] for name in _NUMBERS if name in os.environ), 0))


def has_terminal() -> bool:
    """Return True if what is said is seen as it is said, so that a progress bar can be drawn."""
    return _terminal.is_terminal or _terminal.is_jupyter


def is_first_process() -> bool:
    """Return True in the process that prints and writes, of the one or many that run."""
    return get_process_number() == 0


def say(*lines: RenderableType, style: str | None = None) -> None:
    """Print lines of text, as they are, or rich tables, once however many processes run.

    Args:
        lines: A line each: line feeds in a name do not end it.
        style: Rich's style of the lines on the terminal.
    """
    if is_first_process():
        _terminal.print(*lines, style=style, sep="\n")
        log(*lines)


def log(*lines: RenderableType) -> None:
    """Write lines to the run's log file alone; see `say`."""
    for path in _log_files if is_first_process() else ():
        with path.open("a", encoding="utf-8") as file:
            PlainConsole(file=file, width=120, soft_wrap=True).print(*lines, sep="\n")


def fail(error: Exception | str, code: int) -> NoReturn:
    """Print one error and exit; every process does, since each has its own images.

    Args:
        error: An error that the user can do something about, or its sentence. A `DataError` may
            have further lines.
        code: Exit status.
    """
    rank = "" if is_first_process() else f"process {get_process_number()}: "
    sentence = error if isinstance(error, str) else describe_error(error)
    first, *more = error.args if isinstance(error, DataError) else [sentence]
    print_lines(f"error: {rank}{first}", *(f"  {line}" for line in more), file=sys.stderr)
    sys.exit(code)


def quiet_libraries() -> None:
    """Silence what users can do nothing about, and print what the libraries say as text too."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")  # rows are kept
    warnings.filterwarnings(
        "ignore", message="(?s).*Checkpoint directory .* exists and is not empty.*"
    )
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # Of damaged tags, without the file's name: its pixels are read, or refused with it.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    warnings.formatwarning = _format_warning  # type: ignore[assignment]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    adverts = ["litlogger", "litmodels", "Loading `train_dataloader`"]
    adverts += ["TPU available", "HPU available"]
    # The lines about a run say these, too.
    adverts += ["Automatic Mixed Precision", "GPU available: False", "Seed set to"]
    adverts += ["`fast_dev_run` mode", "`Trainer.fit` stopped"]
    adverts += ["Restoring states from", "Restored all states", "Found current_model_state"]
    # `OrderlyStop` says these, with the command that goes on.
    adverts += ["attempting graceful shutdown", "Interrupt was raised", "SIGTERMException was"]
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logger = logging.getLogger(name)
        logger.addFilter(lambda record: not any(text in record.getMessage() for text in adverts))
        logger.addFilter(_spell_controls)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep back what libraries log below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _format_warning(message: Warning | str, *place: object) -> str:
    """Return a warning as one line, without the line of code that it comes from."""
    return f"warning: {show_controls(' '.join(str(message).split()))}\n"


def _spell_controls(record: logging.LogRecord) -> bool:
    """Put a record's final text in the place of its parts; every record passes."""
    record.msg, record.args = show_controls(record.getMessage()), None
    return True
