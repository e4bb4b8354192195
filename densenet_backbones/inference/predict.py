"""Command line of `predict`: ``tools/predict.py``, ``densenet-predict`` and ``densenet predict``.

Words and paths are checked here, before anything heavy is imported; `predicting` does the work.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.file_writing import check_output
from densenet_backbones.inference.inputs.sources import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    choose_stems,
    list_sources,
)
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.options import (
    FORMATS,
    PRECISIONS,
    SEGMENTER_TILE,
    add_view_options,
)
from densenet_backbones.messages import CommandParser, check_interval, check_whole
from densenet_backbones.reporting.console import fail, quiet_libraries, say

__all__ = ["main", "make_parser", "parse_arguments", "predict"]

ENDINGS = (".png", "_mask.png", ".mp4")
"""Endings of an overlay, of a mask, and of a video."""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Draw what a trained model finds in pictures and videos. A "
        "detector's objects go to predictions.json, with masks as COCO's run-length codes and "
        "keypoints where it gives them; a segmenter writes a PNG of class indices for each "
        "picture, and a summary as JSON; a classifier the most probable classes of each. Videos, "
        "cameras and animations come out as MP4."
    )
    parser.add_argument(
        "checkpoint", help="a run's folder, its model.safetensors or *.ckpt, or an exported file"
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="files, folders, 'patterns*.jpg', addresses, videos, lists (.txt or @FILE), camera",
    )
    parser.add_argument("--recursive", action="store_true", help="take folders in folders too")
    parser.add_argument(
        "--stride", type=int, default=1, metavar="N", help="take every Nth frame of a video"
    )
    _add_output_options(parser.add_argument_group("output"))
    _add_detector_options(parser.add_argument_group("detectors"))
    _add_tile_options(parser.add_argument_group("large images"))
    _add_machine_options(parser.add_argument_group("machine"))
    return parser


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where pictures and predictions.json go (%(default)s)",
    )
    group.add_argument(
        "--save",
        nargs="+",
        choices=FORMATS,
        default=["json"],
        metavar="FORMAT",
        help=f"one or more of {', '.join(FORMATS)} (json)",
    )
    group.add_argument("--no-pictures", action="store_true", help="draw nothing")


def _add_detector_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--score",
        type=float,
        metavar="S",
        help="leave out detections below this score, 0 to 1 (the one that was best when the model "
        "was evaluated, else 0.5)",
    )
    group.add_argument("--classes", nargs="+", metavar="NAME", help="give only these classes")
    add_view_options(group)


def _add_tile_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="cut larger images into overlapping tiles of N pixels (segmenters: "
        f"{SEGMENTER_TILE}; detectors: none)",
    )
    group.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="pixels of the shorter side that a detector resizes images to (as in training), and a "
        "segmenter reduces larger ones to, for masks of their own size (as they are)",
    )
    group.add_argument(
        "--overlap", type=int, metavar="N", help="pixels that tiles share (a quarter of a tile)"
    )


def _add_machine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (a GPU if there is one)")
    group.add_argument("--batch-size", type=int, default=8, metavar="N")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="32-true",
        help="mixed ones are faster where the device computes in them (%(default)s)",
    )
    group.add_argument(
        "--no-deploy",
        action="store_true",
        help="run the network as it was trained, not its faster folded form",
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tools/predict.py`` and ``densenet-predict``.

    Raises:
        SystemExit: 1 with one line on standard error for wrong input, or one for each image that
            could not be used, when all others are done; 130 after Ctrl-C.
    """
    quiet_libraries()
    options = parse_arguments(argv)
    try:
        predict(options)
    except KeyboardInterrupt:
        say(f"Stopped; what was done is in {options.out}/", style="yellow")
        sys.exit(130)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def predict(options: argparse.Namespace) -> None:
    """Predict as the command line says, and write the results of each image as soon as it is done.

    Raises:
        DataError: Images could not be used; the others are done.
    """
    for name in ("--batch-size", "--stride"):
        check_whole(name, getattr(options, name[2:].replace("-", "_")))
    if options.score is not None:
        check_interval("--score", options.score, "[0, 1]")
    # All that can be wrong with files and names, before the model is loaded.
    if Path(options.checkpoint).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise ValueError(
            f"{options.checkpoint}: is no model; give the model first, then what it looks at"
        )
    sources = list_sources(options.images, options.recursive)
    stems = choose_stems(options.out, sources, ENDINGS)
    check_output(options.out, "--out")
    find_model_file(options.checkpoint)
    from densenet_backbones.inference.predicting import predict_sources

    gc.freeze()  # collections, and the last one at the end, pass over what was imported
    predict_sources(sources, stems, options)
