"""Export a trained model: ``python tools/export.py CHECKPOINT --format onnx pt2 openvino``.

Formats are ONNX, programs of `torch.export`, and OpenVINO's IR. A graph holds all that lies between
an image and its results. A detector's takes one image (1, C, H, W), RGB floats 0..1, and resizes it
as the detector does; post-processing is inside, so that boxes come out in the frame of the image
that went in. A segmenter's takes (N, 3, H, W). H and W are dynamic unless they are fixed. Class
names and a description of inputs and outputs are in the file's metadata.

With ``--int8 --calibrate DATA`` the convolutions of ONNX files and IRs are in 8 bits, see
`export.int8`; accuracy and speed of both kinds are measured on the data, printed and written down.

Words and paths are checked here, before anything heavy is imported; `exporting` does the work.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import check_is_there
from densenet_backbones.export.needs import LARGEST, SMALLEST, ExportError, check_installed
from densenet_backbones.file_writing import check_output
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.messages import CommandParser
from densenet_backbones.reporting.console import fail, quiet_libraries
from densenet_backbones.training.evaluate import add_data_options

_OLDEST_OPSET = 18  # of torch.onnx's translations
_CALIBRATION_IMAGES = 128
_ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Write a trained detector (DSOD, SSD, RetinaNet, FCOS), segmenter or "
        "classifier as an ONNX file, as a program of torch.export (.pt2) or as OpenVINO's IR "
        "(.xml, .bin), and compare what is computed from it with the model itself. A detector's "
        "graph takes one image (1, 3, H, W), RGB floats 0..1, of any size; it normalizes and "
        "resizes it and returns boxes (in pixels of that image), scores and labels of a fixed "
        "number of detections, best first, filled up with zeros, and their number. A segmenter's "
        "takes images (N, 3, H, W) and returns labels and their probabilities, or logits; a "
        "classifier's takes squares of its size and returns logits. The "
        "file's metadata name the classes. Two-stage detectors (Faster, Mask and Keypoint R-CNN) "
        "are not exported."
    )
    parser.add_argument("checkpoint", type=Path, help="*.ckpt of a run or its model.safetensors")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=tuple(_ENDINGS),
        help="one or several (as the ending of --out says, else onnx)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="*.onnx, *.pt2 or *.xml; other formats beside it (beside the checkpoint, by its name)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="fix the size of the images the file takes; left out, it takes any from "
        f"{SMALLEST} to {LARGEST} pixels on each side",
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="version of ONNX's operators (torch's default)"
    )
    parser.add_argument(
        "--output", choices=("labels", "logits"), help="what a segmenter returns (labels)"
    )
    parser.add_argument(
        "--check-image",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="pictures to compare file and model on, in place of two random ones",
    )
    _add_int8_options(parser.add_argument_group("8 bits (onnx, openvino)"))
    return parser


def _add_int8_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--int8",
        action="store_true",
        help="compute convolutions in 8 bits, and compare accuracy and speed with float32",
    )
    group.add_argument(
        "--calibrate",
        metavar="DATA",
        help="annotated images like those that the model will see, in any known layout",
    )
    group.add_argument(
        "--calibration-images",
        type=int,
        default=_CALIBRATION_IMAGES,
        metavar="N",
        help="most images that ranges are taken from (%(default)s)",
    )
    group.add_argument(
        "--calibration-split",
        default="train",
        metavar="NAME",
        help="part of DATA that they are from (%(default)s); --split is what is evaluated",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of their choice (%(default)s)"
    )
    add_data_options(group)
    group.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes that read images"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tools/export.py`` and ``densenet-export``.

    Raises:
        SystemExit: 1 with one line on standard error for wrong input, or where the export fails.
    """
    quiet_libraries()
    options = parse_arguments(argv)
    try:
        export(options)
    except (ExportError, ValueError, OSError) as error:
        fail(error, 1)


def export(options: argparse.Namespace) -> None:
    """Write the files that the command line asks for, each if it computes what the model does."""
    _check_options(options)
    _check_int8_options(options)
    files = _name_files(options)
    check_installed(list(files), int8=options.int8)
    check_output(next(iter(files.values())).parent, "--out")
    from densenet_backbones.export.exporting import write_files

    gc.freeze()  # collections, and the last one at the end, pass over what was imported
    write_files(files, options)


def _check_options(options: argparse.Namespace) -> None:
    if options.image_size and not all(SMALLEST <= side <= LARGEST for side in options.image_size):
        raise ValueError(
            f"--image-size must be H W in {SMALLEST}..{LARGEST}, got "
            f"{' '.join(map(str, options.image_size))}"
        )
    if options.opset is not None and options.opset < _OLDEST_OPSET:
        raise ValueError(f"--opset must be {_OLDEST_OPSET} or more, got {options.opset}")


def _check_int8_options(options: argparse.Namespace) -> None:
    if options.int8 != (options.calibrate is not None):
        raise ValueError(
            "--int8 and --calibrate DATA go together: the ranges of 8 bits are taken from images "
            "like those that the model will see"
        )
    if not options.int8:
        return
    check_is_there(options.calibrate)
    if options.calibration_images < 1:
        raise ValueError(
            f"--calibration-images must be at least 1, got {options.calibration_images}"
        )
    if options.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {options.seed}")


def _name_files(options: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each format: `--out`, and others beside it by their endings."""
    formats = list(dict.fromkeys(options.format or ()))
    model = find_model_file(options.checkpoint)
    out = options.out or model.with_name(f"{model.stem}-int8" if options.int8 else model.stem)
    if options.out is not None:
        by_ending = {ending: name for name, ending in _ENDINGS.items()}
        if out.suffix not in by_ending:
            raise ValueError(f"--out must end in .onnx, .pt2 or .xml (OpenVINO), got {out}")
        formats = formats or [by_ending[out.suffix]]
        if by_ending[out.suffix] not in formats:
            raise ValueError(
                f"--out {out} is a file of {by_ending[out.suffix]}, --format asks for "
                f"{' '.join(formats)}; give one of their endings, or add the format"
            )
    if options.int8 and "pt2" in formats:
        raise ValueError("--int8 is for onnx and openvino; leave pt2 out of --format")
    return {name: out.with_suffix(_ENDINGS[name]) for name in formats or ["onnx"]}
