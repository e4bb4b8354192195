"""Command line of `evaluate`: ``tools/evaluate.py``, ``densenet-evaluate``, ``densenet evaluate``.

Words and paths are checked here, before anything heavy is imported; `evaluation.evaluating` does
the work.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import check_is_there
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.options import BOUNDARY_TOLERANCE, add_view_options
from densenet_backbones.messages import CommandParser, one_sentence
from densenet_backbones.reporting.console import fail, quiet_libraries


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="A detector: COCO's numbers of boxes, and of masks or keypoints where it gives "
        "them, VOC's average precisions, a table per "
        "class, curves, the confusion matrix, pictures and results in COCO's JSON format. A "
        "segmenter: mIoU, accuracies, boundary F-score, a table per class, the confusion matrix "
        "and pictures. A classifier: top-1 and top-5 accuracy, a table per class, the confusion "
        "matrix, calibration and its surest mistakes."
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a run's folder, its model.safetensors or *.ckpt, or an exported file",
    )
    parser.add_argument(
        "--detections",
        metavar="FILE",
        help="in place of a model: detections made elsewhere, in COCO's results format",
    )
    parser.add_argument(
        "--categories",
        metavar="FILE",
        help="JSON with the categories that tell the class ids of --detections",
    )
    parser.add_argument(
        "--against",
        metavar="FILE",
        help="a second model, or file of detections, to compare with image by image",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where files go (evaluation-SPLIT beside the checkpoint)",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="folder, annotation file or zip, in any known layout",
    )
    add_data_options(data)
    _add_machine_options(parser.add_argument_group("machine"))
    _add_detector_options(parser.add_argument_group("detectors"))
    parser.add_argument_group("segmenters").add_argument(
        "--boundary-tolerance",
        type=float,
        default=BOUNDARY_TOLERANCE,
        metavar="T",
        help="by how much of the image's diagonal a border may be off (%(default)s)",
    )
    return parser


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how the evaluated data is read."""
    group.add_argument("--split", default="val", help="which part of it (%(default)s)")
    group.add_argument("--layout", default="auto", help="as in training; %(default)s looks")
    group.add_argument("--annotation-file", metavar="FILE", help="COCO's JSON, if named otherwise")
    group.add_argument("--image-folder", metavar="DIR", help="COCO's images, if named otherwise")
    group.add_argument("--rename", metavar="OLD=NEW,…", help="new names of the data's classes")
    group.add_argument(
        "--drop", metavar="A,B", help="classes of the data that do not count; '*': all others"
    )


def _add_machine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch-size", type=int, default=16, metavar="N")
    group.add_argument("--workers", type=int, default=None, metavar="N")
    group.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1, cuda:0,1 or mps, in place of --accelerator and --devices",
    )
    group.add_argument("--devices", default="auto", help="as Lightning's: a number or 'auto'")
    group.add_argument("--accelerator", default="auto", help="cpu, gpu, auto, …")
    group.add_argument("--strategy", default="auto", help="ddp for several devices")
    group.add_argument(
        "--precision",
        default="32-true",
        help="bf16-mixed, 16-mixed, 32-true (%(default)s), or auto",
    )


def _add_detector_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--evaluator",
        choices=("pycocotools", "faster_coco_eval"),
        default="pycocotools",
        help="what computes COCO's numbers (%(default)s)",
    )
    group.add_argument(
        "--count-difficult",
        action="store_true",
        help="VOC: count difficult objects too, which are ignored otherwise",
    )
    group.add_argument(
        "--voc-iou",
        type=float,
        default=0.5,
        metavar="T",
        help="IoU from which a detection is right in VOC's numbers (%(default)s)",
    )
    add_view_options(group)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/evaluate.py`` and ``densenet-evaluate``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for wrong data; with one line on standard error.
    """
    quiet_libraries()
    options = parse(argv)
    try:
        _check_paths(options)
        from densenet_backbones.training.evaluation.evaluating import run

        gc.freeze()  # collections, and the last one at the end, pass over what was imported
        run(options)
    except argparse.ArgumentError as error:
        fail(one_sentence(str(error)), 2)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def _check_paths(options: argparse.Namespace) -> None:
    """Refuse files that are not there, before what reads them is imported.

    Raises:
        ValueError: A file is missing, or there is no model and no detections, or both.
    """
    if (options.checkpoint is None) == (options.detections is None):
        raise ValueError("give a model, or --detections FILE in its place")
    for source in filter(None, (options.checkpoint, options.against)):
        if not source.endswith(".json"):
            find_model_file(source)
    check_is_there(options.data)
