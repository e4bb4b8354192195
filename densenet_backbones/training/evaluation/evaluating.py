"""Evaluate a model, or detections made elsewhere, as the command line of `evaluate` says."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from densenet_backbones.data.classification.data import ClassificationData
from densenet_backbones.data.classification.reading import ClassLayout
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.loaders.guarded import describe_dead_worker, refuse_unusable
from densenet_backbones.data.loading import AnyData
from densenet_backbones.data.mask_samples import MaskSample
from densenet_backbones.data.readers.detection_sources import Layout
from densenet_backbones.data.readers.segmentation_sources import MaskLayout
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.file_writing import (
    GrowingList,
    check_output,
    find_unused_folder,
    remove_drafts,
    save_json,
)
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.detector_facts import read_target_types
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_views import parse_views
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import one_sentence
from densenet_backbones.metrics.coco import format_coco_results
from densenet_backbones.metrics.segmentation import count_pixels
from densenet_backbones.reporting.console import fail, is_first_process, say
from densenet_backbones.training import report
from densenet_backbones.training.arguments import split_device
from densenet_backbones.training.callbacks import gather_unusable
from densenet_backbones.training.evaluation.comparison import (
    Evaluated,
    describe_task,
    name_source,
    write_comparison,
)
from densenet_backbones.training.evaluation.given import evaluate_detections, read_data_options
from densenet_backbones.training.evaluation.timing import ModelTimes, describe_times
from densenet_backbones.training.precision import PrecisionTrainer, remark_on_precision
from densenet_backbones.training.resuming.stopping import watch_signals
from densenet_backbones.training.tasks.classification import ClassificationTask
from densenet_backbones.training.tasks.detection import DetectionTask
from densenet_backbones.training.tasks.segmentation import SegmentationTask
from densenet_backbones.training.tasks.task import AnyTask


def run(options: argparse.Namespace) -> None:
    """Run the evaluation that the command line asks for, until its end or a signal.

    Raises:
        SystemExit: 2 for options that do not go together, 1 for a dead worker; with one line on
            standard error.
        ValueError: As of `evaluate`.
    """
    torch.set_float32_matmul_precision("high")  # tensor cores on GPUs that have them
    try:
        with watch_signals():
            evaluate(options)
    except MisconfigurationException as error:
        fail(one_sentence(str(error)), 2)
    except RuntimeError as error:
        if (dead_worker := describe_dead_worker(error, "--workers", "--batch-size")) is None:
            raise
        fail(dead_worker, 1)


def evaluate(options: argparse.Namespace) -> Evaluated | None:
    """Run the evaluation that the command line asks for.

    Returns:
        The result of the first model in the first process, None elsewhere.

    Raises:
        DataError: Images could not be used; the others are evaluated, and the results written.
        ValueError: Options do not go together.
    """
    source = options.checkpoint or options.detections
    results = [s for s in (options.detections, options.against) if s and s.endswith(".json")]
    if options.categories is not None and not results:
        raise ValueError("--categories tells the ids of --detections; a model knows its classes")
    beside = Path(source) if Path(source).is_dir() else Path(source).parent
    out = options.out or beside / f"evaluation-{options.split}"
    check_output(out, "--out")
    earlier, out = out, find_unused_folder(out)
    if out != earlier:
        say(f"{earlier} has the files of an earlier evaluation; those of this one go to {out}.")
    faults: list[str] = []
    # The split of the data may be in the folder of a model's run; both are of the same images.
    sources = [source] if options.against is None else [source, options.against]
    folders = [folder for s in sources for folder in list(Path(s).absolute().parents)[:2]]
    first = _evaluate_source(source, options, folders, out, faults)
    if options.against is not None:
        second = _evaluate_source(options.against, options, folders, out / "against", faults)
        if first is not None and second is not None:
            write_comparison(first, second, out)
    if first is not None:
        refuse_unusable(list(dict.fromkeys(faults)), len(first.records))
    return first


def _evaluate_source(
    source: str, options: argparse.Namespace, folders: list[Path], out: Path, faults: list[str]
) -> Evaluated | None:
    """Evaluate a model or a file of detections.

    Args:
        source: The file.
        options: The command line.
        folders: Where a file may be that says which images were held out.
        out: Folder of the report.
        faults: Gets a line for each image that could not be used.

    Returns:
        The result in the first process, None elsewhere.
    """
    if source == options.detections or source.endswith(".json"):
        return evaluate_detections(Path(source), options, folders, out)
    return _evaluate_model(source, options, folders, out, faults)


def _evaluate_model(
    checkpoint: str,
    options: argparse.Namespace,
    folders: list[Path],
    out: Path,
    unusable: list[str],
) -> Evaluated | None:
    model = load(checkpoint)
    task, data, write = plan_evaluation(model, options, folders)
    if is_first_process():
        for line in data.lines:
            say(line)
        report.say_faults(None, data.val_set)
    accelerator, devices = options.accelerator, options.devices
    if options.device is not None:
        accelerator, devices = split_device(options.device)
    times = ModelTimes()
    trainer = PrecisionTrainer(
        accelerator=accelerator,
        devices=_parse_devices(devices),
        strategy=options.strategy,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[ResultsAsTheyCome(out), times],
    )
    for line in remark_on_precision(trainer):
        say(line)
    # All processes evaluate their part; the first one has the result.
    with times.running(trainer, task):
        trainer.validate(task, data, verbose=False)
    faults = list(gather_unusable(data.left_out))
    if not is_first_process():
        return None
    remove_drafts(out)
    write(out)
    measured = times.summarize()
    say(*describe_times(measured, one_by_one=isinstance(model, SegmentationModel)))
    save_json(out / "timing.json", measured, indent=2)
    say(f"Written to {out}/")
    unusable += faults
    return describe_task(name_source(checkpoint), task, data, measured)


def _parse_devices(text: str) -> Any:
    """Return Lightning's number or list of devices; other words are refused by it."""
    return json.loads(text) if re.fullmatch(r"\d+|\[[\d,]+\]", text) else text


class ResultsAsTheyCome(pl.Callback):
    """Keeps the results of the images that are done, should an evaluation not reach its end.

    A detector's report writes the same file at the end. Several processes gather their results
    there only.

    Args:
        folder: Gets ``results.json`` of a detector, and ``pixel_counts.json`` of a segmenter: the
            pixels of each image by true and predicted class, which add up to the confusion matrix.
    """

    def __init__(self, folder: Path) -> None:
        self._results = GrowingList(folder / "results.json")
        self._counts = GrowingList(folder / "pixel_counts.json")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        task: pl.LightningModule,
        outputs: Any,
        batch: Any,
        *place: object,
    ) -> None:
        """Add the results of a batch."""
        if trainer.world_size > 1:
            return
        if isinstance(task, DetectionTask):
            categories = task.datamodule.val_set.categories
            self._results.extend(format_coco_results(outputs["results"], categories))
        elif isinstance(task, SegmentationTask):
            images = zip(outputs["predictions"], batch, strict=True)
            self._counts.extend([_count_image(task, *image) for image in images])


def _count_image(task: SegmentationTask, labels: Tensor, sample: MaskSample) -> dict[str, object]:
    """Return an image's counts that are not 0: [true, predicted, pixels], a label before these."""
    record = task.datamodule.val_set.records[sample.index]
    counts = count_pixels(labels, sample.mask, task.spec.task, task.spec.classes.num_classes)
    rows = [[*place, int(counts[tuple(place)])] for place in counts.nonzero().tolist()]
    return {"image_id": sample.image_id, "file_name": record.path.name, "confusion": rows}


Evaluation = tuple[AnyTask, AnyData, Callable[[Path], None]]
"""A task with its model, the data, and a function that writes the result into a folder."""


def plan_evaluation(
    model: Detector | SegmentationModel | ImageClassifier,
    options: argparse.Namespace,
    folders: list[Path],
) -> Evaluation:
    """Return a task and data as in training, so that the numbers are those of its validation.

    Args:
        model: What is evaluated.
        options: The command line.
        folders: Where a file may be that says which images were held out.

    Raises:
        ValueError: The options do not fit the model, or the data is wrong.
    """
    known = {SegmentationModel: MaskLayout, ImageClassifier: ClassLayout}
    layouts = get_args(known.get(type(model), Layout))
    if options.layout not in layouts:
        raise ValueError(
            f"--layout of a {model.spec.kind} must be one of {', '.join(layouts)}, got "
            f"{options.layout}"
        )
    if isinstance(model, SegmentationModel):
        return _evaluate_segmenter(model, options, folders)
    if isinstance(model, ImageClassifier):
        return _evaluate_classifier(model, options, folders)
    return _evaluate_detector(model, options, folders)


def _evaluate_detector(
    detector: Detector, options: argparse.Namespace, folders: list[Path]
) -> Evaluation:
    target_types = list(read_target_types(detector.model))
    data = DetectionData(**read_data_options(options), target_types=target_types)
    data.split_folders = folders
    data.use_classes(detector.categories)
    mirrored = detector.categories.mirrored_keypoints
    views = parse_views(options, detector.model, mirrored)
    task = DetectionTask.from_detector(detector, evaluator=options.evaluator)
    task.views = views
    counting = {"voc_iou": options.voc_iou, "count_difficult": options.count_difficult}
    return task, data, lambda out: task.write_evaluation(data, out, **counting)


def _evaluate_classifier(
    model: ImageClassifier, options: argparse.Namespace, folders: list[Path]
) -> Evaluation:
    parse_views(options, None)  # refuses what is for detectors
    data = ClassificationData(**read_data_options(options))
    data.split_folders = folders
    data.use_classes(model.spec.class_names)
    task = ClassificationTask.from_model(model)
    return task, data, lambda out: task.write_evaluation(data, out)


def _evaluate_segmenter(
    model: SegmentationModel, options: argparse.Namespace, folders: list[Path]
) -> Evaluation:
    parse_views(options, None)  # refuses what is for detectors
    data = SegmentationData(**read_data_options(options), task=model.spec.task)
    data.split_folders = folders
    data.use_classes(model.classes)
    task = SegmentationTask.from_model(model, boundary_tolerance=options.boundary_tolerance)
    return task, data, lambda out: task.write_evaluation(data, out)
