"""The end of a training and the whole of an evaluation: tables, curves, pictures, files."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.images import read_image
from densenet_backbones.data.samples import Categories, DetectionSet
from densenet_backbones.training.coco_evaluation import CocoEvaluation
from densenet_backbones.training.coco_metric import CocoMetric
from densenet_backbones.training.confusion import confusion_matrix
from densenet_backbones.training.console import is_first_process, say
from densenet_backbones.training.detection_task import confident
from densenet_backbones.training.kind import Kind
from densenet_backbones.training.model_file import save_model
from densenet_backbones.training.pictures import ground_truth_beside_predictions, save_picture
from densenet_backbones.training.plots import (
    plot_confidence_curves,
    plot_confusion,
    plot_pr_curves,
    plot_training_curves,
)
from densenet_backbones.training.run_folder import RunFolder
from densenet_backbones.training.tables import format_table, format_voc_table
from densenet_backbones.training.task import Task
from densenet_backbones.training.voc_metric import evaluate_voc

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
    config, others = kind.own_data
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
        folder: Gets ``coco.json``, ``results.json`` (COCO's results format), ``table.txt``,
            PR curves, the confusion matrix and predictions beside the ground truth.
        voc_iou: IoU from which a detection is right in VOC's numbers.
        count_difficult: Count VOC's difficult objects too.
    """
    assert metric is not None and metric.evaluation is not None
    folder.mkdir(parents=True, exist_ok=True)
    evaluation: CocoEvaluation = metric.evaluation
    text = format_table(evaluation)
    summary: dict[str, Any] = {"coco": evaluation.to_dict()}
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
    draw_examples(part, predictions, set(metric.images), folder / "predictions.png")


def draw_examples(
    part: DetectionSet,
    predictions: dict[int, dict[str, np.ndarray]],
    evaluated: set[int],
    file: Path,
) -> None:
    """Ground truth beside predictions of images spread over the evaluated ones."""
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64), "scores": np.zeros(0)}
    records = [r for r in part.records if r.image_id in evaluated]
    step = max(1, len(records) // PICTURED_IMAGES)
    chosen = records[::step][:PICTURED_IMAGES]
    sheet = ground_truth_beside_predictions(
        [read_image(r.path) for r in chosen],
        [(r.boxes, r.labels) for r in chosen],
        [confident(predictions.get(r.image_id, nothing)) for r in chosen],
        part.categories.names,
    )
    save_picture(file, sheet)


def by_image(
    results: list[dict[str, Any]], categories: Categories
) -> dict[int, dict[str, np.ndarray]]:
    """COCO results back to one entry an image: boxes xyxy, labels, scores."""
    rows: dict[int, list[tuple[list[float], int, float]]] = {}
    for r in results:
        x, y, w, h = r["bbox"]
        label = categories.label_of_id(r["category_id"])
        rows.setdefault(r["image_id"], []).append(([x, y, x + w, y + h], label, r["score"]))
    return {
        image_id: {
            "boxes": np.array([row[0] for row in found], np.float32).reshape(-1, 4),
            "labels": np.array([row[1] for row in found], np.int64),
            "scores": np.array([row[2] for row in found], np.float32),
        }
        for image_id, found in rows.items()
    }
