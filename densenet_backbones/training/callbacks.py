"""What happens beside the training step: averaged weights, checkpoints, pictures."""

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from densenet_backbones.messages import check_interval
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.stopping import LastCheckpoint

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
            kept = min(decay, (1 + n) / (10 + n))
            if old[0].is_floating_point():
                torch._foreach_lerp_(old, new, 1 - kept)
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


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, also in a run's folder that was moved since it was written.

    Lightning forgets the best score where the folder's path has changed, and would write the next
    evaluation's weights over better ones.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the score over if the file that has it is here."""
        file = Path(self.dirpath or ".", f"{self.filename}.ckpt")
        if state_dict["best_k_models"] and file.is_file():
            paths = ("best_model_path", "kth_best_model_path")
            here: dict[str, Any] = {"dirpath": self.dirpath, **dict.fromkeys(paths, str(file))}
            here["best_k_models"] = {
                str(file): score for score in state_dict["best_k_models"].values()
            }
            super().load_state_dict({**state_dict, **here})


def checkpoint_callbacks(folder: RunFolder, monitor: str = "val/AP") -> list[Callback]:
    """`best.ckpt` by the monitored number; `last.ckpt` each epoch, each 10 minutes and on a stop.

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


class EpochLines(Callback):
    """One line at each validation, for logs and for terminals without a progress bar."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the epoch's numbers and the time since the start."""
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [name for name in pl_module.headline if f"val/{name}" in numbers]
        if trainer.sanity_checking or not shown or "train/loss" not in numbers:
            return
        passed = timedelta(seconds=round(time.monotonic() - self._since))
        say(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  "
            f"loss {numbers['train/loss']:.3f}  lr {numbers.get('lr', float('nan')):.2e}  "
            + "".join(f"{name} {numbers[f'val/{name}']:.3f}  " for name in shown)
            + f"{passed}"
        )


class TrainingPictures(Callback):
    """Draws the first batches as augmented, and predictions beside the ground truth.

    What a sheet looks like, the task says.

    Args:
        folder: The run's folder; pictures go to ``pictures/``.
        batches: How many first batches are drawn.
        images: How many evaluated images are drawn at each validation.
    """

    def __init__(self, folder: RunFolder, batches: int = 2, images: int = 8) -> None:
        self.folder, self.batches, self.images = folder, batches, images

    @rank_zero_only
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Draw a first batch as the model is given it."""
        if trainer.current_epoch == 0 and batch_idx < self.batches:
            sheet = pl_module.draw_batch(batch[:16])
            save_picture(self.folder.pictures / f"train_batch_{batch_idx}.png", sheet)

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Sequence[Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first evaluated images of this process."""
        if batch_idx > 0 or trainer.sanity_checking:
            return
        sheet = pl_module.draw_predictions(batch[: self.images], outputs)
        name = f"predictions_step_{trainer.global_step:06d}.png"
        save_picture(self.folder.pictures / name, sheet)
