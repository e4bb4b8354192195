"""Estimate of a run's end, from the steps and evaluations that were timed so far."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

_SLOW_STEPS = 3
"""First steps, whose workers start and whose kernels are chosen: they tell little of the rest."""
_EVALUATED = 1 / 3
"""Time of an evaluated image as a share of a trained one's, until an evaluation was timed: of a
step's forward pass and its backward pass, which takes twice as long, the former remains."""


@dataclass
class RunClock:
    """Times of a run's steps and evaluations, in seconds.

    Attributes:
        now: Clock that runs on evenly.
        cpu_now: Clock of the processor time of this process, all its threads together.
        steps: Batches that were timed.
        trained: Seconds of all of them, with waiting for their images.
        trained_cpu: Seconds of this process's processor time of all of them.
        evaluations: Evaluations that were timed.
        evaluated: Seconds of the last one.
        images: Images of the timed batches.
    """

    now: Callable[[], float] = time.monotonic
    cpu_now: Callable[[], float] = time.process_time
    steps: int = 0
    trained: float = 0.0
    trained_cpu: float = 0.0
    evaluations: int = 0
    evaluated: float = 0.0
    images: int = 0
    _mark: float | None = None
    _cpu_mark: float = 0.0
    # Steps, seconds, seconds of processor time and images of the first ones.
    _slow: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)

    def __post_init__(self) -> None:
        self._begun = self.now()
        self._cpu_mark = self.cpu_now()

    @property
    def passed(self) -> float:
        """Seconds since the clock was made."""
        return self.now() - self._begun

    def mark(self) -> None:
        """Begin to time a step or an evaluation."""
        self._mark, self._cpu_mark = self.now(), self.cpu_now()

    def add_step(self, images: int) -> None:
        """Add the batch that ends now, and begin to time the next one."""
        now, cpu = self.now(), self.cpu_now()
        if self._mark is not None:
            self.trained += now - self._mark
            self.trained_cpu += cpu - self._cpu_mark
        self.steps, self.images = self.steps + 1, self.images + images
        self._mark, self._cpu_mark = now, cpu
        if self.steps == _SLOW_STEPS:
            self._slow = self.steps, self.trained, self.trained_cpu, self.images

    def add_evaluation(self) -> None:
        """Add the evaluation that ends now."""
        now = self.now()
        self.evaluated = now - (now if self._mark is None else self._mark)
        self.evaluations, self._mark = self.evaluations + 1, now
        self._cpu_mark = self.cpu_now()

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a batch, without the first ones."""
        steps, seconds, _, _ = self._count_settled()
        return seconds / max(steps, 1)

    @property
    def step_cpu_seconds(self) -> float:
        """Mean seconds of processor time of a batch, without the first ones."""
        steps, _, seconds, _ = self._count_settled()
        return seconds / max(steps, 1)

    @property
    def images_per_second(self) -> float:
        """Trained images of this process a second, without the first batches."""
        _, seconds, _, images = self._count_settled()
        return images / max(seconds, 1e-9)

    def _count_settled(self) -> tuple[int, float, float, int]:
        """Return number, both seconds and images of the batches after the slow ones, if any."""
        slow = self._slow if self.steps > self._slow[0] else (0, 0.0, 0.0, 0)
        steps, seconds, cpu, images = slow
        return (
            self.steps - steps,
            self.trained - seconds,
            self.trained_cpu - cpu,
            self.images - images,
        )

    def estimate(self, steps: float, evaluations: float, evaluated_images: int) -> float:
        """Estimate the seconds of what is still to do.

        Args:
            steps: Batches to train on.
            evaluations: Evaluations to make.
            evaluated_images: Images of one.
        """
        one = self.evaluated
        if not self.evaluations and self.images:
            one = _EVALUATED * evaluated_images * self.trained / self.images
        return steps * self.step_seconds + evaluations * one


def format_duration(seconds: float) -> str:
    """Write a duration as people say it: 45 s, 12 min, 2 h 10 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def format_end(seconds: float, now: datetime | None = None) -> str:
    """Write the time of day that is so far away; with its date if that is not today."""
    now = now or datetime.now()
    end = now + timedelta(seconds=seconds)
    return f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %d %b %H:%M}"
