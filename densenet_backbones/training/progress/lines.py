"""Lines and progress bar of a training: one an evaluation, one a minute, and when it will end."""

from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.progress import ProgressColumn

from densenet_backbones.reporting.console import log, say
from densenet_backbones.training.progress.budget import get_budget
from densenet_backbones.training.progress.clock import RunClock, format_duration, format_end
from densenet_backbones.training.tasks.task import AnyTask

LINE_EVERY = 60.0
"""Seconds after which a run that is watched by nobody but its log says where it is."""
STEPS_KNOWN = 20
"""Steps after which the whole run is estimated, or `LINE_EVERY` if that is sooner."""


class EpochLines(Callback):
    """Prints a line at each evaluation, one a minute, and once what the whole run will take.

    A terminal with a progress bar shows the minutes' lines by the bar; its log has them, too.

    Args:
        clock: Times of this start of the run; it is set forward here.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self._said = self.clock.now()
        self._is_estimated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to time the first step."""
        self.clock.mark()
        self._said = self.clock.now()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Time the step; print a line if a minute has passed since the last one."""
        self.clock.add_step(len(batch))
        is_due = self.clock.now() - self._said >= LINE_EVERY
        if not self._is_estimated and (self.clock.steps >= STEPS_KNOWN or is_due):
            self._is_estimated = True
            self._say_estimate(trainer)
        if is_due:
            self._said = self.clock.now()
            line = self._describe(trainer, self._name_rate(trainer))
            log(line) if trainer.progress_bar_callback else say(line)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to time an evaluation."""
        self.clock.mark()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the numbers of an evaluation during the training."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            self.clock.mark()
            return
        self.clock.add_evaluation()
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [n for n in cast(AnyTask, pl_module).headline if f"val/{n}" in numbers]
        if shown and "train/loss" in numbers:
            self._said = self.clock.now()
            say(self._describe(trainer, *(f"{n} {numbers[f'val/{n}']:.3f}" for n in shown)))

    def _describe(self, trainer: pl.Trainer, *parts: str) -> str:
        numbers = trainer.callback_metrics
        last = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else "?"
        epoch = f"epoch {trainer.current_epoch + 1:>{len(str(last))}}/{last}"
        loss = float(numbers.get("train/loss", float("nan")))
        rate = float(numbers.get("lr", float("nan")))
        step = f"step {trainer.global_step:>4}"
        left = self._estimate(trainer)
        end = f"ends {format_end(left)}" if left else f"after {format_duration(self.clock.passed)}"
        return "  ".join((epoch, step, f"loss {loss:.3f}", f"lr {rate:.1e}", *parts, end))

    def _name_rate(self, trainer: pl.Trainer) -> str:
        return f"{self.clock.images_per_second * trainer.world_size:.3g} images/s"

    def _say_estimate(self, trainer: pl.Trainer) -> None:
        left = self._estimate(trainer)
        if left:
            say(
                f"About {format_duration(self.clock.passed + left)} for the whole run at "
                f"{self._name_rate(trainer)}; ends about {format_end(left)}."
            )

    def _estimate(self, trainer: pl.Trainer) -> float:
        """Return the seconds that are left, with the evaluation at the end; 0 after the last step.

        A run that ends by a time, or by nothing, has no estimate either.
        """
        if budget := get_budget(trainer):
            return budget.estimate(trainer.global_step, len(trainer.datamodule.val_set))  # type: ignore[attr-defined]
        loop, images = trainer.fit_loop.epoch_loop, len(trainer.datamodule.val_set)  # type: ignore[attr-defined]
        an_epoch = float(trainer.num_training_batches)
        done: float = loop.batch_progress.current.ready
        if loop.batch_progress.is_last_batch:
            done = an_epoch
        steps = ((trainer.max_epochs or 0) - trainer.current_epoch) * an_epoch - done
        if trainer.max_steps > 0:
            by_steps = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            steps = min(steps, by_steps) if (trainer.max_epochs or 0) > 0 else by_steps
        if steps <= 0:
            return 0.0
        between = float(trainer.val_check_batch or an_epoch) * (
            trainer.check_val_every_n_epoch or 1
        )
        return self.clock.estimate(steps, steps / max(between, 1) + 1, images)


class RunProgressBar(RichProgressBar):
    """Lightning's progress bar within 80 columns: epochs count from 1, and fewer numbers."""

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Return description, a short bar, batches and times; without the speed."""
        columns: list[Any] = super().configure_columns(trainer)
        for column in columns:
            if hasattr(column, "bar_width"):
                column.bar_width = 16
        return [column for column in columns if "Speed" not in type(column).__name__]

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs or 0
        return f"Epoch {current_epoch + 1}" + (f"/{last}" if last > 0 else "")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the loss and the first number of the evaluation, by short names."""
        numbers = super().get_metrics(trainer, pl_module)
        monitor = cast(AnyTask, pl_module).monitor
        wanted = {"train/loss": "loss", monitor: monitor.partition("/")[2]}
        return {wanted[name]: numbers[name] for name in wanted if name in numbers}
