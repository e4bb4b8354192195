"""What a segmentation is told by: its data's classes, its evaluation's tables and pictures."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from densenet_backbones.data.images import read_image
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.mask_statistics import (
    CHECKED_UP_TO,
    PixelCounts,
    count_class_pixels,
)
from densenet_backbones.file_writing import save_bytes
from densenet_backbones.metrics.segmentation import SegmentationEvaluation
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.mask_pictures import draw_masks_side_by_side
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.reporting.plots import plot_confusion
from densenet_backbones.reporting.tables import format_number, make_numbers_table, render
from densenet_backbones.training.segmentation_task import SegmentationTask

PICTURED_IMAGES = 8


def data_table(data: Any) -> Table:
    """Images that have each class, and its share of the labelled pixels, in both parts.

    Of sets with more than `CHECKED_UP_TO` images only the number is said: counting takes minutes.
    """
    train, val = data.train_set, data.val_set
    title = f"train: {train.name}, {len(train)} images   evaluated: {val.name}, {len(val)} images"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("class")
    columns: list[list[str]] = []
    for part, found in (("train", train), ("val", val)):
        if len(found) <= CHECKED_UP_TO:
            table.add_column(f"{part} images", justify="right")
            table.add_column(f"{part} pixels", justify="right")
            columns += _columns(count_class_pixels(found))
    for row, name in enumerate(train.classes.names):
        table.add_row(name, *(column[row] for column in columns))
    return table


def _columns(counts: PixelCounts) -> list[list[str]]:
    total = max(1, sum(counts.pixels))
    shares = [f"{pixels / total:.2%}" for pixels in counts.pixels]
    return [[str(images) for images in counts.images], shares]


def write_evaluation(task: SegmentationTask, part: SegmentationSet, folder: Path) -> None:
    """Print and write what a finished evaluation found.

    Args:
        task: After a validation.
        part: The images that were evaluated.
        folder: Gets ``table.txt``, ``metrics.json``, ``iou.csv``, ``confusion_matrix.csv`` (pixels;
            rows the true class), the matrix as a picture, and predictions beside the annotations.
    """
    evaluation: SegmentationEvaluation = task.metric.evaluation
    assert evaluation is not None
    folder.mkdir(parents=True, exist_ok=True)
    text = format_segmentation_table(evaluation)
    say(text)
    (folder / "table.txt").write_text(text)
    (folder / "metrics.json").write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n")
    rows = [list(vars(evaluation.classes[0]))]
    rows += [list(vars(score).values()) for score in evaluation.classes]
    _write_csv(folder / "iou.csv", rows)
    names = part.classes.names
    _write_csv(folder / "confusion_matrix.csv", confusion_rows(evaluation))
    if evaluation.task != "multilabel":
        plot_confusion(evaluation.matrix, names, folder / "confusion_matrix.png", background=None)
    save_picture(folder / "predictions.png", pictured(task, part))


def format_segmentation_table(evaluation: SegmentationEvaluation, width: int = 100) -> str:
    """The numbers, and one row a class, as text; "-" stands for what is not defined."""
    summary = make_numbers_table(f"Segmentation, {evaluation.images} images", evaluation.numbers)
    by_class = Table("class", box=box.SIMPLE_HEAD)
    for name in ("pixels", "IoU", "accuracy", "precision", "boundary F"):
        by_class.add_column(name, justify="right", no_wrap=True)
    for c in evaluation.classes:
        values = map(format_number, (c.iou, c.accuracy, c.precision, c.boundary_f))
        by_class.add_row(c.name, str(c.pixels), *values)
    return render([summary, by_class], width)


def confusion_rows(evaluation: SegmentationEvaluation) -> list[list[Any]]:
    """The confusion matrix with names: a row a true class, or a label's four counts a row."""
    names = [score.name for score in evaluation.classes]
    if evaluation.task == "multilabel":
        head = ["label", "true_negative", "false_positive", "false_negative", "true_positive"]
        counts = evaluation.matrix.reshape(len(names), 4).tolist()
    else:
        head, counts = ["true \\ predicted", *names], evaluation.matrix.tolist()
    return [head, *([name, *row] for name, row in zip(names, counts, strict=True))]


def pictured(task: SegmentationTask, part: SegmentationSet) -> np.ndarray:
    """Image, annotation and prediction of images spread over a set."""
    step = max(1, len(part) // PICTURED_IMAGES)
    records = part.records[::step][:PICTURED_IMAGES]
    images = [read_image(record.path) for record in records]
    device = next(task.model.parameters()).device
    task.model.eval()
    found = []
    for image in images:
        chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        found.append(task.labels(chw.to(device)).cpu().numpy())
    truth = [record.read_mask() for record in records]
    return draw_masks_side_by_side(images, truth, found, part.classes.colors)


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    save_bytes(path, text.getvalue().encode())
