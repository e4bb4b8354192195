"""What a person should know before a long training: the data, the model, the plan."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.data.readers.detection_sources import count_classes
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.training.kind import Kind
from densenet_backbones.training.optimization import images_per_step
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.task import Task

CLASSES_SHOWN = 20
IMAGES_LOOKED_AT = 2000
"""Matching takes a millisecond an image: all of COCO's would be two minutes of waiting."""


def before_training(
    kind: Kind,
    task: Task,
    data: Any,
    trainer: pl.Trainer,
    folder: RunFolder,
    resumed: dict[str, Any] | None,
    memory: Sequence[str] = (),
) -> None:
    """Print the summary; see `lines_of_plan` for what it says of the schedule.

    Args:
        kind: What is trained.
        task: The training.
        data: Its data.
        trainer: Its trainer.
        folder: Where output goes.
        resumed: The checkpoint that it goes on from.
        memory: Lines about the memory mode.
    """
    if not is_first_process():
        return
    say(kind.data_table(data))
    problems = [*data.train_set.problems, *data.val_set.problems]
    if problems:
        say(f"{len(problems)} faults in the data, left out of training (data.strict refuses them):")
        for problem in problems[:5]:
            say(f"  {problem}")
    for line in (*kind.remarks(task, data), *lines_of_plan(task, data, trainer), *memory):
        say(line)
    say(f"Output goes to {folder.path}/")
    if resumed is not None:
        done = resumed["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        say(
            f"Going on from {folder.resume_from}: {done} epochs done, "
            f"step {resumed['global_step']}."
        )
        if done >= (trainer.max_epochs or 0) > 0:
            say("The run has all its epochs already; --epochs N with a larger N goes on.")


def lines_of_plan(task: Task, data: Any, trainer: pl.Trainer) -> Iterator[str]:
    """Sentences about the model's size, the steps and the learning rate."""
    model = task.model
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f" ({trained:,} trained)" if trained < parameters else ""
    images, (height, width) = task.example(data)
    macs = f"{plan_inputs(model, images).macs / 1e9:.2f} GMAC at {width}x{height}"
    yield f"{task.spec.name}: {parameters:,} parameters{frozen}, {macs}."
    options = task.optimizer_options
    batch = images_per_step(data, trainer)
    epochs = (
        f", {trainer.max_epochs} epochs" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    )
    yield f"{options.name}, {batch} images a step{epochs}, precision {trainer.precision}."
    if options.base_batch:
        yield (
            f"Learning rate {options.scaled_lr(batch):.3g} = {options.lr:.3g} x {batch}/"
            f"{options.base_batch} images."
        )
    else:
        yield f"Learning rate {options.lr:.3g}, not scaled to the batch."


# -- detection ------------------------------------------------------------------------------------


def data_table(train: DetectionSet, val: DetectionSet) -> Table:
    """Images and objects of each class in both parts; a column that is all zero is left out."""
    table = Table(title=f"train: {train.name}   evaluated: {val.name}", box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    counts = [count_classes(train), count_classes(val)]
    columns = [
        (f"{part} {what}", count, what)
        for part, count in zip(("train", "val"), counts, strict=True)
        for what in ("objects", "images", "difficult", "crowd")
        if what in ("objects", "images") or any(getattr(c, what) for c in count)
    ]
    table.add_column("class")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    names = train.categories.names
    shown = len(names) if len(names) <= CLASSES_SHOWN else CLASSES_SHOWN - 1
    for row, name in enumerate(names[:shown]):
        table.add_row(name, *(str(getattr(count[row], what)) for _, count, what in columns))
    sizes = {"train images": len(train), "val images": len(val)}
    for name, first in ((f"{len(names) - shown} more", shown), ("all", 0)):
        cells = [
            str(sizes[title] if title in sizes and first == 0 else "")
            if what == "images"
            else str(sum(getattr(c, what) for c in count[first:]))
            for title, count, what in columns
        ]
        if first == 0 or shown < len(names):
            table.add_row(name, *cells, end_section=first > 0)
    return table


def unmatched_objects(model: nn.Module, train: DetectionSet) -> Iterator[str]:
    """A line about the training objects that no prior matches, where the detector can say."""
    if not hasattr(model, "unmatchable"):
        return
    every = math.ceil(len(train) / IMAGES_LOOKED_AT)
    records = train.records[::every]
    missed = sum(int(out.sum()) for out in unmatchable(model, records))
    total = sum(len(record.boxes) for record in records)
    yield (
        f"{missed} of {total} training objects"
        f"{f' (of every {every}th image)' if every > 1 else ''} are matched by no prior above "
        "the threshold (each still trains its best one)."
    )


def unmatchable(model: nn.Module, records: Sequence[ImageRecord]) -> list[Tensor]:
    """For each image (B,) bool: its objects that no prior matches."""
    boxes = [torch.from_numpy(record.boxes) for record in records]
    found: list[Tensor] = model.unmatchable(boxes, [(r.height, r.width) for r in records])  # type: ignore[operator]
    return found


def all_objects_matched(model: nn.Module) -> Callable[[ImageRecord], bool]:
    """A test of whether a prior matches every object of an image (True for other detectors)."""
    if not hasattr(model, "unmatchable"):
        return lambda record: True
    return lambda record: not unmatchable(model, [record])[0].any()
