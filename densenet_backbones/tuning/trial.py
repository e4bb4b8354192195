"""One trial of a sweep: a training as a process of its own, watched by its `summary.json`.

A process that runs out of memory takes nothing with it, and its peak is its own.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_backbones.file_writing import save_text
from densenet_backbones.messages import show_controls
from densenet_backbones.training.progress.summary import read_summary
from densenet_backbones.training.resuming.going_on import prepare_to_go_on

TRAIN: tuple[str, ...] = (sys.executable, "-m", "densenet_backbones", "train")
"""Command of a training."""
_LOOK_EVERY = 0.5
_GRACE = 120
"""Seconds that a training has to write its checkpoint after it was asked to stop."""
_LONGEST_REASON = 300
_TAIL = 20_000


class TrialError(Exception):
    """A training failed; says why in a line."""


@dataclass(frozen=True)
class Place:
    """Files of a trial.

    Attributes:
        sweep: Folder of the sweep.
        number: The trial's.
    """

    sweep: Path
    number: int

    @property
    def run(self) -> Path:
        """Folder of its run, as `densenet train` writes it."""
        return self.sweep / "trials" / f"{self.number:04d}"

    @property
    def output(self) -> Path:
        """All that its training printed."""
        return self.run.with_suffix(".txt")

    @property
    def process(self) -> Path:
        """Number of its process."""
        return self.run.with_suffix(".pid")


def train_trial(place: Place, words: Sequence[str], watch: Callable[[list[float]], bool]) -> bool:
    """Train, or go on with a training that was broken off.

    Args:
        place: Where it is written.
        words: Of ``densenet train``.
        watch: Called with the numbers of all evaluations so far after each new one; True stops.

    Returns:
        False if `watch` stopped it.

    Raises:
        TrialError: The training failed.
        KeyboardInterrupt: This process was interrupted; the training has been stopped in order.
    """
    more = prepare_to_go_on(place.run)
    if more is None:
        return True
    begun = place.output.stat().st_size if place.output.exists() else 0
    with place.output.open("ab") as output:
        process = subprocess.Popen(
            [*TRAIN, *words, f"--run-dir={place.run}", *more],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C of the terminal is for the sweep, which passes it on
        )
    save_text(place.process, str(process.pid))
    try:
        is_stopped = _watch(process, place.run, watch)
    except BaseException:
        stop(process)
        raise
    place.process.unlink(missing_ok=True)
    if process.returncode and not is_stopped:
        raise TrialError(_explain(process.returncode, place.output, begun))
    return not is_stopped


def _watch(
    process: "subprocess.Popen[bytes]", run: Path, watch: Callable[[list[float]], bool]
) -> bool:
    """Wait for the end of a training; return True if `watch` ended it."""
    known = 0
    with _note_interrupts() as interrupts:  # and raise one at the end
        while process.poll() is None and not interrupts:
            time.sleep(_LOOK_EVERY)
            values = read_values(run)
            if len(values) > known:
                known = len(values)
                if watch(values):
                    stop(process)
                    return True
        if len(values := read_values(run)) > known:  # those of its last moments
            watch(values)
    return False


@contextmanager
def _note_interrupts() -> Iterator[list[int]]:
    """Note Ctrl-C in a list, and raise it at the end.

    As an exception it is lost where it comes while Python frees an object.

    Raises:
        KeyboardInterrupt: It was noted.
    """
    noted: list[int] = []
    # Only the main thread has handlers; others than Python's own say what is to be done.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if noted:
        raise KeyboardInterrupt


def read_values(run: Path) -> list[float]:
    """Return a run's quality at each evaluation so far; -1 where it is not defined."""
    summary: dict[str, Any] = read_summary(run)
    name = summary.get("monitor")
    values = [e.get("numbers", {}).get(name) for e in summary.get("evaluations", ())]
    return [-1.0 if value is None else float(value) for value in values]


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask a training to stop in order, and end it if it does not."""
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, 10)):
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


def _explain(code: int, output: Path, begun: int) -> str:
    """Return the reason of a failure in a line: the training's own sentence, where it has one."""
    with output.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begun, size - _TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == -signal.SIGKILL:
        reason = "killed by the system, mostly for want of memory"
    elif code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    else:
        reason = (errors or lines or [f"ended with status {code}"])[-1]
    return show_controls(reason)[:_LONGEST_REASON]
