"""What a person should know before a long training: the data, the model, the plan."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table
from torch import Tensor, nn

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.training.console import say
from densenet_backbones.training.detection_task import DetectionTask, images_per_step
from densenet_backbones.training.run_folder import RunFolder

CLASSES_SHOWN = 20


def before_training(
    task: DetectionTask,
    data: DetectionData,
    trainer: pl.Trainer,
    folder: RunFolder,
    resumed: dict[str, Any] | None,
) -> None:
    """Print the summary; see `lines_of_plan` for what it says of the schedule."""
    say(data_table(data.train_set, data.val_set))
    problems = [*data.train_set.problems, *data.val_set.problems]
    if problems:
        say(f"{len(problems)} faults in the data, left out of training (data.strict refuses them):")
        for problem in problems[:5]:
            say(f"  {problem}")
    if hasattr(task.model, "unmatchable"):
        missed = sum(int(out.sum()) for out in unmatchable(task.model, data.train_set.records))
        total = sum(len(record.boxes) for record in data.train_set.records)
        say(
            f"{missed} of {total} training objects are matched by no prior above the threshold"
            " (each still trains its best one)."
        )
    for line in lines_of_plan(task, data, trainer):
        say(line)
    say(f"Output goes to {folder.path}/")
    if resumed is not None:
        say(
            f"Going on from {folder.resume_from}: epoch {resumed['epoch']}, "
            f"step {resumed['global_step']}."
        )


def data_table(train: DetectionSet, val: DetectionSet) -> Table:
    """Images and objects a class of both parts; crowds and difficult objects apart."""
    table = Table(title=f"{train.name}", title_justify="left", title_style="")
    table.add_column("class")
    for part in ("train", "val"):
        table.add_column(f"{part} objects", justify="right")
        table.add_column("images", justify="right")
    counts = [_count(part) for part in (train, val)]
    names = train.categories.names
    shown = names if len(names) <= CLASSES_SHOWN else names[: CLASSES_SHOWN - 1]
    for label, name in enumerate(shown, 1):
        table.add_row(name, *(str(n) for c in counts for n in (c[0][label], c[1][label])))
    if len(shown) < len(names):
        rest = range(len(shown) + 1, len(names) + 1)
        sums = [str(sum(c[0][label] for label in rest)) for c in counts]
        table.add_row(f"{len(rest)} more", sums[0], "", sums[1], "")
    table.add_section()
    for title, of in (("all", None), ("crowd", "iscrowd"), ("difficult", "difficult")):
        cells = []
        for part, (objects, _) in zip((train, val), counts, strict=True):
            if of is None:
                cells += [str(objects.total()), str(len(part))]
            else:
                flags = (a.get(of, 0) for r in part.records for a in r.annotations)
                cells += [str(sum(1 for flag in flags if flag)), ""]
        table.add_row(title, *cells)
    return table


def _count(part: DetectionSet) -> tuple[Counter[int], Counter[int]]:
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in part.records:
        objects.update(record.labels.tolist())
        images.update(set(record.labels.tolist()))
    return objects, images


def lines_of_plan(task: DetectionTask, data: DetectionData, trainer: pl.Trainer) -> Iterator[str]:
    """Sentences about the model's size, the steps and the learning rate."""
    model = task.model
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f" ({trained:,} trained)" if trained < parameters else ""
    size = getattr(model, "image_size", None)
    macs = ""
    if size is not None:
        macs = f", {_macs(model, size) / 1e9:.2f} GMAC at {size[1]}x{size[0]}"
    yield f"{task.spec.name}: {parameters:,} parameters{frozen}{macs}."
    options = task.optimizer_options
    batch = images_per_step(data, trainer)
    epochs = f", {trainer.max_epochs} epochs" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    yield f"{options.name}, {batch} images a step{epochs}, precision {trainer.precision}."
    if options.base_batch:
        yield (
            f"Learning rate {options.scaled_lr(batch):.3g} = {options.lr:.3g} x {batch}/"
            f"{options.base_batch} images."
        )
    else:
        yield f"Learning rate {options.lr:.3g}, not scaled to the batch."


def _macs(model: nn.Module, size: tuple[int, int]) -> int:
    device = next(model.parameters()).device
    return plan_inputs(model, [torch.rand(3, *size, device=device)]).macs


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
