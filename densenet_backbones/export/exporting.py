"""Write a model's files, and compare what they compute with the model."""

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.export.checks import Agreement, Results
from densenet_backbones.export.needs import ExportError
from densenet_backbones.export.onnx_file import OnnxSession, write_onnx
from densenet_backbones.export.plan import Plan, make_plan
from densenet_backbones.export.program_file import ProgramFile, write_programs
from densenet_backbones.file_writing import replace_file
from densenet_backbones.inference.exported.runtimes import OpenvinoModel, convert_to_ir
from densenet_backbones.inference.inputs.image_tensors import to_image_tensor
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.reporting.console import say

# Sizes (H, W) of the images that a file of any size is checked with.
_CHECKED = ((256, 320), (353, 217))

_PARTS = {"onnx": (".onnx",), "pt2": (".pt2",), "openvino": (".xml", ".bin")}
_NAMES = {"onnx": "onnxruntime", "pt2": "torch.export's program", "openvino": "OpenVINO"}
_RUNTIMES: dict[str, Any] = {
    "onnx": OnnxSession,
    "pt2": ProgramFile,
    "openvino": OpenvinoModel,
}


def write_files(files: Mapping[str, Path], options: argparse.Namespace) -> None:
    """Write each file if it computes what the model does.

    Args:
        files: Format -> file.
        options: The command line.

    Raises:
        ExportError: A format cannot hold the model, or its runtime computes something else.
    """
    model = load(options.checkpoint)
    plan = make_plan(model, options.output)
    options.image_size = options.image_size or plan.size
    quantization = None
    if options.int8:
        # Imported where it is used: evaluations take seconds to import.
        from densenet_backbones.export.int8.writing import Quantization

        quantization = Quantization.plan(model, options, options.image_size)
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
            if quantization is not None:
                facts = _describe(plan, options.image_size)
                written = quantization.run(name, written, out, facts)
            for part in (written.with_suffix(".bin"), written):  # the IR's weights come first
                if part.is_file():
                    with replace_file(out.with_suffix(part.suffix)) as draft:
                        shutil.copyfile(part, draft)
            say(f"written to {out}; input {plan.input_name}, outputs {', '.join(plan.outputs)}")


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
