"""`summary.json` of a run: what it is, what it has reached, and what it has cost."""

import math
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.loading import AnyData
from densenet_backbones.file_writing import save_json
from densenet_backbones.messages import describe_error
from densenet_backbones.reporting.console import is_first_process
from densenet_backbones.training.optimization import count_images_per_step
from densenet_backbones.training.progress.clock import RunClock
from densenet_backbones.training.run_folder import RunFolder, describe_machine
from densenet_backbones.training.tasks.task import AnyTask
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

FORMAT = 1
"""Number of the form of the file; a later form that means something else has another."""
NAME = "summary.json"


class RunSummary(Callback):
    """Writes `summary.json` at the start, after each evaluation and at the end of a run.

    Numbers count from the run's first start: a start that goes on reads what was written before.

    Args:
        folder: The run's folder.
        clock: Times of this start.

    Attributes:
        content: What is written: plain JSON types.
    """

    def __init__(self, folder: RunFolder, clock: RunClock) -> None:
        self.file, self.clock = folder.path / NAME, clock
        self.content: dict[str, Any] = {}
        self._seconds_before = 0.0

    def describe(
        self, task: AnyTask, data: AnyData, trainer: pl.Trainer, experiment: str, steps: int | None
    ) -> None:
        """Take down what is known before the first step, and what an earlier start has written.

        Args:
            task: The training.
            data: Its data.
            trainer: Its trainer.
            experiment: Name of the configuration.
            steps: Steps done before this start; None for a new run.
        """
        before = {} if steps is None else read_summary(self.file.parent)
        cost = task.measure_cost(data)
        done = [e for e in before.get("evaluations", ()) if e["step"] <= (steps or 0)]
        self._seconds_before = before.get("time", {}).get("wall_seconds", 0.0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.content = {
            "format": FORMAT,
            "run": self.file.parent.resolve().name,
            "ended": "running, or killed",
            "experiment": {
                "config": experiment,
                "kind": task.spec.kind,
                "model": task.spec.name,
                "images_per_step": count_images_per_step(data, trainer),
                "image_size": list(cost.size),
                "epochs": trainer.max_epochs,
                "precision": str(trainer.precision),
                "memory": task.chosen or task.memory,
                "memory_kept_bytes": task.kept_bytes,
                "seed": task.seed,
            },
            "data": {
                "train": _count(data.train_set),
                "evaluated": _count(data.val_set),
                "classes": list(data.name_classes(data.train_set)),
            },
            "parameters": cost.parameters,
            "trained_parameters": cost.trained,
            "macs": cost.macs,
            "monitor": task.monitor.partition("/")[2],
            "best": None,
            "evaluations": done,
            "time": {"started": before.get("time", {}).get("started", now)},
            "memory": {},
            "machine": describe_machine(),
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is known before the first step."""
        self._write(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add an evaluation of the training."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.content:
            return
        numbers = {
            name.partition("/")[2]: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        place = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        self.content["evaluations"].append(
            {**place, "numbers": {k: v if math.isfinite(v) else None for k, v in numbers.items()}}
        )
        self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the training itself is done."""
        early = trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0)
        self.content["ended"] = "ended early (patience)" if early else "finished"
        self._write(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say how the training broke off."""
        if isinstance(exception, SIGTERMException):
            ended = f"stopped by {signal.SIGTERM.name}"
        elif isinstance(exception, KeyboardInterrupt):
            ended = "stopped by Ctrl-C"
        elif isinstance(exception, Exception):
            ended = f"failed: {describe_error(exception)}"
        else:
            ended = "stopped"
        if self.content:
            self.content["ended"] = ended
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not is_first_process():
            return
        content, monitor = self.content, self.content["monitor"]
        scored = [e for e in content["evaluations"] if e["numbers"].get(monitor) is not None]
        content["best"] = max(scored, key=lambda e: e["numbers"][monitor], default=None)
        content["epochs_done"] = trainer.current_epoch
        content["steps_done"] = trainer.global_step
        rate = self.clock.images_per_second * trainer.world_size
        if self.clock.steps:
            content["time"]["images_per_second"] = rate
            batches = trainer.accumulate_grad_batches
            content["time"]["step_cpu_seconds"] = self.clock.step_cpu_seconds * batches
        content["time"]["wall_seconds"] = self._seconds_before + self.clock.passed
        content["memory"] = _measure_peaks()
        save_json(self.file, content)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the content of a run's `summary.json`; empty where it is missing or damaged."""
    try:
        content: Any = parse_json(read_text(run_dir / NAME, MAX_YAML_FILE, ValueError))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(content, Mapping) and content.get("format") == FORMAT
    return dict(content) if is_ours else {}


def _count(data_set: AnySet) -> dict[str, Any]:
    return {"name": data_set.name, "images": len(data_set)}


def _measure_peaks() -> dict[str, int]:
    """Return the most bytes that this process had, in RAM and on its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return peaks
