"""Images a step where `data.batch_size` is "auto", and the end of a run whose memory runs out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from densenet_backbones.data.loading import AnyData
from densenet_backbones.messages import pluralize, quote_word
from densenet_backbones.training.memory_choice import fits_memory
from densenet_backbones.training.optimization import count_images_per_step
from densenet_backbones.training.precision import name_precision
from densenet_backbones.training.tasks.task import AnyTask

MOST_ON_CPU = 8
"""More images a step take as long each there, and leave an epoch of few photos few steps."""
USUAL = 16
"""Images a step where the learning rate was chosen for no number."""
LEAST_STEPS = 4
"""Steps that an epoch should have."""


def settle_batch(
    task: AnyTask, data: AnyData, trainer: pl.Trainer, resumed: Mapping[str, Any] | None
) -> None:
    """Give the data the number of images a step, if that is to be chosen.

    It is what the learning rate was chosen for, as far as memory and data allow; on a processor at
    most `MOST_ON_CPU`. A run that goes on keeps its own.

    Args:
        task: The training.
        data: Its data.
        trainer: Its trainer.
        resumed: The checkpoint that it goes on from.
    """
    if data.batch_size != "auto":
        return
    if resumed is not None:
        data.batch = resumed[type(data).__qualname__]["batch_size"]
        return
    processes = trainer.world_size * trainer.accumulate_grad_batches
    batch = -(-(task.optimizer_options.base_batch or USUAL) // processes)
    if trainer.strategy.root_device.type == "cpu":
        batch = min(batch, MOST_ON_CPU)
    data.batch = max(2, min(batch, len(data.train_set) // (LEAST_STEPS * trainer.world_size)))
    while data.batch > 2 and not fits_memory(task, data, trainer):
        data.batch = max(2, data.batch // 2)


def describe_choices(task: AnyTask, data: AnyData, trainer: pl.Trainer) -> list[str]:
    """Return a line about what was chosen for this machine, if the images a step were."""
    if data.batch_size != "auto":
        return []
    mode = task.chosen or task.memory
    memory = f"memory mode {mode}, " if mode else ""
    workers = pluralize(data.workers, "loader process")
    return [
        f"Chosen for this machine: {pluralize(count_images_per_step(data, trainer), 'image')} a "
        f"step, {memory}precision {name_precision(trainer)}, {workers}."
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that a GPU, or the system, has no memory left."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "not enough memory" in text)
    )


def explain_out_of_memory(data: AnyData, trainer: pl.Trainer, run_dir: Path) -> str:
    """Return the sentence that ends a run without memory."""
    kept = f"; what was written stays in {quote_word(run_dir)}" if run_dir.exists() else ""
    return (
        f"out of memory at step {trainer.global_step} with {pluralize(data.batch, 'image')} a "
        f"step and process: start anew with --batch-size {max(1, data.batch // 2)}, with --memory "
        f"block, or with smaller images{kept}"
    )
