"""Quantize exported files, measure them beside float32, and write both down in the file."""

import json
import shutil
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from densenet_backbones.data.sets.split_file import SPLIT_FILE
from densenet_backbones.export.int8.images import CalibrationImages, choose_images
from densenet_backbones.export.int8.ir_quantizer import quantize_ir
from densenet_backbones.export.int8.onnx_quantizer import quantize_onnx
from densenet_backbones.export.needs import ExportError
from densenet_backbones.export.onnx_file import describe_facts
from densenet_backbones.file_writing import find_unused_folder
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.exported.runtimes import open_runtime, save_ir
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.inference.segmenter import SegmentationModel
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.tables import format_number
from densenet_backbones.training import evaluate
from densenet_backbones.training.evaluation.evaluating import evaluate as run_evaluation

_TIMED, _TURNS = 4, 5  # images and turns of each file
_HEADLINES = ("AP", "AP50", "mIoU", "pixel_accuracy", "accuracy", "top5")
_MUCH = 0.005  # of the first of them
_DATA_WORDS = ("layout", "annotation_file", "image_folder", "rename", "drop", "workers")

_QUANTIZERS: Mapping[str, Callable[[Path, Path, CalibrationImages], None]] = {
    "onnx": quantize_onnx,
    "openvino": quantize_ir,
}


@dataclass(frozen=True)
class Quantization:
    """Data and options that all files of an export are quantized with.

    Args:
        options: Command line of the export.
        images: What ranges are taken from.
        folders: Where a file may be that says which images were held out.
    """

    options: Namespace
    images: CalibrationImages
    folders: Sequence[Path]

    @classmethod
    def plan(
        cls,
        model: Detector | SegmentationModel | ImageClassifier,
        options: Namespace,
        size: Sequence[int] | None,
    ) -> "Quantization":
        """Read the data before anything is exported.

        Args:
            model: The trained model.
            options: Command line of the export.
            size: (H, W) of the file's inputs; None for any.

        Raises:
            DataError: The data is wrong.
        """
        folders = list(Path(options.checkpoint).absolute().parents)[:2]
        words = _word_options(options, options.calibration_split)
        images = choose_images(
            model,
            evaluate.parse([str(options.checkpoint), *words]),
            folders,
            count=options.calibration_images,
            seed=options.seed,
            size=size,
        )
        return cls(options, images, folders)

    def run(self, name: str, written: Path, out: Path, facts: JsonDict) -> Path:
        """Quantize a file, and measure it beside what it was made of.

        Args:
            name: Format of the file: "onnx" or "openvino".
            written: The file in float32, in a folder of drafts.
            out: Where the quantized one is to go; a folder beside it gets the evaluations.
            facts: Metadata of the file.

        Returns:
            The quantized file, in a folder of drafts, with the measurements in its facts.

        Raises:
            ExportError: The library could not quantize the model.
        """
        folder = written.parent / f"{name}-8"
        folder.mkdir()
        before, after = (folder / f"{kind}{written.suffix}" for kind in ("float32", "int8"))
        for part in (written, written.with_suffix(".bin")):
            if part.is_file():
                shutil.copyfile(part, before.with_suffix(part.suffix))
        try:
            _QUANTIZERS[name](before, after, self.images)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"the model could not be quantized: {reason}") from error
        _set_facts(after, facts)  # an evaluation reads from them what the file holds
        numbers = self._evaluate(before, after, out)
        images = pluralize(len(self.images), "image")
        measured: JsonDict = {
            "calibrated_on": f"{images} of {Path(self.options.calibrate).name}",
            "evaluated_on": self.options.split,
            **numbers,
            "speedup": round(self._time(before, after), 2),
            "threads": torch.get_num_threads(),
        }
        _set_facts(after, {**facts, "int8": measured})
        sizes = [sum(p.stat().st_size for p in folder.glob(f"{f.stem}.*")) for f in (before, after)]
        _report(measured, sizes)
        return after

    def _evaluate(self, before: Path, after: Path, out: Path) -> JsonDict:
        """Return the main numbers of both files; a folder beside the new one gets all."""
        for folder in self.folders:
            if (folder / SPLIT_FILE).is_file() and not (after.parent / SPLIT_FILE).exists():
                shutil.copyfile(folder / SPLIT_FILE, after.parent / SPLIT_FILE)
        report = find_unused_folder(out.parent / f"{out.stem}-evaluation")
        words = _word_options(self.options, self.options.split)
        words += [f"--against={before}", f"--out={report}", "--accelerator=cpu", "--devices=1"]
        run_evaluation(evaluate.parse([str(after), *words]))
        compared = json.loads((report / "comparison.json").read_text())
        new, old = compared["numbers"]
        names = [name for name in _HEADLINES if old.get(name) is not None]
        return {
            "float32": {name: round(old[name], 5) for name in names},
            "int8": {name: round(new[name], 5) for name in names},
        }

    def _time(self, before: Path, after: Path) -> float:
        """Return how many times as fast the quantized file is, on the same images in turns."""
        runtimes = [open_runtime(file) for file in (before, after)]
        images = [torch.from_numpy(image) for image in islice(iter(self.images), _TIMED)]
        seconds: list[list[float]] = [[], []]
        for turn in range(_TURNS + 1):
            for image in images:
                for runtime, times in zip(runtimes, seconds, strict=True):
                    start = time.perf_counter()
                    runtime(image)
                    if turn:  # in the first, memory is made ready
                        times.append(time.perf_counter() - start)
        ratios = [old / new for old, new in zip(*seconds, strict=True)]
        return float(statistics.median(ratios))


def _word_options(options: Namespace, split: str) -> list[str]:
    """Return the words of `evaluate` about the data."""
    words = [f"--data={options.calibrate}", f"--split={split}"]
    for name in _DATA_WORDS:
        if (value := getattr(options, name)) is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    return words


def _set_facts(path: Path, facts: JsonDict) -> None:
    """Replace the metadata of a file of drafts."""
    texts = describe_facts(facts)
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        del model.metadata_props[:]  # what onnxruntime's tools leave there
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
        return
    import openvino

    # Weights are mapped from the file that is read: the new one is another, moved in its place.
    model = openvino.Core().read_model(str(path))
    described = path.with_name("described.xml")
    save_ir(model, described, texts)
    del model
    for suffix in (".xml", ".bin"):
        described.with_suffix(suffix).replace(path.with_suffix(suffix))


def _report(measured: Mapping[str, Any], sizes: Sequence[int]) -> None:
    old, new = measured["float32"], measured["int8"]
    table = Table(title="In 8 bits", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for head in ("float32", "int8", "difference"):
        table.add_column(head, justify="right")
    for name, value in old.items():
        table.add_row(name, *map(format_number, (value, new[name], new[name] - value)))
    table.add_row("MB", *(f"{size / 1e6:.1f}" for size in sizes), "")
    say(table)
    threads = pluralize(measured["threads"], "thread")
    say(f"Speed on this processor: float32's times {measured['speedup']:.2f} ({threads}).")
    headline = next(iter(old), None)
    if headline is not None and old[headline] - new[headline] > _MUCH:
        say(
            f"{headline} lost {old[headline] - new[headline]:.3f}: give more images "
            "(--calibration-images), like those that the model will see."
        )
