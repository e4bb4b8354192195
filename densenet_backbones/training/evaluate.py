"""Evaluate a trained detector: ``python tools/evaluate.py CHECKPOINT --data DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.samples import DataError
from densenet_backbones.training.cli import fail, quiet_libraries
from densenet_backbones.training.console import is_first_process, say
from densenet_backbones.training.detection_task import DetectionTask
from densenet_backbones.training.detector import load
from densenet_backbones.training.report import write_evaluation


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="COCO's twelve numbers, VOC's average precisions, a table per class, curves, "
        "the confusion matrix, pictures and results in COCO's JSON format."
    )
    parser.add_argument("checkpoint", help="*.ckpt of a run or its model.safetensors")
    parser.add_argument("--data", required=True, metavar="DIR", help="COCO or VOC layout")
    parser.add_argument("--split", default="val", help="which part of it (%(default)s)")
    parser.add_argument("--layout", choices=("auto", "coco", "voc"), default="auto")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where files go (evaluation-SPLIT beside the checkpoint)",
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--workers", type=int, default=None, metavar="N")
    parser.add_argument("--devices", default="auto", help="as Lightning's: a number or 'auto'")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, auto, …")
    parser.add_argument("--strategy", default="auto", help="ddp for several devices")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed, 16-mixed, 32-true")
    parser.add_argument(
        "--evaluator", choices=("pycocotools", "faster_coco_eval"), default="pycocotools"
    )
    parser.add_argument(
        "--count-difficult",
        action="store_true",
        help="VOC: count difficult objects too, which are ignored otherwise",
    )
    parser.add_argument(
        "--voc-iou",
        type=float,
        default=0.5,
        metavar="T",
        help="IoU from which a detection is right in VOC's numbers (%(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/evaluate.py`` and ``densenet-evaluate``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data; with one line on standard error.
    """
    quiet_libraries()
    options = parse(argv)
    try:
        evaluate(options)
    except MisconfigurationException as error:
        fail(str(error), 2)
    except (CheckpointError, DataError, ValueError, OSError) as error:
        fail(str(error), 1)


def evaluate(options: argparse.Namespace) -> None:
    """Run the evaluation that the command line asks for."""
    detector = load(options.checkpoint)
    data = DetectionData(
        root=options.data,
        train_split=options.split,
        val_split=options.split,
        layout=options.layout,
        batch_size=options.batch_size,
        num_workers=options.workers,
    )
    data.use_classes(detector.categories)
    task = DetectionTask.from_detector(detector, evaluator=options.evaluator)
    devices = int(options.devices) if options.devices.isdigit() else options.devices
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=devices,
        strategy=options.strategy,
        precision=options.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.validate(task, data, verbose=False)
    if not is_first_process():
        return
    out = options.out or Path(options.checkpoint).parent / f"evaluation-{options.split}"
    write_evaluation(
        task.metric,
        data.val_set,
        out,
        voc_iou=options.voc_iou,
        count_difficult=options.count_difficult,
    )
    say(f"Written to {out}/")
