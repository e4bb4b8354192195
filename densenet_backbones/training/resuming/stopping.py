"""End a run by Ctrl-C or SIGTERM: the first in order, the second at once."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NoReturn

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.reporting.console import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0
"""Seconds that an orderly stop has at least: a launcher may pass on a signal that the terminal has
sent to all processes."""
_OVER = b"\0"
_watching: list[socket.socket] = []
_of_thread = threading.local()


@contextmanager
def watch_signals() -> Iterator[None]:
    """End the process at a second Ctrl-C or SIGTERM, whatever it is in the middle of.

    Python's own handlers run between two of its instructions, and a single one of them may train a
    whole batch. The bytes that Python writes as a signal arrives are read by a thread. In a process
    that another one launched, it ends the process when that one is gone, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not this thread's
        return
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    ours.settimeout(1.0)
    over = threading.Event()
    received: list[int] = []
    former = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    _watching.append(pythons)
    threading.Thread(target=_watch, args=(ours, received, over), daemon=True).start()
    try:
        yield
    except SystemExit as end:
        if len(received) > 1:  # all is written; the interpreter's own end can take its time
            sys.stdout.flush()
            sys.stderr.flush()
            _end(end.code if isinstance(end.code, int) else 128 + received[0])
        raise
    finally:
        over.set()
        signal.set_wakeup_fd(former)
        _watching.remove(pythons)
        with pythons, suppress(OSError):  # the thread may have gone already
            pythons.send(_OVER)


def _delay_signals() -> None:
    """Let signals wait while a process forks: its child's go to the same watch until it leaves."""
    if _watching:
        _of_thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _hear_signals() -> None:
    mask = _of_thread.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave_watch_to_parent() -> None:
    """Keep the signals of a forked process, such as a loader's worker, from its parent's watch."""
    if _watching:
        signal.set_wakeup_fd(-1)
        _watching.clear()
    _hear_signals()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_delay_signals, after_in_parent=_hear_signals, after_in_child=_leave_watch_to_parent
    )


def _watch(signals: socket.socket, received: list[int], over: threading.Event) -> None:
    parent, begun = os.getppid(), 0.0
    with signals:
        while not over.is_set():
            try:
                number = signals.recv(1)[0]
            except TimeoutError:
                if not is_first_process() and os.getppid() != parent:
                    _end(128 + signal.SIGTERM)
                continue
            except (OSError, IndexError):
                return
            if number not in SIGNALS:
                continue
            received.append(number)
            if len(received) == 1:
                begun = time.monotonic()
                if is_first_process():
                    _write_line("Stopping in order; a second signal stops at once.")
            elif not over.wait(begun + GRACE - time.monotonic()):
                _write_line("Stopped at once by a second signal; what was written before is whole.")
                _end(128 + number)


def _end(code: int) -> NoReturn:
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def _write_line(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # the main thread may hold the locks of sys.stderr


class OrderlyStop(Callback):
    """Lets Ctrl-C and SIGTERM end a run between two optimizer steps or two evaluated batches only.

    At any other moment the weights, the statistics of the batch norms and the counters of progress
    do not belong together, and a checkpoint of them could not be resumed exactly: Lightning's own
    handling of signals stops anywhere. Several processes agree on the step. `watch_signals` stops
    at once by a second signal.

    Attributes:
        received: The signal that asked for the stop; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over; Lightning's teardown restores the handlers from before."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)
        # The loader asks when a step is over and logged, and the next batch is not yet counted.
        trainer.datamodule.between_batches = partial(self._between_batches, trainer)  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before an evaluation during the training; it is made after resuming."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Stop in an evaluation; several processes, whose batches may differ in number, end it."""
        if trainer.state.fn == "fit" and trainer.world_size == 1 and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop between two epochs."""
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the last epoch; the report is made after resuming."""
        self._stop_if_asked(trainer)

    def _between_batches(self, trainer: pl.Trainer) -> None:
        if has_whole_steps(trainer):
            self._stop_if_asked(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def on_exception(self, *args: object) -> None:
        """Hear a second Ctrl-C while the last checkpoint is written: Lightning ignores it there."""
        if self.received and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        agreed = self.received
        if trainer.world_size > 1:
            received = torch.tensor(agreed, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            agreed = int(received)
        if agreed:  # a signal that came while the processes agreed on none waits for the next time
            self.received = agreed
            _leave(agreed)


def _leave(number: int) -> None:
    raise SIGTERMException if number == signal.SIGTERM else KeyboardInterrupt


def has_whole_steps(trainer: pl.Trainer) -> bool:
    """Return True if the batches taken so far made whole optimizer steps."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches == 0 or is_epoch_end(trainer)


def is_epoch_end(trainer: pl.Trainer) -> bool:
    """Return True if all batches of the epoch were taken."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches
