"""Compare two models image by image: which is better where, and by how much on the whole."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.mask_samples import MaskRecord
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.file_writing import save_csv, save_json, save_text
from densenet_backbones.messages import pluralize, show_controls
from densenet_backbones.metrics.coco import PREFIXES, CocoMetric
from densenet_backbones.metrics.error_kinds import find_errors
from densenet_backbones.metrics.paired_comparison import (
    RESAMPLES,
    PairedComparison,
    compare_scores,
)
from densenet_backbones.metrics.undefined import replace_nan
from densenet_backbones.reporting.classification.report import enlarge
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.detection_report import group_by_image
from densenet_backbones.reporting.error_report import KIND_LEGEND, draw_kinds, draw_truth
from densenet_backbones.reporting.instance_pictures import DRAWN_SCORE
from densenet_backbones.reporting.legends import append_legend
from densenet_backbones.reporting.mask_pictures import draw_mask
from densenet_backbones.reporting.pictures import draw_title, make_sheet, save_picture
from densenet_backbones.reporting.tables import format_number, render
from densenet_backbones.training.tasks.classification import ClassificationTask
from densenet_backbones.training.tasks.segmentation import SegmentationTask
from densenet_backbones.training.tasks.task import AnyTask

PICTURED_IMAGES = 12
TITLE_HEIGHT = 22  # pixels

Record = ImageRecord | MaskRecord
Draw = Callable[[Any, np.ndarray], np.ndarray]
"""Draws what is known of a record on its pixels (H, W, 3)."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model's evaluation, image by image.

    Attributes:
        name: Name of the model.
        measure: Name of the images' scores: "F1" or "mIoU".
        numbers: Numbers of the whole set.
        scores: Score of each image by its id.
        records: The images by their ids.
        draw_truth: Draws the annotations of an image.
        draw: Draws the model's results on an image.
        counts: Right and wrong detections and missed objects of each image, for a detector.
        legend: Colors of the pictures.
    """

    name: str
    measure: str
    numbers: Mapping[str, float]
    scores: Mapping[int, float]
    records: Mapping[int, Record]
    draw_truth: Draw
    draw: Draw
    counts: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()


def name_source(path: str | Path) -> str:
    """Return a short name of a model or a file of detections: the run's, or the file's own."""
    path = Path(path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return folder.name if path.stem in ("model", "best", "last") and folder.name else path.stem


def describe_task(name: str, task: AnyTask, data: Any, times: Mapping[str, Any]) -> Evaluated:
    """Return the evaluation that a task has just finished; arguments as `describe_detections`."""
    if isinstance(task, ClassificationTask):
        return describe_classification(name, task, data.val_set, times)
    if not isinstance(task, SegmentationTask):
        return describe_detections(name, cast(CocoMetric, task.metric), data.val_set, times)
    assert task.metric is not None and task.metric.evaluation is not None
    evaluation, part = task.metric.evaluation, data.val_set
    scores = zip(part.records, evaluation.image_scores.tolist(), strict=True)
    colors = part.classes.colors
    return Evaluated(
        name,
        "mIoU",
        {**evaluation.numbers, **_read_seconds(times)},
        {record.image_id: score for record, score in scores if score == score},
        {record.image_id: record for record in part.records},
        draw_truth=lambda record, image: draw_mask(image, record.read_mask(), colors),
        draw=lambda record, image: draw_mask(image, task.predict(image), colors),
    )


def describe_classification(
    name: str, task: ClassificationTask, part: DetectionSet, times: Mapping[str, Any]
) -> Evaluated:
    """Return a classifier's evaluation: 1 for each image that is right; see `describe_task`."""
    assert task.metric is not None and task.metric.evaluation is not None
    evaluation, names = task.metric.evaluation, task.spec.class_names
    right = (evaluation.predicted[:, 0] == evaluation.labels).tolist()
    indices = evaluation.indices.tolist()
    ids = [part.records[index].image_id for index in indices]
    predicted = {i: names[p] for i, p in zip(ids, evaluation.predicted[:, 0], strict=True)}

    def title(image: np.ndarray, text: str) -> np.ndarray:
        picture = enlarge(image)
        return np.concatenate((draw_title(text, picture.shape[1], TITLE_HEIGHT), picture))

    return Evaluated(
        name,
        "accuracy",
        {**evaluation.numbers, **_read_seconds(times)},
        {i: float(hit) for i, hit in zip(ids, right, strict=True)},
        {i: part.records[index] for i, index in zip(ids, indices, strict=True)},
        draw_truth=lambda record, image: title(
            image, part.categories.name_of_label(int(record.labels[0]))
        ),
        draw=lambda record, image: title(image, predicted[record.image_id]),
    )


def describe_detections(
    name: str, metric: CocoMetric, part: DetectionSet, times: Mapping[str, Any]
) -> Evaluated:
    """Return the evaluation of a detector: the F1 of each image from the detector's best score on.

    Args:
        name: Name of the model.
        metric: After `compute`.
        part: The images.
        times: Result of `ModelTimes.summarize`, perhaps empty.
    """
    predictions = group_by_image(metric.results, part.categories)
    errors = find_errors(part, predictions, image_ids=metric.images)
    by_id = {image.image_id: image for image in errors.images}
    assert metric.evaluation is not None, "the metric has not computed its numbers yet"
    best, names = metric.evaluation.find_best_score(), part.categories.names
    score = best[0] if best is not None else DRAWN_SCORE
    numbers = {
        f"{PREFIXES[kind] if len(metric.evaluations) > 1 else ''}{key}": value
        for kind, evaluation in metric.evaluations.items()
        for key, value in evaluation.numbers.items()
    }
    return Evaluated(
        name,
        "F1",
        {**numbers, "score_thresh": score, **_read_seconds(times)},
        {i: image.measure_f1(score) for i, image in by_id.items()},
        {record.image_id: record for record in part.records},
        draw_truth=lambda record, image: draw_truth(image, by_id[record.image_id], names),
        draw=lambda record, image: draw_kinds(image, by_id[record.image_id], score, names),
        counts={i: image.count(score) for i, image in by_id.items()},
        legend=KIND_LEGEND,
    )


def _read_seconds(times: Mapping[str, Any]) -> dict[str, float]:
    return {"seconds_an_image": times["steps"]["together"]["median_ms"] / 1000} if times else {}


def write_comparison(first: Evaluated, second: Evaluated, folder: Path) -> None:
    """Print which of two models is better on which images, and write it to a folder.

    Args:
        first: One model.
        second: The other, evaluated on the same images.
        folder: Gets ``comparison.txt``, ``.json``, ``.csv`` with a row an image, and ``.png`` with
            the images whose scores differ most.

    Raises:
        ValueError: The models are of two kinds, or have no image in common.
    """
    if first.measure != second.measure:
        raise ValueError("a detector and a segmenter cannot be compared; give two of one kind")
    ids = [image_id for image_id in first.scores if image_id in second.scores]
    own, others = (np.array([model.scores[i] for i in ids]) for model in (first, second))
    compared = compare_scores(own, others)
    names = _name_both(first, second)
    text = _format(first, second, names, compared)
    say(*text.splitlines())
    save_text(folder / "comparison.txt", text)
    save_json(
        folder / "comparison.json",
        {
            "models": list(names),
            "measure": first.measure,
            "images": replace_nan(asdict(compared)),
            "numbers": [replace_nan(first.numbers), replace_nan(second.numbers)],
        },
        indent=2,
    )
    _write_rows(first, second, names, ids, folder / "comparison.csv")
    differences = own - others
    order = np.argsort(-np.abs(differences), kind="stable")[:PICTURED_IMAGES]
    shown = [ids[i] for i in order.tolist() if differences[i]]
    if (sheet := _draw(first, second, names, shown)) is not None:
        save_picture(folder / "comparison.png", sheet)
    say(f"Compared in {folder}/comparison.txt, .json, .csv and .png")


def _name_both(first: Evaluated, second: Evaluated) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name} (first)", f"{second.name} (second)"


def _format(
    first: Evaluated, second: Evaluated, names: tuple[str, str], compared: PairedComparison
) -> str:
    table = Table(title="Two models on the same images", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for name in (*names, "difference"):
        table.add_column(name, justify="right")
    for key, value in first.numbers.items():
        if key in second.numbers:
            values = value, second.numbers[key], value - second.numbers[key]
            table.add_row(key, *map(format_number, values))
    images = compared.first_better + compared.second_better + compared.equal
    shown = [show_controls(name) for name in names]
    sentence = (
        f"{first.measure} of {pluralize(images, 'image')}: {shown[0]} is better in "
        f"{compared.first_better}, {shown[1]} in {compared.second_better}, equal in "
        f"{compared.equal}.\nMean difference {compared.difference:+.4f}, 95 % interval "
        f"{compared.low:+.4f} to {compared.high:+.4f} ({RESAMPLES} times drawn again).\n"
    )
    if compared.low <= 0 <= compared.high:
        sentence += "The interval holds 0: these images do not tell which model is better.\n"
    return render([table]) + "\n" + sentence


def _write_rows(
    first: Evaluated, second: Evaluated, names: tuple[str, str], ids: list[int], path: Path
) -> None:
    """Write a row an image: scores, difference and better model; for detectors counts, too."""
    measure = first.measure
    head = ["image_id", "file", *(f"{measure} {name}" for name in names), "difference", "better"]
    if first.counts:
        head += [f"{what} {name}" for name in names for what in ("right", "wrong", "missed")]
    rows: list[list[object]] = [[*head]]
    for i in ids:
        both = first.scores[i], second.scores[i]
        difference = round(both[0] - both[1], 6)
        better = names[0] if difference > 0 else names[1] if difference < 0 else ""
        scores = [round(score, 6) for score in both]
        row = [i, str(first.records[i].path), *scores, difference, better]
        if first.counts:
            row += [*first.counts[i], *second.counts[i]]
        rows.append(row)
    save_csv(path, rows)


def _draw(
    first: Evaluated, second: Evaluated, names: tuple[str, str], ids: list[int]
) -> np.ndarray | None:
    """Draw three pictures an image: its annotations, and both models' results."""
    pictures, titles = [], []
    for i in ids:
        record = first.records[i]
        try:
            image = read_image(record.path)
        except DataError:  # detections made elsewhere are compared without images, too
            continue
        pictures.append(first.draw_truth(record, image))
        titles.append(record.path.name)
        for model, name in zip((first, second), names, strict=True):
            pictures.append(model.draw(record, image))
            titles.append(f"{model.measure} {model.scores[i]:.2f} {name}")
    if not pictures:
        return None
    sheet = make_sheet(pictures, 3 if len(ids) <= 4 else 6, titles)
    return append_legend(sheet, first.legend) if first.legend else sheet
