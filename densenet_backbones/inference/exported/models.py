"""Exported files as modules with the interface of the models they come from.

Legend: N images, D detections, C channels of logits, H and W pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.data.masks.run_lengths import Detections as RawDetections
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.inference.classifier import ClassifierSpec
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.exported.runtimes import Runtime, open_runtime, read_json
from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.inference.segmenter import SegmenterSpec


class ExportedDetector(nn.Module):
    """Exported detector: takes images and gives detections as torchvision's detectors do."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, images: Sequence[Tensor]) -> list[RawDetections]:
        """Detect in images (3, H, W) of floats in [0, 1]; boxes are in the images' pixels."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> RawDetections:
        height, width = image.shape[-2:]
        given = fit_images(image[None], self.runtime.fixed_size)
        outputs = self.runtime(given.float().cpu())
        count = int(outputs["num_detections"])
        boxes, scores, labels = (
            torch.from_numpy(outputs[name][:count].copy()).to(image.device)
            for name in ("boxes", "scores", "labels")
        )
        scale = boxes.new_tensor([width / given.shape[-1], height / given.shape[-2]] * 2)
        return {"boxes": boxes * scale, "scores": scores, "labels": labels}


class ExportedSegmenter(nn.Module):
    """Exported segmenter: takes images and gives logits as our segmenters do.

    Args:
        runtime: The file.
        spec: Its description.
    """

    def __init__(self, runtime: Runtime, spec: SegmenterSpec) -> None:
        super().__init__()
        self.runtime, self.spec = runtime, spec
        self.normalization = ImageNormalization(**(spec.preprocessing or {}))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of images (N, 3, H, W) of floats in [0, 1].

        A file that gives labels and their probabilities has no logits: these are such that they
        give the same labels and probabilities again.
        """
        size = images.shape[-2:]
        outputs = self.runtime(fit_images(images, self.runtime.fixed_size).float().cpu())
        if "logits" in outputs:
            logits = torch.from_numpy(outputs["logits"])
            resized = logits if logits.shape[-2:] == size else _resize(logits, size)
            return resized.to(images.device)
        labels, scores = (torch.from_numpy(outputs[n]).float() for n in ("labels", "scores"))
        if labels.ndim == 3:
            labels, scores = labels[:, None], scores[:, None]
        # Of a fixed size: classes are no numbers that could be averaged.
        labels, scores = (F.interpolate(x, size, mode="nearest-exact") for x in (labels, scores))
        return self._make_logits(labels, scores).to(images.device)

    def _make_logits(self, labels: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clamp(1e-7, 1 - 1e-7)
        if self.spec.task != "multiclass":
            return torch.where(labels > 0, scores, 1 - scores).logit()
        # The label has its probability, the other classes share what is left.
        classes = torch.arange(self.spec.num_logits)[None, :, None, None]
        others = (1 - scores) / max(self.spec.num_logits - 1, 1)
        return torch.where(labels == classes, scores, others).log()


class ExportedClassifier(nn.Module):
    """Exported classifier: takes squares of images and gives logits as our classifiers do.

    Args:
        runtime: The file.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime
        self.image_size = int(runtime.facts["image_size"])
        self.crop_pct = float(runtime.facts["crop_pct"])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, S, S) of floats in [0, 1]."""
        outputs = self.runtime(fit_images(images, self.runtime.fixed_size).float().cpu())
        return torch.from_numpy(outputs["logits"]).to(images.device)


ExportedModule = ExportedDetector | ExportedSegmenter | ExportedClassifier


def read_exported(path: Path) -> tuple[ModelSpec, ExportedModule]:
    """Return the description and the module of an exported file.

    Raises:
        CheckpointError: The file cannot be opened, or our export did not write it.
    """
    runtime = open_runtime(path)
    kinds: tuple[type[ModelSpec], ...] = (DetectorSpec, SegmenterSpec, ClassifierSpec)
    for kind in kinds:
        if isinstance(state := read_json(runtime.facts, kind.key), dict):
            try:
                spec = kind.from_dict(state)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
            return spec, _make_module(runtime, spec)
    spec = _guess_spec(runtime, path)
    return spec, _make_module(runtime, spec)


def _make_module(runtime: Runtime, spec: ModelSpec) -> ExportedModule:
    if isinstance(spec, ClassifierSpec):
        return ExportedClassifier(runtime)
    if isinstance(spec, SegmenterSpec):
        return ExportedSegmenter(runtime, spec)
    return ExportedDetector(runtime)


def _guess_spec(runtime: Runtime, path: Path) -> ModelSpec:
    """Return what the first exports wrote about their models: names of classes alone."""
    names, facts = read_json(runtime.facts, "names"), runtime.facts
    if facts.get("kind") not in ("detector", "segmenter") or not isinstance(names, list):
        raise CheckpointError(
            f"{path}: says nothing of its classes, so tools/export.py did not write it; export "
            "the model with that"
        )
    if facts["kind"] == "detector":
        return DetectorSpec(facts.get("model", ""), {}, Categories.from_names(names[1:]))
    state = {"name": facts.get("model", ""), "args": {}, "task": facts.get("task", "multiclass")}
    classes = MaskClasses.from_names(names).to_dict()
    described = {"classes": classes, "preprocessing": read_json(facts, "preprocessing")}
    return SegmenterSpec.from_entries({**state, **described})


def fit_images(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize images to the size that a file takes, if it takes one alone."""
    return images if size is None or size == images.shape[-2:] else _resize(images, size)


def _resize(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear")
