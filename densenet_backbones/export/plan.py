"""Plan an export: the stages of a model to write, its inputs, outputs and facts.

Legend: N images, C channels, D detections that an image can have at most, H and W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densenet_backbones.deploy import deploy, is_deployable
from densenet_backbones.export.checks import (
    Agreement,
    Results,
    compare_detections,
    compare_pixels,
)
from densenet_backbones.export.detector_form import DetectorForm, TorchvisionForm, make_export_form
from densenet_backbones.export.needs import LARGEST, SMALLEST
from densenet_backbones.export.onnx_file import Side, Stage
from densenet_backbones.export.segmenter_form import SegmenterForm
from densenet_backbones.inference.classifier import ImageClassifier
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.inference.segmenter import (
    SegmentationModel,
    compute_probabilities,
    pick_labels,
)
from densenet_backbones.messages import pluralize

__all__ = ["Output", "Plan", "make_plan"]

Output = Literal["labels", "logits"]

_HEIGHT, _WIDTH = Side("height", SMALLEST, LARGEST), Side("width", SMALLEST, LARGEST)
_EXAMPLE = (256, 320)  # H and W that differ from each other, and whose halves do


@dataclass(frozen=True)
class Plan:
    """Model as it is exported.

    Attributes:
        stages: Makes the stages to write, for images of the given (H, W), or None for any.
        channels: Number of channels of an image, C.
        input_name: Name of the input, (N, C, H, W).
        outputs: Name and description of each output.
        batch: True if N may be other than 1.
        facts: Metadata of the file besides inputs and outputs.
        expected: Computes the model's own results on images (N, C, H, W).
        compare: Compares the file's results with the model's.
        size: (H, W) of all images, where the file takes one size.
    """

    stages: Callable[[Sequence[int] | None], list[Stage]]
    channels: int
    input_name: str
    outputs: Mapping[str, str]
    batch: bool
    facts: JsonDict
    expected: Callable[[Tensor], Results]
    compare: Callable[[Results, Results], Agreement]
    size: tuple[int, int] | None = None


def make_plan(
    model: Detector | SegmentationModel | ImageClassifier, output: Output | None = None
) -> Plan:
    """Plan the export of a model.

    Args:
        model: Model as `load` returns it, on the CPU.
        output: Output of a segmenter: "labels" (the default) or "logits".

    Raises:
        ValueError: The model has no form for export, or ``output`` is given for a detector.
    """
    if isinstance(model, SegmentationModel):
        return _plan_segmenter(model, output or "labels")
    if output is not None:
        raise ValueError(
            f"--output {output} is for segmenters; this file holds a {model.spec.kind}"
        )
    return _plan_classifier(model) if isinstance(model, ImageClassifier) else _plan_detector(model)


def _fold(model: nn.Module) -> nn.Module:
    """Return the deployed form, whose graph has fewer operations."""
    return deploy(model, for_export=True) if is_deployable(model) else model


# ------------------------------------------------------------------------------ detectors


def _plan_detector(detector: Detector) -> Plan:
    # The folded network is written, and compared with the model as it was trained.
    form = make_export_form(_fold(detector.model))
    size = form.selection.detections_per_img

    @torch.inference_mode()
    def compute_expected(images: Tensor) -> Results:
        (detections,) = detector.model(list(images))
        return {name: detections[name].numpy() for name in ("boxes", "scores", "labels")}

    outputs = {
        "boxes": f"({size}, 4) float32, xyxy in pixels of the image; best first, then zeros",
        "scores": f"({size},) float32, falling, then zeros",
        "labels": f"({size},) int64, places in names, then zeros",
        "num_detections": "() int64, how many detections there are before the zeros",
    }
    return Plan(
        stages=lambda image_size: split_detector(form, tuple(outputs), image_size),
        channels=form.channels,
        input_name="image",
        outputs=outputs,
        batch=False,
        facts={
            detector.spec.key: detector.spec.to_dict(),
            "kind": "detector",
            "model": detector.spec.name,
            "names": ["background", *detector.categories.names],
            "resized": _describe_resizing(form),
            "preprocessing": _describe_preprocessing(form),
            "score_thresh": form.selection.score_thresh,
            "nms_thresh": form.selection.nms_thresh,
        },
        expected=compute_expected,
        compare=compare_detections,
    )


def split_detector(
    form: DetectorForm, outputs: Sequence[str], image_size: Sequence[int] | None
) -> list[Stage]:
    """Split a detector into stages; one is enough if the network's input has one size.

    Args:
        form: Form of the detector.
        outputs: Names of its outputs.
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
    least = max(2, form.measure_coarsest_stride() // divisor + 1)
    most = max(least + 1, -(-form.transform.max_size // divisor))
    sides = {2: Side("rows", least, most, divisor), 3: Side("columns", least, most, divisor)}
    x = torch.rand(1, form.channels, least * divisor, (least + 1) * divisor)
    examples = (x, torch.tensor(x.shape[2:]).float(), torch.tensor(x.shape[2:]).float())
    return [
        Stage(form.prepare, {"image": image}, between, varying),
        Stage(form.detect, dict(zip(between, examples, strict=True)), outputs, sides, form),
    ]


def _describe_resizing(form: DetectorForm) -> str:
    if form.fixed_size is not None:
        height, width = form.fixed_size
        return f"inside, to {height} x {width}"
    shorter, longer = form.transform.min_size[-1], form.transform.max_size
    return f"inside: the shorter side to {shorter}, the longer to {longer} at most"


def _describe_preprocessing(form: DetectorForm) -> JsonDict:
    """Return the pre-processing, all of which is in the graph."""
    if hasattr(form.transform, "to_dict"):
        described: JsonDict = form.transform.to_dict()
        return described
    return {"mean": list(form.transform.image_mean), "std": list(form.transform.image_std)}


# ------------------------------------------------------------------------------ classifiers


def _plan_classifier(model: ImageClassifier) -> Plan:
    as_trained: Any = model.model
    form = ClassifierForm(_fold(as_trained))
    outputs = {"logits": f"(N, {len(model.spec.class_names)}) float32; softmax gives probabilities"}

    def split(image_size: Sequence[int] | None) -> list[Stage]:
        images = torch.rand(2, 3, *(image_size or (model.size, model.size)))
        batch = {0: Side("batch", 1, LARGEST)}
        return [Stage(form.forward, {"images": images}, tuple(outputs), batch, form)]

    @torch.inference_mode()
    def compute_expected(images: Tensor) -> Results:
        return {"logits": as_trained(images).numpy()}

    return Plan(
        stages=split,
        channels=3,
        input_name="images",
        outputs=outputs,
        batch=True,
        facts={
            model.spec.key: model.spec.to_dict(),
            "kind": "classifier",
            "model": model.spec.name,
            "names": list(model.spec.class_names),
            "image_size": model.size,
            "crop_pct": model.crop_pct,
            "resized": f"before: the shorter side to {round(model.size / model.crop_pct)}, then "
            f"the middle {model.size} x {model.size}",
            "preprocessing": as_trained.normalization.to_dict(),
        },
        expected=compute_expected,
        compare=compare_pixels,
        size=(model.size, model.size),
    )


class ClassifierForm(nn.Module):
    """Classifier as one graph, from images to logits, in evaluation mode.

    Args:
        model: The classifier; it is used, not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Turn images (N, 3, S, S), RGB floats 0..1, into logits (N, K)."""
        return (self.model.net(self.model.normalize(images)),)


# ------------------------------------------------------------------------------ segmenters


def _plan_segmenter(model: SegmentationModel, output: Output) -> Plan:
    task = model.spec.task

    def finish(logits: Tensor) -> tuple[Tensor, ...]:
        if output == "logits":
            return (logits,)
        return pick_labels(compute_probabilities(logits, task), task)

    # The folded network is written, and compared with the one as it was trained.
    segmenter: Any = model.model
    as_trained = SegmenterForm(segmenter, finish)
    segmenter = _fold(segmenter)
    form = SegmenterForm(segmenter, finish)
    layers = model.classes.num_classes if task == "multilabel" else 0
    shape = f"(N, {layers}, H, W)" if layers else "(N, H, W)"
    outputs = {"logits": f"(N, {model.spec.num_logits}, H, W) float32"}
    if output == "labels":
        meaning = (
            f"0 or 1 for each of the {pluralize(layers, 'name')}" if layers else "places in names"
        )
        outputs = {
            "labels": f"{shape} uint8, {meaning}",
            "scores": f"{shape} float32 in 0..1, the probability of labels",
        }

    @torch.inference_mode()
    def compute_expected(images: Tensor) -> Results:
        return dict(zip(outputs, (x.numpy() for x in as_trained(images)), strict=True))

    return Plan(
        stages=lambda image_size: split_segmenter(form, tuple(outputs), image_size),
        channels=3,
        input_name="images",
        outputs=outputs,
        batch=True,
        facts={
            model.spec.key: model.spec.to_dict(),
            "kind": "segmenter",
            "model": model.spec.name,
            "task": task,
            "names": list(model.classes.names),
            "resized": "never: results have the images' size",
            "preprocessing": segmenter.normalization.to_dict(),
        },
        expected=compute_expected,
        compare=compare_pixels,
    )


def split_segmenter(
    form: SegmenterForm, outputs: Sequence[str], image_size: Sequence[int] | None
) -> list[Stage]:
    """Split a segmenter into stages; one is enough if the images have one size.

    Args:
        form: Form of the segmenter.
        outputs: Names of its outputs.
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
