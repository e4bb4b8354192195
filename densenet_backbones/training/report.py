"""The end of a training and the whole of an evaluation: tables, curves, pictures, files."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.images import read_image
from densenet_backbones.data.instances import read_instances
from densenet_backbones.data.samples import Categories, DetectionSet
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.metrics.coco import PREFIXES, CocoMetric
from densenet_backbones.metrics.coco_evaluation import CocoEvaluation
from densenet_backbones.metrics.confusion import confusion_matrix
from densenet_backbones.metrics.learned import IOU_TYPES
from densenet_backbones.metrics.voc import evaluate_voc
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.reporting.instance_pictures import (
    collect_annotations,
    draw_beside_ground_truth,
    select_confident,
)
from densenet_backbones.reporting.pictures import save_picture
from densenet_backbones.reporting.plots import (
    plot_confidence_curves,
    plot_confusion,
    plot_pr_curves,
    plot_training_curves,
)
from densenet_backbones.reporting.tables import format_table, format_voc_table
from densenet_backbones.training.kind import Kind
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.task import Task

PICTURED_IMAGES = 16


def after_training(
    kind: Kind, task: Task, data: Any, trainer: pl.Trainer, folder: RunFolder
) -> None:
    """Evaluate the best weights, write everything down, and say how to go on."""
    best = folder.checkpoints / "best.ckpt"
    source = best if best.is_file() else folder.checkpoints / "last.ckpt"
    task.load_state_dict(read_checkpoint(source)["state_dict"])
    trainer.loggers = []  # the curves are those of the training; this is no further epoch
    trainer.validate(task, data, verbose=False)
    if not is_first_process():
        return
    say(f"\nBest weights ({source}) on {data.val_set.name}:")
    kind.write_evaluation(task, data.val_set, folder.evaluation)
    save_model(folder.slim, task.spec, task.model)
    if (folder.path / "metrics.csv").is_file():
        plot_training_curves(folder.path / "metrics.csv", folder.pictures / "training_curves.png")
    for what, where in (
        (f"Trained {kind.spec.kind}", folder.slim),
        ("Checkpoints", folder.checkpoints),
        ("Pictures", folder.pictures),
        ("Evaluation", folder.evaluation),
        ("Curves", f"tensorboard --logdir {folder.path}"),
    ):
        say(f"{what + ':':20}{where}")
    image = data.val_set.records[0].path
    config, others = kind.own_data(task)
    say(f"\n{kind.doing + ':':21}{command('predict')} {folder.slim} {image}")
    say(f"Evaluate again:      {command('evaluate')} {folder.slim} --data DIR")
    say(
        f"Train on your own:   {command(kind.tool)} --config {config} --data DIR\n"
        f"                     ({others}; "
        f"--init-from {folder.slim} starts from these weights)"
    )


def command(tool: str) -> str:
    """How this installation calls a tool: by its script, or from a checkout by its file."""
    if Path(sys.argv[0]).suffix == ".py":
        return f"python tools/{tool}.py"
    return f"densenet-{tool.replace('_', '-')}"


def write_evaluation(
    metric: CocoMetric | None,
    part: DetectionSet,
    folder: Path,
    voc_iou: float = 0.5,
    count_difficult: bool = False,
) -> None:
    """Print and write what a finished metric found.

    Args:
        metric: After `compute`.
        part: The images that were evaluated.
        folder: Gets ``table.txt``, ``metrics.json``, ``results.json`` (COCO's results format, with
            masks and keypoints where there are some), PR curves, the confusion matrix of the boxes,
            and predictions beside the ground truth.
        voc_iou: IoU from which a detection is right in VOC's numbers.
        count_difficult: Count VOC's difficult objects too.
    """
    assert metric is not None and metric.evaluation is not None
    folder.mkdir(parents=True, exist_ok=True)
    evaluation: CocoEvaluation = metric.evaluation
    text = format_table(evaluation)
    summary: dict[str, Any] = {"coco": evaluation.to_dict()}
    for kind, further in list(metric.evaluations.items())[1:]:
        text += "\n" + format_table(further)
        summary[f"coco_{kind}"] = further.to_dict()
        plot_pr_curves(further, folder / f"{PREFIXES[kind]}pr_curves.png")
    predictions = by_image(metric.results, part.categories)
    voc = evaluate_voc(
        part, predictions, voc_iou, count_difficult=count_difficult, image_ids=metric.images
    )
    text += "\n" + format_voc_table(voc)
    summary["voc"] = voc.to_dict()
    say(text)
    (folder / "table.txt").write_text(text)
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "results.json").write_text(json.dumps(metric.results))
    plot_pr_curves(evaluation, folder / "pr_curves.png")
    plot_confidence_curves(voc, folder / "confidence_curves.png")
    matrix = confusion_matrix(part, predictions, image_ids=metric.images)
    plot_confusion(matrix, part.categories.names, folder / "confusion_matrix.png")
    target_types = [what for what, kind in IOU_TYPES.items() if kind in metric.evaluations]
    draw_examples(part, predictions, set(metric.images), folder / "predictions.png", target_types)


def draw_examples(
    part: DetectionSet,
    predictions: dict[int, dict[str, Any]],
    evaluated: set[int],
    file: Path,
    target_types: Sequence[str] = ("boxes",),
) -> None:
    """Ground truth beside predictions of images spread over the evaluated ones."""
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64), "scores": np.zeros(0)}
    records = [r for r in part.records if r.image_id in evaluated]
    step = max(1, len(records) // PICTURED_IMAGES)
    chosen = records[::step][:PICTURED_IMAGES]
    keypoints = len(part.categories.keypoints)
    sheet = draw_beside_ground_truth(
        [read_image(r.path) for r in chosen],
        [collect_annotations(read_instances(r, target_types, keypoints)) for r in chosen],
        [select_confident(predictions.get(r.image_id, nothing)) for r in chosen],
        part.categories.names,
        skeleton=part.categories.skeleton,
    )
    save_picture(file, sheet)


def by_image(results: list[dict[str, Any]], categories: Categories) -> dict[int, dict[str, Any]]:
    """COCO results back to one entry an image: boxes xyxy, labels, scores, masks, keypoints."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["image_id"], []).append(result)
    return {image_id: _prediction(found, categories) for image_id, found in rows.items()}


def _prediction(found: list[dict[str, Any]], categories: Categories) -> dict[str, Any]:
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in found)]
    labels = [categories.label_of_id(r["category_id"]) for r in found]
    prediction: dict[str, Any] = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int64),
        "scores": np.array([r["score"] for r in found], np.float32),
    }
    if "segmentation" in found[0]:
        prediction["masks"] = [r["segmentation"] for r in found]
    if "keypoints" in found[0]:
        points = np.array([r["keypoints"] for r in found], np.float32)
        prediction["keypoints"] = points.reshape(len(found), -1, 3)
    return prediction
