"""Report on a classifier's evaluation: tables, confusion matrix, calibration, surest mistakes."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_reduced_image
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.sets.counts import count_classes
from densenet_backbones.file_writing import save_csv, save_json, save_text
from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.classification import ClassificationEvaluation
from densenet_backbones.reporting.calibration import plot_calibration
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.pictures import make_sheet, save_picture, scale_image
from densenet_backbones.reporting.plots import plot_confusion
from densenet_backbones.reporting.tables import format_number, make_numbers_table, render

PICTURED_MISTAKES = 24
SMALLEST_PICTURED = 208
"""Pixels of a pictured image's shorter side: small ones are enlarged, so that titles fit."""
MOST_NAMED = 60
"""Classes that a picture of the confusion matrix can name."""


def tabulate_data(train: DetectionSet, val: DetectionSet) -> Table:
    """Return a table of the images of each class in both parts."""
    counts = [f"{part.name}, {pluralize(len(part), 'image')}" for part in (train, val)]
    title = f"train: {counts[0]}   evaluated: {counts[1]}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("class")
    for name in ("train images", "val images"):
        table.add_column(name, justify="right")
    for first, second in zip(count_classes(train), count_classes(val), strict=True):
        table.add_row(first.name, str(first.images), str(second.images))
    return table


def write_evaluation(
    evaluation: ClassificationEvaluation, part: DetectionSet, folder: Path
) -> None:
    """Print a finished evaluation and write it to a folder.

    Args:
        evaluation: What the metric computed.
        part: The images that were evaluated.
        folder: Gets ``table.txt``, ``metrics.json``, ``classes.csv``, ``confusion_matrix.csv``
            (rows the true class), ``predictions.csv`` (a row an image), the matrix and the
            calibration as pictures, and ``surest_mistakes.png`` where there are mistakes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = format_classification_table(evaluation)
    say(*text.splitlines())
    save_text(folder / "table.txt", text)
    save_json(folder / "metrics.json", evaluation.to_dict(), indent=2)
    rows: list[list[object]] = [list(vars(evaluation.classes[0]))]
    rows += [list(vars(score).values()) for score in evaluation.classes]
    save_csv(folder / "classes.csv", rows)
    names = [score.name for score in evaluation.classes]
    head: list[object] = ["true \\ predicted", *names]
    matrix = zip(names, evaluation.matrix.tolist(), strict=True)
    save_csv(folder / "confusion_matrix.csv", [head, *([name, *row] for name, row in matrix)])
    save_csv(folder / "predictions.csv", list_predictions(evaluation, part))
    # Pictures last: the numbers are safe if drawing fails.
    if len(names) <= MOST_NAMED:
        file = folder / "confusion_matrix.png"
        plot_confusion(evaluation.matrix, names, file, background=None)
    plot_calibration(
        evaluation.calibration,
        folder / "calibration.png",
        "images",
        "probability of the prediction",
    )
    if len(evaluation.find_mistakes()):
        save_picture(folder / "surest_mistakes.png", draw_mistakes(evaluation, part))


def format_classification_table(evaluation: ClassificationEvaluation, width: int = 100) -> str:
    """Return the numbers, and one row a class, as text; "-" stands for what is not defined."""
    title = f"Classification, {pluralize(evaluation.images, 'image')}"
    summary = make_numbers_table(title, evaluation.numbers)
    by_class = Table("class", box=box.SIMPLE_HEAD)
    for name in ("images", "recall", "precision", "F1", "taken most for"):
        by_class.add_column(name, justify="left" if "most" in name else "right", no_wrap=True)
    names = [score.name for score in evaluation.classes]
    for label, c in enumerate(evaluation.classes):
        values = map(format_number, (c.recall, c.precision, c.f1))
        others = evaluation.matrix[label].copy()
        others[label] = 0
        most = int(others.argmax())
        mistaken = f"{names[most]} ({others[most]})" if others[most] else ""
        by_class.add_row(c.name, str(c.images), *values, mistaken)
    return render([summary, by_class], width)


def list_predictions(
    evaluation: ClassificationEvaluation, part: DetectionSet
) -> list[list[object]]:
    """Return a row for each image: its file, its class, the predicted one and probabilities."""
    names = [score.name for score in evaluation.classes]
    rows: list[list[object]] = [["file", "class", "predicted", "score", "score_of_class"]]
    for n, index in enumerate(evaluation.indices.tolist()):
        record = part.records[index]
        rows.append(
            [
                str(record.path),
                names[evaluation.labels[n]],
                names[evaluation.predicted[n, 0]],
                round(float(evaluation.scores[n, 0]), 6),
                round(float(evaluation.true_scores[n]), 6),
            ]
        )
    return rows


def draw_mistakes(
    evaluation: ClassificationEvaluation, part: DetectionSet, most: int = PICTURED_MISTAKES
) -> np.ndarray:
    """Return a sheet of the wrong predictions that the model was surest of, (H, W, 3) uint8."""
    names = [score.name for score in evaluation.classes]
    images, titles = [], []
    for n in evaluation.find_mistakes()[:most].tolist():
        with suppress(DataError):  # it was left out of the evaluation, too
            images.append(read_small(part, int(evaluation.indices[n])))
            titles.append(
                f"{names[evaluation.predicted[n, 0]]} {evaluation.scores[n, 0]:.2f}, "
                f"is {names[evaluation.labels[n]]}"
            )
    return make_sheet(images, titles=titles)


def read_small(part: DetectionSet, index: int) -> np.ndarray:
    """Read an image of a set for a sheet, enlarged where it is tiny."""
    record = part.records[index]
    image, _ = read_reduced_image(
        record.path, (SMALLEST_PICTURED, SMALLEST_PICTURED), (record.width, record.height)
    )
    return enlarge(image)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return a tiny image enlarged by a whole factor."""
    factor = -(-SMALLEST_PICTURED // min(image.shape[:2]))
    return scale_image(image, factor) if factor > 1 else image


def draw_labelled(images: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Return a sheet of images under the names of their classes, (H, W, 3) uint8."""
    return make_sheet([enlarge(image) for image in images], titles=titles)
