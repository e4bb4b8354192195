"""Stopping a training so that it can go on as if it had never been stopped."""

import signal
import threading
from functools import partial
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class OrderlyStop(Callback):
    """Lets Ctrl-C and SIGTERM end a run between two optimiser steps or two evaluated batches only.

    At any other moment the weights, the statistics of the batch norms and the counters of progress
    do not belong together, and a checkpoint of them could not be resumed exactly. Several
    processes agree on the step. A second signal stops at once; `LastCheckpoint` then keeps what
    was written before.

    Attributes:
        received: The signal that asked for the stop; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over; Lightning's teardown gives them back to whom they belonged."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)
        # The loader asks when a step is over and logged, and the next batch is not yet counted.
        trainer.datamodule.between_batches = partial(self._between_batches, trainer)  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop before an evaluation during the training; it is made after resuming."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
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
        if _no_gradients_summed(trainer):
            self._stop_if_asked(trainer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            _leave(number)
        self.received = number

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        agreed = self.received
        if trainer.world_size > 1:
            asked = torch.tensor(agreed, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            agreed = int(asked)
        if agreed:  # a signal that came while the processes agreed on none waits for the next time
            self.received = agreed
            _leave(agreed)


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt` at the end of an epoch, from time to time and on a stop, of whole steps only.

    After an exception in the middle of a step (a loss that is not finite, memory that ran out)
    nothing is written: batch norms may have seen the batch, and what is there is better. Nor is
    it after one before the first step, such as a resume that was refused.

    Args:
        **options: `ModelCheckpoint`'s: where and when to write.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(filename="last", enable_version_counter=False, **options)
        self._begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the trainer's state is one of this run."""
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Write if it is time, unless gradients are being summed or the epoch's end writes soon."""
        if _no_gradients_summed(trainer) and not _at_epoch_end(trainer):
            super().on_train_batch_end(trainer, *args)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the state, if it is one from which the run can go on."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        whole = batches.processed == batches.ready and _no_gradients_summed(trainer)
        if not self._begun or not whole or trainer.state.fn != "fit":
            return
        if trainer.validating:
            _forget_evaluation(trainer)
        super().on_exception(trainer, pl_module, exception)


def _leave(number: int) -> None:
    raise SIGTERMException if number == signal.SIGTERM else KeyboardInterrupt


def _no_gradients_summed(trainer: pl.Trainer) -> bool:
    """Whether the batches taken so far made whole optimiser steps."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches == 0 or _at_epoch_end(trainer)


def _at_epoch_end(trainer: pl.Trainer) -> bool:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


def _forget_evaluation(trainer: pl.Trainer) -> None:
    """Make a resumed run evaluate again from the first image: the metric's state is not kept.

    Lightning knows an interrupted evaluation by a batch that was begun and not finished.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.total.ready = progress.total.started = 1
