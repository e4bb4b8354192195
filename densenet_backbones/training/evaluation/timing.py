"""Time that a model takes for an image in an evaluation, before, inside and after the network."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from densenet_backbones.messages import pluralize
from densenet_backbones.training.profiling import (
    METRICS,
    PLACES,
    REST,
    SELECTION,
    TO_MODEL,
    PartsProfiler,
    time_method,
)
from densenet_backbones.training.tasks.task import AnyTask

STEPS = ("pre-processing", "model", "post-processing")
"""Normalization and resizing; the network; selection of boxes, NMS, masks at the image's size."""

_PERCENTILES = (50, 10, 90)


class ModelTimes(pl.Callback):
    """Seconds an image of each batch, of the three steps of a model.

    The first batch, in which memory is made ready, does not count where there are others. On a GPU
    each step waits for the device, so that its time is that of its kernels.

    Attributes:
        batches: Images of each batch, and seconds of each step.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, dict[str, float]]] = []
        self._profiler = PartsProfiler()
        self._before: dict[str, float] = {}
        self._device = torch.device("cpu")

    @contextmanager
    def running(self, trainer: pl.Trainer, task: AnyTask) -> Iterator[None]:
        """Measure what the model does inside of this context."""
        self._device = trainer.strategy.root_device
        with self._profiler.running(self._device), ExitStack() as until_the_end:
            for place, part in PLACES:
                time_method(task, place, part, self._profiler, until_the_end)
            yield

    def on_validation_batch_start(self, *of_the_batch: object) -> None:
        """Remember the times before a batch."""
        self._before = self._sum_steps()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, *more: object
    ) -> None:
        """Add the times of a batch."""
        after = self._sum_steps()
        if len(batch):
            seconds = {step: after[step] - self._before[step] for step in STEPS}
            self.batches.append((len(batch), seconds))

    def summarize(self) -> dict[str, Any]:
        """Return milliseconds an image (median, 10th and 90th percentile) and what they hold for.

        Empty if there was no batch.
        """
        if not self.batches:
            return {}
        counted = self.batches[1:] or self.batches
        rows: dict[str, Any] = {}
        for step in (*STEPS, "together"):
            names = STEPS if step == "together" else (step,)
            each = [1000 * sum(times[n] for n in names) / images for images, times in counted]
            median, low, high = np.percentile(each, _PERCENTILES).tolist()
            rows[step] = {"median_ms": median, "p10_ms": low, "p90_ms": high}
        on_gpu = self._device.type == "cuda"
        name = torch.cuda.get_device_name(self._device) if on_gpu else str(self._device)
        return {
            "steps": rows,
            "batches": len(counted),
            "batch_size": max(images for images, _ in counted),
            "device": name,
            "threads": torch.get_num_threads(),
        }

    def _sum_steps(self) -> dict[str, float]:
        sums = dict.fromkeys(STEPS, 0.0)
        for (part, _), seconds in self._profiler.seconds.items():
            if part not in (REST, METRICS):
                step = {TO_MODEL: STEPS[0], SELECTION: STEPS[2]}.get(part, STEPS[1])
                sums[step] += seconds
        return sums


def describe_times(times: dict[str, Any], one_by_one: bool) -> Sequence[str]:
    """Return lines that say how long the model took, and that they hold for this run alone.

    Args:
        times: Result of `ModelTimes.summarize`.
        one_by_one: The model is given the images of a batch one by one.
    """
    if not times:
        return ()
    rows = [
        f"  {step + ':':17}{row['median_ms']:9.2f} ms   "
        f"({row['p10_ms']:.2f} to {row['p90_ms']:.2f})"
        for step, row in times["steps"].items()
    ]
    each = ", one by one" if one_by_one else ""
    return (
        "Time an image in this run: median (10 to 90 % of the batches)",
        *rows,
        f"  {pluralize(times['batches'], 'batch')} of "
        f"{pluralize(times['batch_size'], 'image')}{each}; {times['device']}, "
        f"{pluralize(times['threads'], 'thread')}; reading of files is not in it",
    )
