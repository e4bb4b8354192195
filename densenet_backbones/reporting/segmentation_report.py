"""Report on a segmentation data set and on a finished evaluation: tables, matrices, pictures."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.masks.statistics import PixelCounts, count_class_pixels, thin_out
from densenet_backbones.file_writing import save_csv, save_json, save_text
from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.segmentation import SegmentationEvaluation
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.mask_pictures import draw_masks_side_by_side
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.reporting.plots import plot_confusion
from densenet_backbones.reporting.tables import format_number, make_numbers_table, render

PICTURED_IMAGES = 8


def tabulate_data(train: SegmentationSet, val: SegmentationSet) -> Table:
    """Return a table of the images that have each class, and its share of the labeled pixels.

    The last row has the share of the ignored pixels in all. Of large sets a part is counted, whose
    number of images stands in the head: all would take minutes.
    """
    counts = [f"{part.name}, {pluralize(len(part), 'image')}" for part in (train, val)]
    title = f"train: {counts[0]}   evaluated: {counts[1]}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("class")
    columns: list[list[str]] = []
    for name, part in (("train", train), ("val", val)):
        counted = thin_out(part)
        of = "" if counted is part else f" of {len(counted)}"
        table.add_column(f"{name} images{of}", justify="right")
        table.add_column(f"{name} pixels", justify="right")
        columns += _format_counts(count_class_pixels(counted, skip=True))
    last = train.classes.num_classes - 1
    for row, name in enumerate((*train.classes.names, "ignored")):
        table.add_row(name, *(column[row] for column in columns), end_section=row == last)
    return table


def _format_counts(counts: PixelCounts) -> list[list[str]]:
    """Return two columns: images with each class, and its share; the ignored share at the end."""
    total = max(1, sum(counts.pixels))
    shares = [f"{pixels / total:.2%}" for pixels in counts.pixels]
    images = [str(number) for number in counts.images]
    return [[*images, ""], [*shares, f"{counts.ignored_share:.2%}"]]


def write_evaluation(
    evaluation: SegmentationEvaluation,
    part: SegmentationSet,
    folder: Path,
    predict: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Print a finished evaluation and write it to a folder.

    Args:
        evaluation: What the metric computed.
        part: The images that were evaluated.
        folder: Gets ``table.txt``, ``metrics.json``, ``iou.csv``, ``confusion_matrix.csv`` (pixels;
            rows the true class), the matrix as a picture, predictions beside the annotations, and
            where the scores of single images are known, ``images.csv`` and ``worst_images.png``.
        predict: Maps an image (H, W, 3) uint8 RGB to its labels, uint8 (H, W), or (K, H, W) if
            they are multilabel; called for the few images that are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = format_segmentation_table(evaluation)
    say(*text.splitlines())
    save_text(folder / "table.txt", text)
    save_json(folder / "metrics.json", evaluation.to_dict(), indent=2)
    rows: list[list[object]] = [list(vars(evaluation.classes[0]))]
    rows += [list(vars(score).values()) for score in evaluation.classes]
    save_csv(folder / "iou.csv", rows)
    save_csv(folder / "confusion_matrix.csv", tabulate_confusion(evaluation))
    # Pictures last: the numbers are safe if drawing fails.
    if evaluation.task != "multilabel":
        file = folder / "confusion_matrix.png"
        plot_confusion(evaluation.matrix, part.classes.names, file, background=None)
    save_picture(folder / "predictions.png", draw_examples(part, predict))
    if len(evaluation.image_scores):
        write_images(evaluation.image_scores, part, folder, predict)


def write_images(
    scores: np.ndarray,
    part: SegmentationSet,
    folder: Path,
    predict: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Write the mean IoU of each image, and draw those where it is lowest, with wrong pixels.

    Args:
        scores: (I,) of the images of the set, NaN for those that were not evaluated.
        part: The set.
        folder: Gets ``images.csv`` and ``worst_images.png``.
        predict: As of `write_evaluation`.
    """
    rows: list[list[object]] = [["image_id", "file", "mIoU"]]
    for record, score in zip(part.records, scores.tolist(), strict=True):
        if score == score:
            rows.append([record.image_id, str(record.path), round(score, 6)])
    save_csv(folder / "images.csv", rows)
    order = np.argsort(scores, kind="stable")  # NaN comes last
    worst = [i for i in order[:PICTURED_IMAGES].tolist() if scores[i] < 1]
    if not worst:
        return
    records = [part.records[i] for i in worst]
    images = [read_image(record.path) for record in records]
    sheet = draw_masks_side_by_side(
        images,
        [record.read_mask() for record in records],
        [predict(image) for image in images],
        part.classes.colors,
        [(part.records[i].path.name, f"wrong, mIoU {scores[i]:.2f}") for i in worst],
    )
    save_picture(folder / "worst_images.png", sheet)


def format_segmentation_table(evaluation: SegmentationEvaluation, width: int = 100) -> str:
    """Return the numbers, and one row a class, as text; "-" stands for what is not defined."""
    summary = make_numbers_table(
        f"Segmentation, {pluralize(evaluation.images, 'image')}", evaluation.numbers
    )
    by_class = Table("class", box=box.SIMPLE_HEAD)
    for name in ("pixels", "IoU", "accuracy", "precision", "boundary F"):
        by_class.add_column(name, justify="right", no_wrap=True)
    for c in evaluation.classes:
        values = map(format_number, (c.iou, c.accuracy, c.precision, c.boundary_f))
        by_class.add_row(c.name, str(c.pixels), *values)
    return render([summary, by_class], width)


def tabulate_confusion(evaluation: SegmentationEvaluation) -> list[list[object]]:
    """Return the confusion matrix with names: a row a true class, or a label's four counts."""
    names = [score.name for score in evaluation.classes]
    if evaluation.task == "multilabel":
        head = ["label", "true_negative", "false_positive", "false_negative", "true_positive"]
        counts = evaluation.matrix.reshape(len(names), 4).tolist()
    else:
        head, counts = ["true \\ predicted", *names], evaluation.matrix.tolist()
    return [[*head], *([name, *row] for name, row in zip(names, counts, strict=True))]


def draw_examples(part: SegmentationSet, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return a sheet of image, annotation and prediction of images spread over a set."""
    images, annotations = [], []
    for record in part.records[:: max(1, len(part) // PICTURED_IMAGES)][:PICTURED_IMAGES]:
        with suppress(DataError):  # left out of the evaluation, too
            pair = read_image(record.path), record.read_mask()
            images.append(pair[0])
            annotations.append(pair[1])
    predictions = [predict(image) for image in images]
    return draw_masks_side_by_side(images, annotations, predictions, part.classes.colors)
