"""Time whole detectors and segmenters, post-processing included, beside themselves exported."""

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from densenet_backbones.analysis.plan import plan_inputs
from densenet_backbones.benchmark.deployed import DEPLOYED_MODELS
from densenet_backbones.benchmark.measuring import Timing, take_turns
from densenet_backbones.benchmark.report import Cell, Column, Table, Unavailable
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.dense_block import native
from densenet_backbones.deploy import deploy
from densenet_backbones.export.onnx_file import write_onnx
from densenet_backbones.export.plan import make_plan
from densenet_backbones.inference.detector import Detector, DetectorSpec
from densenet_backbones.inference.exported.runtimes import (
    OnnxSession,
    OpenvinoModel,
    convert_to_ir,
)
from densenet_backbones.inference.segmenter import (
    SegmentationModel,
    SegmenterSpec,
    compute_probabilities,
    pick_labels,
)
from densenet_backbones.messages import check_choice, pluralize

__all__ = ["compare_deployed", "measure_peak"]

_CLASSES = 20
_ARGS: dict[str, dict[str, Any]] = {
    "dsod300": {},
    "dsod300_smallest": {},
    "dsod_tiny": {},
    "retinanet_densenet121_fpn": {"weights_backbone": None},
    "unet": {"backbone": "densenet121_features", "weights_backbone": None},
    "fcdensenet56": {},
}
_OURS = "ours deployed"
_ROUNDS = 1_000_000
Model = Detector | SegmentationModel


def compare_deployed(name: str, size: int | None, turns: int, *, int8: bool = False) -> Table:
    """Time one model as `predict` runs it, as trained, in onnxruntime and in OpenVINO.

    Args:
        name: Of `DEPLOYED_MODELS`.
        size: Side of the image in pixels; None for the model's own.
        turns: Counted rounds; see `take_turns`.
        int8: Also in 8 bits, with ranges of noise: what they take does not depend on ranges. What
            they compute is not compared.

    Raises:
        ValueError: There is no such model here.
        RuntimeError: Two contenders do not compute the same.
        Unavailable: NNCF is not installed, which quantizes.
    """
    check_choice("--models", name, tuple(DEPLOYED_MODELS))
    if int8 and importlib.util.find_spec("nncf") is None:
        raise Unavailable('--int8 needs NNCF: pip install "densenet-backbones[int8]"')
    size = size or DEPLOYED_MODELS[name]
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    trained = build_model(name, size)
    plan = make_plan(trained)
    macs = _count(trained, image)
    steps: dict[str, Callable[[], Any]] = {}
    narrow: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own
        file = Path(folder) / "model.onnx"
        write_onnx(plan.stages((size, size)), file, plan.facts)
        convert_to_ir(file, file.with_suffix(".xml"))
        threads = torch.get_num_threads()
        steps["onnxruntime"] = partial(OnnxSession(file, threads), image)
        steps["OpenVINO"] = partial(OpenvinoModel(file.with_suffix(".xml"), threads), image)
        if int8:
            narrow = _quantize(file, image, threads)
    for contender, network in (
        (_OURS, deploy(trained.model)),
        ("ours, as trained", trained.model),
    ):
        network.to(memory_format=torch.channels_last)
        steps[contender] = partial(_run, trained, network, image)
    expected = plan.expected(image)
    for contender, step in steps.items():
        agreement = plan.compare(step(), expected)
        if not agreement.holds:
            raise RuntimeError(f"{contender} computes something else than the model: {agreement}")
    steps |= narrow
    timers = {name: partial(_measure, steps[name]) for name in (_OURS, *steps)}
    timings = take_turns(timers, turns)
    measured = f"{pluralize(threads, 'thread')}, {turns} turns"
    title = f"{name}, whole, 1 x {size}x{size} pixels, float32, {measured}"
    return _build_table(title, timings, macs)


def _quantize(file: Path, image: Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    """Write an exported file and its IR in 8 bits beside it, and return their passes by name."""
    from densenet_backbones.export.int8.images import CalibrationImages
    from densenet_backbones.export.int8.ir_quantizer import quantize_ir
    from densenet_backbones.export.int8.onnx_quantizer import quantize_onnx

    noise = SimpleNamespace(image=(image[0] * 255).to(torch.uint8))
    images = CalibrationImages([noise], [0], image.shape[2:])
    narrow, ir = file.with_name("int8.onnx"), file.with_name("int8.xml")
    quantize_onnx(file, narrow, images)
    quantize_ir(file.with_suffix(".xml"), ir, images)
    return {
        "onnxruntime, 8 bits": partial(OnnxSession(narrow, threads), image),
        "OpenVINO, 8 bits": partial(OpenvinoModel(ir, threads), image),
    }


def build_model(name: str, size: int) -> Model:
    """Build a model with random weights, whose norms have statistics of some data."""
    torch.manual_seed(0)
    args = dict(_ARGS[name])
    if name.startswith("retinanet"):
        args |= {"min_size": size, "max_size": size}
    elif name.startswith("dsod"):
        args |= {"image_size": size}
    names = tuple(f"class {number}" for number in range(_CLASSES))
    model: nn.Module
    if name in ("unet", "fcdensenet56"):
        segmenter = SegmenterSpec(name, args, MaskClasses.from_names(names))
        model = segmenter.build()
    else:
        detector = DetectorSpec(name, args, Categories.from_names(names))
        model = detector.build()
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    if name in ("unet", "fcdensenet56"):
        return SegmentationModel(segmenter, model, "cpu")
    return Detector(detector, model, "cpu")


def _measure(step: Callable[[], object]) -> float:
    """Return seconds of processor time, of all threads: other programs hardly change it."""
    start = time.process_time()
    step()
    return time.process_time() - start


@torch.inference_mode()
def _run(model: Model, network: nn.Module, image: Tensor) -> dict[str, Any]:
    """Return what a network of a model makes of an image, as the exported files name it."""
    if isinstance(model, SegmentationModel):
        task = model.spec.task
        labels, scores = pick_labels(compute_probabilities(network(image), task), task)
        return {"labels": labels.numpy(), "scores": scores.numpy()}
    (found,) = network([image[0]])
    detections = {name: found[name].numpy() for name in ("boxes", "scores", "labels")}
    return {**detections, "num_detections": len(found["scores"])}


def _count(model: Model, image: Tensor) -> int:
    """Return the multiply-adds of the convolutions and products, by their direct count."""
    inputs = image if isinstance(model, SegmentationModel) else [image[0]]
    return plan_inputs(model.model, inputs).macs


def measure_peak(turns: int = 15) -> float | None:
    """Return float32 operations a second of one core in our kernels' widest vectors, at best.

    Args:
        turns: Tries of some milliseconds; other programs can only take away, so the best counts.
    """
    if not native.is_usable():
        return None
    rates: list[float] = []
    for _ in range(turns):
        start = time.process_time()
        operations = native.run_multiply_adds(_ROUNDS)
        rates.append(operations / (time.process_time() - start))
    return max(rates)


def _build_table(title: str, timings: tuple[Timing, ...], macs: int) -> Table:
    peak = measure_peak()
    columns = (
        *(Column(""), Column("CPU ms", ".1f", spread=True)),
        Column(f"time / {_OURS}", ".3f", spread=True),
        Column("GFLOP/s", ".0f"),
        Column("of FMA peak", ".0%"),
    )
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        rate = 2 * macs / timing.median
        share = rate / peak if peak else None
        ratios = timing.compute_ratios(timings[0])
        rows.append((timing.name, timing.milliseconds, ratios, rate / 1e9, share))
    found = f"{peak / 1e9:.0f} GFLOP/s a core in this process" if peak else "not measured"
    note = (
        f"{macs / 1e9:.2f} GMAC, counted without Winograd's savings; random weights; processor "
        f"time of all threads; instructions: torch {torch.backends.cpu.get_cpu_capability()}; "
        f"FMA peak: {found}"
    )
    return Table(title, columns, tuple(rows), note)
