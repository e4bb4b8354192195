"""Callbacks of a training: averaged weights, checkpoints, lines and pictures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from densenet_backbones.data.loaders.guarded import UnusableImages
from densenet_backbones.data.loading import AnyData
from densenet_backbones.messages import check_interval, pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.training.resuming.checkpoint_files import is_whole
from densenet_backbones.training.resuming.stopping import has_whole_steps, is_epoch_end
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.tasks.task import AnyTask, IndexedSample, Outputs

SAVE_EVERY = timedelta(minutes=10)
"""At most this much training is lost when a machine goes down in an epoch."""


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation and kept in checkpoints.

    The decay grows with the number of updates n as ``min(decay, (1 + n) / (10 + n))`` (the rule
    of TensorFlow's ExponentialMovingAverage), so that a short run is not held back by its first
    weights.

    Args:
        decay: Highest share of the old average kept in an update, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        check_interval("ema_decay", decay, "[0, 1)")

        @torch.no_grad()
        def average(old: list[Tensor], new: list[Tensor], updates: Tensor | int) -> None:
            n = float(updates)  # once for all tensors: on a GPU it waits for the device
            share = min(decay, (1 + n) / (10 + n))
            if old[0].is_floating_point():
                torch._foreach_lerp_(old, new, 1 - share)
            else:
                torch._foreach_copy_(old, new)

        super().__init__(multi_avg_fn=average)
        self._swapped = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the averaged weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the trained weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the trained weights back before a checkpoint is written of a broken evaluation."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the averaged weights in the model; a later validation must not swap them again."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None


class RunCheckpoint(ModelCheckpoint):
    """Checkpoint callback that has the rows of the run's table written first.

    Those of steps that are in a checkpoint are not made again after a kill.
    """

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        for logger in trainer.loggers:
            logger.save()
        super()._save_checkpoint(trainer, filepath)


class LastCheckpoint(RunCheckpoint):
    """`last.ckpt` at the end of an epoch, from time to time and on a stop, of whole steps only.

    After an exception in the middle of a step (a loss that is not finite, memory that ran out)
    nothing is written, unlike by Lightning's class: batch norms may have seen the batch, and the
    file from before is better. Nor is anything written after an exception before the first step,
    such as a resume that was refused.

    Args:
        **options: `ModelCheckpoint`'s: where and when to write.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(filename="last", enable_version_counter=False, **options)
        self._begun = False
        self._write_if_due: Callable[[], None] = _do_nothing

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over in a folder that was moved: only the file's place is in the state."""
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the trainer's state is one of this run."""
        super().on_train_start(trainer, pl_module)
        self._begun = True
        data: AnyData = trainer.datamodule  # type: ignore[attr-defined]
        data.between_batches = partial(self._between_batches, data.between_batches)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Write if it is time, unless gradients are being summed or the epoch's end writes soon.

        It is done when the next batch is asked for: now, the step's numbers are not logged yet.
        """
        if has_whole_steps(trainer) and not is_epoch_end(trainer):
            self._write_if_due = partial(
                super().on_train_batch_end, trainer, pl_module, None, None, batch_idx
            )

    def _between_batches(self, before: Callable[[], None]) -> None:
        write, self._write_if_due = self._write_if_due, _do_nothing
        write()
        before()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the state, if it is one from which the run can go on."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        whole = batches.processed == batches.ready and has_whole_steps(trainer)
        if not self._begun or not whole or trainer.state.fn != "fit":
            return
        if trainer.validating:
            _forget_evaluation(trainer)
        super().on_exception(trainer, pl_module, exception)


def _do_nothing() -> None:
    pass


def _forget_evaluation(trainer: pl.Trainer) -> None:
    """Make a resumed run evaluate again from the first image: the metric's state is not kept.

    Lightning knows an interrupted evaluation by a batch that was begun and not finished.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.total.ready = progress.total.started = 1


class BestCheckpoint(RunCheckpoint):
    """`best.ckpt`, also in a run's folder that was moved since it was written.

    Lightning forgets the best score where the folder's path has changed, and would write the next
    evaluation's weights over better ones.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the score over if the file that has it is here, and whole."""
        file = Path(self.dirpath or ".", f"{self.filename}.ckpt")
        if state_dict["best_k_models"] and is_whole(file):
            moved = {
                "dirpath": self.dirpath,
                "best_model_path": str(file),
                "kth_best_model_path": str(file),
                "best_k_models": {str(file): s for s in state_dict["best_k_models"].values()},
            }
            super().load_state_dict({**state_dict, **moved})


def make_checkpoint_callbacks(folder: RunFolder, monitor: str = "val/AP") -> list[Callback]:
    """Return what writes `best.ckpt` by a number, and `last.ckpt` each epoch, 10 minutes and stop.

    Args:
        folder: The run's folder.
        monitor: Logged number of which the highest is best.
    """
    to = folder.checkpoints
    return [
        BestCheckpoint(to, "best", monitor, mode="max", enable_version_counter=False),
        LastCheckpoint(dirpath=to, save_on_train_epoch_end=True, save_on_exception=True),
        LastCheckpoint(dirpath=to, train_time_interval=SAVE_EVERY),
    ]


class UnusableImageLines(Callback):
    """Names the images that could not be used, and counts them after each epoch and at the end."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()
        self._left_out = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print how many images of the epoch were replaced, and which are new."""
        total = gather_unusable(trainer.datamodule.replaced)  # type: ignore[attr-defined]
        times = (total - self._before).total()
        if times:
            say(
                f"epoch {trainer.current_epoch + 1:>3}  {pluralize(times, 'image')} replaced by "
                "the next ones."
            )
            say_list([reason for reason in total if reason not in self._before])
        self._before = total

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the sum."""
        if self._before:
            say(
                f"{pluralize(len(self._before), 'training image')} could not be used; others were "
                f"taken instead {pluralize(self._before.total(), 'time')}."
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print which evaluated images were left out, once."""
        reasons = gather_unusable(trainer.datamodule.left_out)  # type: ignore[attr-defined]
        if len(reasons) > self._left_out and not trainer.sanity_checking:
            self._left_out = len(reasons)
            say(
                f"{pluralize(len(reasons), 'image')} left out of the evaluation, as they cannot "
                "be used:"
            )
            say_list(list(reasons))


def gather_unusable(images: UnusableImages) -> Counter[str]:
    """Return the counts of all processes; each has to ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Counter(images.counts)
    parts: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, images.counts)
    return sum(parts, Counter())


def say_list(reasons: Sequence[str], limit: int = 50) -> None:
    """Print the first sentences of a list, a line each, and how many more there are."""
    for reason in reasons[:limit]:
        say(f"  {reason}")
    if len(reasons) > limit:
        say(f"  and {len(reasons) - limit} more")


class TrainingPictures(Callback):
    """Draws the first batches as augmented, and predictions beside the ground truth.

    The task draws the sheets.

    Args:
        folder: The run's folder; pictures go to ``pictures/``.
        batches: How many first batches are drawn.
        images: How many evaluated images are drawn at each validation.
    """

    def __init__(self, folder: RunFolder, batches: int = 2, images: int = 8) -> None:
        self.folder, self.batches, self.images = folder, batches, images

    @rank_zero_only
    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Sequence[IndexedSample],
        batch_idx: int,
    ) -> None:
        """Draw a first batch as the model is given it."""
        if trainer.current_epoch == 0 and batch_idx < self.batches:
            sheet = cast(AnyTask, pl_module).draw_batch(batch[:16])
            save_picture(self.folder.pictures / f"train_batch_{batch_idx}.png", sheet)

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Sequence[IndexedSample],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first evaluated images of this process."""
        if batch_idx > 0 or trainer.sanity_checking or not batch:
            return
        task, predictions = cast(AnyTask, pl_module), cast(Outputs, outputs)
        sheet = task.draw_predictions(batch[: self.images], predictions)
        name = f"predictions_step_{trainer.global_step:06d}.png"
        save_picture(self.folder.pictures / name, sheet)
