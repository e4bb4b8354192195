"""What an exported detector or segmenter takes and gives, and whether it computes the same.

Legend: N images, C channels, D detections that an image can have at most, H and W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from densenet_backbones.deploy import deploy, is_deployable
from densenet_backbones.export.detector_form import DetectorForm, TorchvisionForm, make_export_form
from densenet_backbones.export.onnx_file import Side, Stage
from densenet_backbones.export.segmenter_form import SegmenterForm
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.segmenter import (
    SegmentationModel,
    compute_probabilities,
    pick_labels,
)

__all__ = ["Agreement", "Output", "Plan", "compare_detections", "plan"]

Output = Literal["labels", "logits"]

# Pixels on each side of the images that a file without fixed sizes takes.
SMALLEST, LARGEST = 32, 8192
_HEIGHT, _WIDTH = Side("height", SMALLEST, LARGEST), Side("width", SMALLEST, LARGEST)
_EXAMPLE = (256, 320)  # H and W that differ from each other, and whose halves do

# Two computations of one detection differ by less: float32 sums in another order.
_SCORE, _BOX = 1e-3, 0.5
# The part that may differ by more: two boxes whose overlap is the threshold of non-maximum
# suppression to the last digit, a pixel between two classes.
_LEFT_OVER = 0.01
_FEW = 10


@dataclass(frozen=True)
class Agreement:
    """How far a file's results are those of the model.

    Attributes:
        what: That which was compared, in the plural.
        total: How many there were.
        agreed: How many of them agree.
        largest: The largest difference among those that agree, by what it is a difference of.
    """

    what: str
    total: int
    agreed: int
    largest: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether all agree, but for what rounding can change."""
        one = self.total >= _FEW  # of a few, one is no rounding
        return self.total - self.agreed <= max(one, _LEFT_OVER * self.total)

    def __str__(self) -> str:
        if not self.total:
            return f"there were no {self.what} to compare"
        rows = ", ".join(f"{value:.2g} {unit}" for unit, value in self.largest.items())
        differ = f"; largest difference {rows}" if self.agreed else ""
        return f"{self.agreed} of {self.total} {self.what} agree{differ}"


@dataclass(frozen=True)
class Plan:
    """A model as it is exported.

    Attributes:
        stages: What is computed, for images of the given (H, W), or None for any.
        channels: C.
        input_name: Of the images, (N, C, H, W).
        outputs: Names, and what each holds.
        batch: Whether N may be other than 1.
        facts: What the file says of itself besides inputs and outputs.
        expected: The model's own results on images (N, C, H, W), by the outputs' names.
        compare: From the file's results and the model's.
    """

    stages: Callable[[Sequence[int] | None], list[Stage]]
    channels: int
    input_name: str
    outputs: Mapping[str, str]
    batch: bool
    facts: Mapping[str, Any]
    expected: Callable[[Tensor], Mapping[str, np.ndarray]]
    compare: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], Agreement]


def plan(model: Detector | SegmentationModel, output: Output | None = None) -> Plan:
    """How a model is exported.

    Args:
        model: As `load` returns it, on the CPU.
        output: Of a segmenter: "labels" (the default) or "logits".

    Raises:
        ValueError: The model has no form for export, or ``output`` is given for a detector.
    """
    if isinstance(model, SegmentationModel):
        return _segmenter_plan(model, output or "labels")
    if output is not None:
        raise ValueError(f"--output {output} is for segmenters; this file holds a detector")
    return _detector_plan(model)


def _folded(model: nn.Module) -> nn.Module:
    """What is written: fewer operations than the model, which the file is compared with."""
    return deploy(model) if is_deployable(model) else model


# ------------------------------------------------------------------------------ detectors


def _detector_plan(detector: Detector) -> Plan:
    form = make_export_form(_folded(detector.model))
    size = form.selection.detections_per_img

    @torch.inference_mode()
    def expected(images: Tensor) -> Mapping[str, np.ndarray]:
        (found,) = detector.model(list(images))
        return {name: found[name].numpy() for name in ("boxes", "scores", "labels")}

    outputs = {
        "boxes": f"({size}, 4) float32, xyxy in pixels of the image; best first, then zeros",
        "scores": f"({size},) float32, falling, then zeros",
        "labels": f"({size},) int64, places in names, then zeros",
        "num_detections": "() int64, how many detections there are before the zeros",
    }
    return Plan(
        stages=lambda image_size: detector_stages(form, tuple(outputs), image_size),
        channels=form.channels,
        input_name="image",
        outputs=outputs,
        batch=False,
        facts={
            "kind": "detector",
            "model": detector.spec.name,
            "names": ["background", *detector.categories.names],
            "resized": _resizing(form),
            "preprocessing": _described(form),
            "score_thresh": form.selection.score_thresh,
            "nms_thresh": form.selection.nms_thresh,
        },
        expected=expected,
        compare=compare_detections,
    )


def detector_stages(
    form: DetectorForm, outputs: Sequence[str], image_size: Sequence[int] | None
) -> list[Stage]:
    """What is written of a detector: all at once where the network's input has one size.

    Args:
        form: Of the detector.
        outputs: Names of what it returns.
        image_size: (H, W) of the images, or None for any.
    """
    image = torch.rand(1, form.channels, *(image_size or _EXAMPLE))
    varying = {} if image_size else {2: _HEIGHT, 3: _WIDTH}
    if image_size or form.fixed_size is not None:
        return [Stage(form.forward, {"image": image}, outputs, varying, form)]
    assert isinstance(form, TorchvisionForm)
    between = ("network_input", "seen_size", "given_size")
    divisor = form.transform.size_divisible
    # Maps of a single cell would be a case of their own to torch, not to ONNX; so would a factor 1.
    least = max(2, form.coarsest_stride() // divisor + 1)
    most = max(least + 1, -(-form.transform.max_size // divisor))
    sides = {2: Side("rows", least, most, divisor), 3: Side("columns", least, most, divisor)}
    x = torch.rand(1, form.channels, least * divisor, (least + 1) * divisor)
    examples = (x, torch.tensor(x.shape[2:]).float(), torch.tensor(x.shape[2:]).float())
    return [
        Stage(form.prepare, {"image": image}, between, varying),
        Stage(form.detect, dict(zip(between, examples, strict=True)), outputs, sides, form),
    ]


def _resizing(form: DetectorForm) -> str:
    if form.fixed_size is not None:
        height, width = form.fixed_size
        return f"inside, to {height} x {width}"
    shorter, longer = form.transform.min_size[-1], form.transform.max_size
    return f"inside: the shorter side to {shorter}, the longer to {longer} at most"


def _described(form: DetectorForm) -> dict[str, Any]:
    """The pre-processing, all of which is in the graph."""
    if hasattr(form.transform, "to_dict"):
        described: dict[str, Any] = form.transform.to_dict()
        return described
    return {"mean": list(form.transform.image_mean), "std": list(form.transform.image_std)}


def compare_detections(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> Agreement:
    """Pairs detections of two computations of one image, best first, and compares each pair.

    Args:
        found: ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) and ``num_detections``.
        expected: The first three, of any number of detections.
    """
    count = int(found["num_detections"])
    boxes, scores, labels = (found[name][:count] for name in ("boxes", "scores", "labels"))
    free = np.ones(count, bool)
    score_difference = box_difference = 0.0
    pairs = 0
    wanted = (expected[name] for name in ("boxes", "scores", "labels"))
    for box, score, label in zip(*wanted, strict=True):
        off = np.abs(boxes - box).max(axis=1, initial=0)
        close = free & (labels == label) & (off <= _BOX) & (np.abs(scores - score) <= _SCORE)
        if close.any():
            best = int(np.where(close, off, np.inf).argmin())
            free[best] = False
            pairs += 1
            box_difference = max(box_difference, float(off[best]))
            score_difference = max(score_difference, float(abs(scores[best] - score)))
    total = max(count, len(expected["boxes"]))
    largest = {"in scores": score_difference, "pixels in boxes": box_difference}
    return Agreement("detections", total, pairs, largest)


# ------------------------------------------------------------------------------ segmenters


def _segmenter_plan(model: SegmentationModel, output: Output) -> Plan:
    task = model.spec.task

    def finish(logits: Tensor) -> tuple[Tensor, ...]:
        if output == "logits":
            return (logits,)
        return pick_labels(compute_probabilities(logits, task), task)

    segmenter: Any = model.model
    as_trained = SegmenterForm(segmenter, finish)
    segmenter = _folded(segmenter)
    form = SegmenterForm(segmenter, finish)
    layers = model.classes.num_classes if task == "multilabel" else 0
    shape = f"(N, {layers}, H, W)" if layers else "(N, H, W)"
    outputs = {"logits": f"(N, {model.spec.num_logits}, H, W) float32"}
    if output == "labels":
        what = f"0 or 1 for each of the {layers} names" if layers else "places in names"
        outputs = {
            "labels": f"{shape} uint8, {what}",
            "scores": f"{shape} float32 in 0..1, the probability of what labels says",
        }

    @torch.inference_mode()
    def expected(images: Tensor) -> Mapping[str, np.ndarray]:
        return dict(zip(outputs, (x.numpy() for x in as_trained(images)), strict=True))

    return Plan(
        stages=lambda image_size: segmenter_stages(form, tuple(outputs), image_size),
        channels=3,
        input_name="images",
        outputs=outputs,
        batch=True,
        facts={
            "kind": "segmenter",
            "model": model.spec.name,
            "task": task,
            "names": list(model.classes.names),
            "resized": "never: results have the images' size",
            "preprocessing": segmenter.normalization.to_dict(),
        },
        expected=expected,
        compare=compare_pixels,
    )


def segmenter_stages(
    form: SegmenterForm, outputs: Sequence[str], image_size: Sequence[int] | None
) -> list[Stage]:
    """What is written of a segmenter: all at once where the images have one size.

    Args:
        form: Of the segmenter.
        outputs: Names of what it returns.
        image_size: (H, W) of the images, or None for any.
    """
    batch = {0: Side("batch", 1, LARGEST)}
    images = torch.rand(2, 3, *(image_size or _EXAMPLE))
    if image_size:
        return [Stage(form.forward, {"images": images}, outputs, batch, form)]
    between = ("network_input", "given_size")
    # Maps of a single cell and a factor 1 would be cases of their own to torch, not to ONNX; and
    # of an example of few cells it takes sides for constants.
    least = max(2, -(-2 * form.smallest // form.stride))
    most = LARGEST // form.stride
    sides = {n: Side(name, least, most, form.stride) for n, name in ((2, "rows"), (3, "columns"))}
    x = torch.rand(2, 3, *(form.stride * max(least, -(-side // form.stride)) for side in _EXAMPLE))
    examples = dict(zip(between, (x, torch.tensor(x.shape[2:])), strict=True))
    return [
        Stage(form.prepare, {"images": images}, between, batch | {2: _HEIGHT, 3: _WIDTH}),
        Stage(form.segment, examples, outputs, batch | sides, form),
    ]


def compare_pixels(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> Agreement:
    values = "logits" if "logits" in expected else "scores"
    difference = np.abs(found[values] - expected[values])
    scale = max(1.0, float(np.abs(expected[values]).max())) if values == "logits" else 1.0
    agreed = difference <= _SCORE * scale
    if "labels" in expected:
        agreed &= found["labels"] == expected["labels"]
    largest = float(difference[agreed].max()) if agreed.any() else 0.0
    what = "logits" if values == "logits" else "pixels"
    return Agreement(what, agreed.size, int(agreed.sum()), {f"in {values}": largest})
