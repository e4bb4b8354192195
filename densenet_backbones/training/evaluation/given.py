"""Evaluate detections that were made elsewhere, in COCO's results format: no model is needed."""

import argparse
from pathlib import Path
from typing import Any, get_args

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.readers.coco.results import match_results, read_results
from densenet_backbones.data.readers.detection_sources import Layout
from densenet_backbones.data.sets.classes import parse_names, parse_renaming
from densenet_backbones.inference.merging.detection_views import parse_views
from densenet_backbones.messages import check_choice, pluralize
from densenet_backbones.metrics.coco import CocoMetric
from densenet_backbones.metrics.coco_truth import IOU_TYPES, choose_sigmas, complete_truth
from densenet_backbones.reporting import detection_report
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.training import report
from densenet_backbones.training.evaluation.comparison import (
    Evaluated,
    describe_detections,
    name_source,
)


def read_data_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the evaluated data, for either kind of data module."""
    return {
        "root": options.data,
        "train_split": options.split,
        "val_split": options.split,
        "annotation_file": options.annotation_file,
        "image_folder": options.image_folder,
        "layout": options.layout,
        "rename": parse_renaming(options.rename) if options.rename else {},
        "drop": parse_names(options.drop) if options.drop else [],
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "bad_images": "skip",  # and named at the end
    }


def evaluate_detections(
    path: Path, options: argparse.Namespace, folders: list[Path], out: Path
) -> Evaluated | None:
    """Evaluate a file of detections, and write the report of a detector.

    Args:
        path: The file.
        options: Command line of ``tools/evaluate.py``.
        folders: Where a file may be that says which images were held out.
        out: Folder of the report.

    Returns:
        The result for a comparison, in the first process; None in others.

    Raises:
        DataError: The data or the file is wrong; names the entry and the fix.
        ValueError: Options are for models.
    """
    check_choice("--layout", options.layout, get_args(Layout))
    parse_views(options, None)  # refuses what is for models
    categories = Path(options.categories) if options.categories else None
    results = read_results(path, categories)
    data = DetectionData(**read_data_options(options), target_types=results.target_types)
    data.needs_images = False  # sizes are those of the annotations
    data.split_folders = folders
    data.use_own_classes()
    part = data.val_set
    if not is_first_process():
        return None
    say(*data.lines)
    report.say_faults(None, part)
    predictions, matched_by = match_results(results, part)
    say(
        f"{path}: {pluralize(len(results.entries), 'detection')} in "
        f"{pluralize(len(part), 'image')} of {part.name}; classes are told by {matched_by}."
    )
    keypoints = len(part.categories.keypoints)
    metric = CocoMetric(
        complete_truth(part, results.target_types, keypoints),
        part.categories,
        [IOU_TYPES[target_type] for target_type in results.target_types],
        backend=options.evaluator,
        keypoint_sigmas=(
            choose_sigmas(keypoints, part.categories)
            if "keypoints" in results.target_types
            else None
        ),
    )
    metric.update(predictions)
    metric.compute()
    detection_report.write_evaluation(metric, part, out, options.voc_iou, options.count_difficult)
    say(f"Written to {out}/")
    return describe_detections(name_source(path), metric, part, {})
