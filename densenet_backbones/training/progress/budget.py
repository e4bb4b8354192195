"""Length of a training in steps or minutes: ``--budget 500steps``, ``90min`` or ``2cpumin``."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from densenet_backbones.messages import check_interval, check_whole, pluralize
from densenet_backbones.training.optimization import PLACES
from densenet_backbones.training.progress.clock import RunClock
from densenet_backbones.training.resuming.stopping import has_whole_steps

NEVER = 2**31
"""Batches between two evaluations of a run that asks for them itself."""
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) ?(steps?|cpumin|min|h)")
_UNITS: dict[str, tuple[Literal["steps", "seconds", "cpu seconds"], float]] = {
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
    "cpumin": ("cpu seconds", 60),
}


@dataclass(frozen=True)
class Budget:
    """Length of a training.

    Attributes:
        amount: Above 0, in the unit.
        unit: "steps" of the optimizer; "seconds" of wall time, or "cpu seconds" of this process's
            processor time, both of the steps alone, with waiting for their images and without
            evaluations.
    """

    amount: float
    unit: Literal["steps", "seconds", "cpu seconds"]

    def __str__(self) -> str:
        """Return it in words."""
        if self.unit == "steps":
            return pluralize(round(self.amount), "step")
        of = "processor time" if self.unit == "cpu seconds" else "time"
        return f"{self.amount / 60:g} minutes of {of}"


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: A number and its unit: ``500steps``, ``90min``, ``1.5h`` or ``2cpumin``.

    Raises:
        ValueError: It is none, or not above 0.
    """
    written = _WRITTEN.fullmatch(text.strip())
    if not written:
        raise ValueError(
            "--budget must be a number and its unit, such as 500steps, 90min, 8h or 2cpumin "
            f"(minutes of processor time), got {text!r}"
        )
    unit, size = _UNITS[written[2]]
    amount = float(written[1])
    check_interval("--budget", amount, "(0, inf)")
    if unit == "steps" and not amount.is_integer():
        raise ValueError(f"--budget must be a whole number of steps, got {text}")
    return Budget(amount * size, unit)


class BudgetEnd(Callback):
    """Ends a run with its budget, and evaluates it at equal parts of that.

    What is used up is in every checkpoint: a resumed run has the rest.

    Args:
        budget: Length of the run.
        clock: Times of this start, which another callback sets forward before this one.
        evaluations: Evaluations within the budget, the last at its end.

    Raises:
        ValueError: `evaluations` is out of range.
    """

    def __init__(self, budget: Budget, clock: RunClock, evaluations: int) -> None:
        check_whole("evaluations", evaluations)
        self.budget, self.clock, self.evaluations = budget, clock, evaluations
        self._used_before, self._evaluated = 0.0, 0

    @property
    def used(self) -> float:
        """Seconds of the budget's kind until now; 0 of a budget in steps."""
        if self.budget.unit == "steps":
            return 0.0
        is_cpu = self.budget.unit == "cpu seconds"
        return self._used_before + (self.clock.trained_cpu if is_cpu else self.clock.trained)

    def place(self, step: int) -> int:
        """Return how far the run is after a number of steps: 0 to `PLACES`."""
        done = step if self.budget.unit == "steps" else self.used
        return min(int(PLACES * done / self.budget.amount), PLACES)

    def estimate(self, step: int, evaluated_images: int) -> float:
        """Estimate the seconds of what is left after a number of steps.

        Args:
            step: Optimizer steps done.
            evaluated_images: Images of an evaluation.
        """
        share = self.place(step) / PLACES
        if not 0 < share < 1:
            return 0.0
        left = self.clock.estimate(0, self.evaluations - self._evaluated + 1, evaluated_images)
        return left + self.clock.trained * (1 - share) / share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the evaluation that a stop broke off, or end a run that is at its end."""
        trainer.should_stop = self._evaluated >= self.evaluations
        self._ask_for_evaluation(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Ask for an evaluation where a part of the budget is used up."""
        if has_whole_steps(trainer):
            self._ask_for_evaluation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the evaluation; end the run with the last one."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        place = self.place(trainer.global_step)
        # A single step may use up several parts: it has one evaluation.
        self._evaluated = max(self._evaluated + 1, place * self.evaluations // PLACES)
        trainer.val_check_batch = NEVER
        trainer.should_stop = trainer.should_stop or place >= PLACES

    def _ask_for_evaluation(self, trainer: pl.Trainer) -> None:
        place = trainer.strategy.broadcast(self.place(trainer.global_step))
        is_due = place >= math.ceil(PLACES * (self._evaluated + 1) / self.evaluations)
        # Lightning evaluates after each batch whose number this divides.
        here = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        trainer.val_check_batch = here if is_due and here else NEVER

    def state_dict(self) -> dict[str, Any]:
        """Return what is used up."""
        return {"used": self.used, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what is left."""
        self._used_before = float(state_dict["used"])
        self._evaluated = int(state_dict["evaluated"])


def get_budget(trainer: pl.Trainer) -> BudgetEnd | None:
    """Return what ends a run by its budget; None for one of epochs or steps of the engine."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, BudgetEnd)), None)
