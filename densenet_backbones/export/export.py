"""Export a trained model: ``python tools/export.py CHECKPOINT --format onnx pt2 openvino``.

Formats are ONNX, programs of `torch.export`, and OpenVINO's IR. A graph holds all that lies between
an image and its results. A detector's takes one image (1, C, H, W), RGB floats 0..1, and resizes it
as the detector does; post-processing is inside, so that boxes come out in the frame of the image
that went in. A segmenter's takes (N, 3, H, W). H and W are dynamic unless they are fixed. Class
names and a description of inputs and outputs are in the file's metadata.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.faults import DataError
from densenet_backbones.export.checks import Agreement, Results
from densenet_backbones.export.onnx_file import (
    ExportError,
    OnnxSession,
    check_installed,
    write_onnx,
)
from densenet_backbones.export.plan import LARGEST, SMALLEST, Plan, make_plan
from densenet_backbones.export.program_file import ProgramFile, write_programs
from densenet_backbones.file_writing import check_output, replace_file
from densenet_backbones.inference.exported.runtimes import OpenvinoModel, convert_to_ir
from densenet_backbones.inference.inputs.image_tensors import to_image_tensor
from densenet_backbones.inference.loading import find_model_file, load
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.messages import CommandParser
from densenet_backbones.reporting.console import fail, quiet_libraries, say

# Sizes (H, W) of the images that a file of any size is checked with.
_CHECKED = ((256, 320), (353, 217))
_OLDEST_OPSET = 18  # of torch.onnx's translations

_ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}
_PARTS = {"onnx": (".onnx",), "pt2": (".pt2",), "openvino": (".xml", ".bin")}
_NAMES = {"onnx": "onnxruntime", "pt2": "torch.export's program", "openvino": "OpenVINO"}
_RUNTIMES: dict[str, Any] = {
    "onnx": OnnxSession,
    "pt2": ProgramFile,
    "openvino": OpenvinoModel,
}


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
        "file's metadata name the classes."
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
    return parser


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
    except (CheckpointError, DataError, ExportError, ValueError, OSError) as error:
        fail(error, 1)


def export(options: argparse.Namespace) -> None:
    """Write the files that the command line asks for, each if it computes what the model does."""
    _check_options(options)
    files = _name_files(options)
    check_installed(list(files))
    check_output(next(iter(files.values())).parent, "--out")
    plan = make_plan(load(options.checkpoint), options.output)
    options.image_size = options.image_size or plan.size
    with TemporaryDirectory(prefix="densenet-export-") as folder:
        for name, out in files.items():
            written = _write(name, plan, Path(folder), options)
            # A file takes its place only after it has agreed with the model on every image.
            for image, agreement in _compare(plan, _RUNTIMES[name](written), options):
                say(f"{image}: {agreement}")
                if not agreement.holds:
                    raise ExportError(
                        f"on {image}, {_NAMES[name]} computes something else: {agreement}"
                    )
            for part in (written.with_suffix(".bin"), written):  # the IR's weights come first
                if part.is_file():
                    with replace_file(out.with_suffix(part.suffix)) as draft:
                        shutil.copyfile(part, draft)
            say(f"written to {out}; input {plan.input_name}, outputs {', '.join(plan.outputs)}")


def _check_options(options: argparse.Namespace) -> None:
    if options.image_size and not all(SMALLEST <= side <= LARGEST for side in options.image_size):
        raise ValueError(
            f"--image-size must be H W in {SMALLEST}..{LARGEST}, got "
            f"{' '.join(map(str, options.image_size))}"
        )
    if options.opset is not None and options.opset < _OLDEST_OPSET:
        raise ValueError(f"--opset must be {_OLDEST_OPSET} or more, got {options.opset}")


def _name_files(options: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each format: `--out`, and others beside it by their endings."""
    formats = list(dict.fromkeys(options.format or ()))
    out = options.out or find_model_file(options.checkpoint).with_suffix("")
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
    return {name: out.with_suffix(_ENDINGS[name]) for name in formats or ["onnx"]}


def _write(name: str, plan: Plan, folder: Path, options: argparse.Namespace) -> Path:
    """Write one format into a folder, and return its file."""
    facts = _describe(plan, options.image_size)
    try:
        if name == "pt2":
            path = folder / "model.pt2"
            write_programs(plan.stages(options.image_size), path, facts)
        else:  # OpenVINO reads the ONNX file
            path = folder / "model.onnx"
            if not path.is_file():
                opset = write_onnx(
                    plan.stages(options.image_size), path, facts, opset=options.opset
                )
                _check_opset(opset, options.opset)
    except ExportError as error:
        advice = "" if options.image_size else "; fixing the sizes with --image-size H W may help"
        raise ExportError(
            f"torch could not export the model: {str(error)[:600]}{advice}"
        ) from error
    if name == "openvino":
        convert_to_ir(path, folder / "model.xml")
        path = folder / "model.xml"
    size = sum(p.stat().st_size for p in folder.glob("model.*") if p.suffix in _PARTS[name])
    say(f"{_NAMES[name]}: {size / 1e6:.1f} MB")
    return path


def _check_opset(written: int, asked: int | None) -> None:
    say(f"ONNX operators of version {written}")
    if asked is not None and written != asked:
        raise ExportError(
            f"onnxscript has no way to operators of version {asked} for this model, it wrote "
            f"{written}: leave --opset out, or give {written}"
        )


def _describe(plan: Plan, image_size: Sequence[int] | None) -> JsonDict:
    """Return the facts that go into a file, so that it can be used without this package."""
    sides = (1 if not plan.batch else "N", plan.channels, *(image_size or ("H", "W")))
    return {
        "input": f"{plan.input_name} ({', '.join(map(str, sides))}) float32, RGB, values 0..1, "
        "not normalized",
        "outputs": dict(plan.outputs),
        **plan.facts,
    }


def _compare(
    plan: Plan, runtime: Callable[[Tensor], Results], options: argparse.Namespace
) -> Iterator[tuple[str, Agreement]]:
    """Yield the name of each image, and the agreement of file and model on it."""
    for name, image in _make_images(plan, options.check_image, options.image_size):
        yield name, plan.compare(runtime(image), plan.expected(image))


def _make_images(
    plan: Plan, files: Sequence[Path], image_size: Sequence[int] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and (1, C, H, W) of each image to compare on."""
    if files and plan.channels != 3:
        raise ValueError(f"--check-image reads RGB, the model takes {plan.channels} channels")
    for file in files:
        image = to_image_tensor(file, torch.device("cpu"))[None]
        if image_size:
            image = torch.nn.functional.interpolate(image, tuple(image_size), mode="bilinear")
        yield str(file), image
    generator = torch.Generator().manual_seed(0)
    for height, width in [] if files else [tuple(image_size)] * 2 if image_size else _CHECKED:
        image = torch.rand(1, plan.channels, height, width, generator=generator)
        yield f"a random image of {height} x {width}", image
