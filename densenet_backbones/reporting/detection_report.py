"""Report on a detection data set and on a finished evaluation: tables, curves, pictures, files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.instances import TargetType, read_instances
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.sets.counts import count_classes
from densenet_backbones.file_writing import save_json, save_text
from densenet_backbones.metrics.calibration import Calibration, calibrate_detections
from densenet_backbones.metrics.coco import PREFIXES, CocoMetric
from densenet_backbones.metrics.coco_truth import IOU_TYPES
from densenet_backbones.metrics.confusion import confusion_matrix
from densenet_backbones.metrics.error_kinds import find_errors
from densenet_backbones.metrics.undefined import replace_nan
from densenet_backbones.metrics.voc import VocEvaluation, evaluate_voc
from densenet_backbones.reporting.calibration import plot_calibration
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.error_report import format_errors_table, plot_kinds, write_errors
from densenet_backbones.reporting.instance_pictures import (
    DRAWN_SCORE,
    collect_annotations,
    draw_beside_ground_truth,
    select_confident,
)
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.reporting.plots import (
    plot_confidence_curves,
    plot_confusion,
    plot_pr_curves,
)
from densenet_backbones.reporting.tables import format_table, format_voc_table

CLASSES_SHOWN = 20
PICTURED_IMAGES = 16


def tabulate_data(train: DetectionSet, val: DetectionSet) -> Table:
    """Return a table of the images and objects of each class in both parts of the data.

    Columns that are all zero (difficult objects, crowds) are left out, and so are the classes past
    the first `CLASSES_SHOWN`, whose sum is given.
    """
    table = Table(title=f"train: {train.name}   evaluated: {val.name}", box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    counts = [count_classes(train), count_classes(val)]
    columns = [
        (f"{part} {quantity}", count, quantity)
        for part, count in zip(("train", "val"), counts, strict=True)
        for quantity in ("objects", "images", "difficult", "crowd")
        if quantity in ("objects", "images") or any(getattr(c, quantity) for c in count)
    ]
    table.add_column("class")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    names = train.categories.names
    listed = len(names) if len(names) <= CLASSES_SHOWN else CLASSES_SHOWN - 1
    for row, name in enumerate(names[:listed]):
        table.add_row(name, *(str(getattr(count[row], key)) for _, count, key in columns))
    # Images show several classes: their number in the last row is the set's, not a sum.
    sizes = {"train images": len(train), "val images": len(val)}
    for name, first in ((f"{len(names) - listed} more", listed), ("all", 0)):
        cells = [
            str(sizes[title] if title in sizes and first == 0 else "")
            if quantity == "images"
            else str(sum(getattr(c, quantity) for c in count[first:]))
            for title, count, quantity in columns
        ]
        if first == 0 or listed < len(names):
            table.add_row(name, *cells, end_section=first > 0)
    return table


def write_evaluation(
    metric: CocoMetric,
    part: DetectionSet,
    folder: Path,
    voc_iou: float = 0.5,
    count_difficult: bool = False,
) -> None:
    """Print a finished evaluation and write it to a folder.

    Args:
        metric: After `compute`.
        part: The images that were evaluated.
        folder: Gets ``table.txt``, ``metrics.json``, ``results.json`` (COCO's results format, with
            masks and keypoints where there are some), PR curves, the calibration and the confusion
            matrix of the boxes, the kinds of their errors (see `write_errors`) and of those of
            masks, and predictions beside the ground truth. Ids and the order of keypoints are those
            of the evaluated file; classes that it does not list have ids above its own.
        voc_iou: IoU from which a detection is right in VOC's numbers.
        count_difficult: Count VOC's difficult objects too.
    """
    assert metric.evaluation is not None, "the metric has not computed its numbers yet"
    folder.mkdir(parents=True, exist_ok=True)
    # COCO's numbers of boxes, then of masks and keypoints where there are some.
    text = format_table(metric.evaluation)
    summary = {"coco": metric.evaluation.to_dict()}
    for iou_type, evaluation in list(metric.evaluations.items())[1:]:
        text += "\n" + format_table(evaluation)
        summary[f"coco_{iou_type}"] = evaluation.to_dict()
        plot_pr_curves(evaluation, folder / f"{PREFIXES[iou_type]}pr_curves.png")
    # VOC's numbers and the confusion matrix count the boxes of the same detections.
    predictions = group_by_image(metric.results, part.categories)
    voc = evaluate_voc(
        part, predictions, voc_iou, count_difficult=count_difficult, image_ids=metric.images
    )
    errors = find_errors(part, predictions, image_ids=metric.images)
    best = metric.evaluation.find_best_score()
    score = best[0] if best is not None else DRAWN_SCORE
    text += "\n" + format_voc_table(voc) + "\n" + format_errors_table(errors, score)
    summary |= {"voc": voc.to_dict(), "errors": errors.to_dict()}
    if "segm" in metric.evaluations:
        of_masks = find_errors(part, predictions, image_ids=metric.images, masks=True)
        text += "\n" + format_errors_table(of_masks, score, of_masks=True)
        summary["errors_segm"] = of_masks.to_dict()
        plot_kinds(of_masks, folder / f"{PREFIXES['segm']}error_kinds.png")
    calibration = calibrate_detections(voc)
    said, numbers = _judge_scores(voc, best, calibration)
    text += said
    summary |= numbers
    say(*text.splitlines())
    save_text(folder / "table.txt", text)
    save_json(folder / "metrics.json", summary, indent=2)
    save_json(folder / "results.json", metric.results, indent=None)
    # Pictures last: the numbers are safe if drawing fails.
    plot_pr_curves(metric.evaluation, folder / "pr_curves.png")
    plot_confidence_curves(voc, folder / "confidence_curves.png", None if best is None else best[0])
    if calibration.counts.any():
        plot_calibration(calibration, folder / "calibration.png")
    matrix = confusion_matrix(part, predictions, image_ids=metric.images)
    plot_confusion(matrix, part.categories.names, folder / "confusion_matrix.png")
    write_errors(errors, part, folder, score)
    target_types = [name for name, iou in IOU_TYPES.items() if iou in metric.evaluations]
    file = folder / "predictions.png"
    draw_examples(part, predictions, set(metric.images), file, target_types, score)


def _judge_scores(
    voc: VocEvaluation, best: tuple[float, float] | None, calibration: Calibration
) -> tuple[str, dict[str, Any]]:
    """Return sentences and numbers of the best score, with its F1, and of the calibration."""
    text, numbers = "", {}
    if best is not None:
        precision, recall = voc.measure_from(best[0])
        at_best = {"score": best[0], "f1": best[1], "precision": precision, "recall": recall}
        numbers["best_score"] = replace_nan(at_best)
        text = (
            f"\nDetections with a score from {best[0]:g} on are best here: mean F1 of the classes "
            f"{best[1]:.3f} at IoU 0.5\n(of all together: precision {precision:.3f}, recall "
            f"{recall:.3f} at IoU {voc.iou_threshold:g})\n"
        )
    if calibration.counts.any():
        numbers["calibration"] = {"ECE": calibration.error, "bins": calibration.list_bins()}
        text += (
            f"Scores differ from the share of right detections by {calibration.error:.3f} in the "
            "mean (ECE)\n"
        )
    return text, numbers


def draw_examples(
    part: DetectionSet,
    predictions: Mapping[int, dict[str, Any]],
    evaluated: set[int],
    file: Path,
    target_types: Sequence[TargetType] = ("boxes",),
    min_score: float = DRAWN_SCORE,
) -> None:
    """Draw the ground truth beside predictions of images spread over the evaluated ones.

    Images that cannot be read are left out: detections made elsewhere are evaluated without them.

    Args:
        part: The images and their annotations.
        predictions: As `group_by_image` returns them; images may be missing.
        evaluated: Ids of the images that may be drawn.
        file: Where the sheet goes.
        target_types: Annotations that are drawn.
        min_score: Score from which predictions are drawn.
    """
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64), "scores": np.zeros(0)}
    records = [record for record in part.records if record.image_id in evaluated]
    records = records[:: max(1, len(records) // PICTURED_IMAGES)][:PICTURED_IMAGES]
    images: list[np.ndarray] = []
    readable = []
    for record in records:
        with suppress(DataError):
            images.append(read_image(record.path))
            readable.append(record)
    if not readable:
        return
    known = part.categories
    layout = len(known.keypoints), known.keypoint_positions
    objects = [read_instances(record, target_types, *layout) for record in readable]
    sheet = draw_beside_ground_truth(
        images,
        [collect_annotations(instances) for instances in objects],
        [
            select_confident(predictions.get(record.image_id, nothing), min_score)
            for record in readable
        ],
        part.categories.names,
        skeleton=part.categories.skeleton,
    )
    save_picture(file, sheet)


def group_by_image(
    results: Sequence[Mapping[str, Any]], categories: Categories
) -> dict[int, dict[str, Any]]:
    """Return COCO's results as one entry an image.

    Args:
        results: Detections in COCO's results format, of any images in any order.
        categories: The evaluated set's classes, whose ids and order of keypoints the results have.

    Returns:
        By image id: ``boxes`` (n, 4) xyxy float32, ``labels`` (n,) int64, ``scores`` (n,) float64
        and, where the results have them, ``masks``, n run-length codes, and ``keypoints``
        (n, Kp, 3) float32.
    """
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["image_id"], []).append(result)
    return {image_id: _join_rows(detections, categories) for image_id, detections in rows.items()}


def _join_rows(detections: Sequence[Mapping[str, Any]], categories: Categories) -> dict[str, Any]:
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in detections)]
    labels = [categories.label_of_id(row["category_id"]) for row in detections]
    prediction: dict[str, Any] = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int64),
        # As they are written: a score that was found best is still reached by its detection.
        "scores": np.array([row["score"] for row in detections], np.float64),
    }
    if "segmentation" in detections[0]:
        prediction["masks"] = [row["segmentation"] for row in detections]
    if "keypoints" in detections[0]:
        points = np.array([row["keypoints"] for row in detections], np.float32)
        points = points.reshape(len(detections), -1, 3)
        prediction["keypoints"] = categories.put_in_label_order(points)
    return prediction
