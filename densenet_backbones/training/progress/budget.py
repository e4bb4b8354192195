"""Length of a training in steps or minutes: ``--budget 500steps``, ``90min`` or ``2cpumin``."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from densenet_backbones.messages import check_interval, check_whole, pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.training.optimization import PLACES
from densenet_backbones.training.progress.clock import RunClock
from densenet_backbones.training.resuming.stopping import has_whole_steps

NEVER = 2**31
"""Batches between two evaluations of a run that asks for them itself."""
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) ?(steps?|cpumin|min|h)")
Unit = Literal["steps", "seconds", "cpu seconds"]
_UNITS: dict[str, tuple[Unit, float]] = {
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
    unit: Unit

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

    What is used up is in every checkpoint, in every unit: a resumed run has the rest, of another
    budget as well.

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
        self._evaluated = 0
        self._before: dict[Unit, float] = {"seconds": 0.0, "cpu seconds": 0.0}
        self._evaluated_at: dict[Unit, float] = {}

    def _measure(self, step: int) -> dict[Unit, float]:
        """Return what the run has used up after a number of steps, by unit."""
        return {
            "steps": step,
            "seconds": self._before["seconds"] + self.clock.trained,
            "cpu seconds": self._before["cpu seconds"] + self.clock.trained_cpu,
        }

    @property
    def used(self) -> float:
        """Seconds of the budget's kind until now; 0 of a budget in steps."""
        return self._measure(0)[self.budget.unit]

    def place(self, step: int) -> int:
        """Return how far the run is after a number of steps: 0 to `PLACES`."""
        return self._find_place(self._measure(step))

    def _find_place(self, used: Mapping[Unit, float]) -> int:
        return min(int(PLACES * used[self.budget.unit] / self.budget.amount), PLACES)

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
        return left + self._measure(step)["seconds"] * (1 - share) / share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the evaluation that a stop broke off, or end a run that is at its end."""
        trainer.should_stop = self._evaluated >= self.evaluations
        if trainer.should_stop:
            say("The run has used up all its budget already; a larger --budget goes on.")
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
        self._evaluated_at = self._measure(trainer.global_step)
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
        return {
            "used": self._measure(0),
            "evaluated": self._evaluated,
            "evaluated_at": self._evaluated_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what is left of this start's budget."""
        self._evaluated, used = state_dict["evaluated"], state_dict["used"]
        if not isinstance(used, Mapping):  # of a checkpoint from before, whose budget must be ours
            self._before[self.budget.unit] = used
            return
        self._before, self._evaluated_at = dict(used), dict(state_dict["evaluated_at"])
        if self._evaluated_at:
            self._evaluated = self._find_place(self._evaluated_at) * self.evaluations // PLACES


def get_budget(trainer: pl.Trainer) -> BudgetEnd | None:
    """Return what ends a run by its budget; None for one of epochs or steps of the engine."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, BudgetEnd)), None)
