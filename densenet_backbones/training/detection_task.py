"""Training and evaluation of a detector."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from densenet_backbones.data.samples import Categories, DetectionSet, Sample
from densenet_backbones.inference.detection_views import DetectionViews, detect
from densenet_backbones.inference.detector import Detector, DetectorSpec
from densenet_backbones.inference.image_tensors import to_float
from densenet_backbones.metrics.coco import CocoMetric
from densenet_backbones.metrics.learned import (
    COCO_KEYPOINTS,
    IOU_TYPES,
    allow_channels_last,
    evaluated_truth,
    headline_of,
    keypoint_sigmas,
    learned_by,
    with_keypoints,
)
from densenet_backbones.reporting.instance_pictures import (
    collect_annotations,
    draw_beside_ground_truth,
    draw_instances,
    select_confident,
)
from densenet_backbones.reporting.pictures import make_sheet, to_pixels
from densenet_backbones.stages import DenseStages
from densenet_backbones.training.optimization import Optimizer, Schedule, images_per_step
from densenet_backbones.training.task import MemoryOption, NonFiniteLossError, Task

__all__ = ["DetectionTask", "NonFiniteLossError", "Optimizer", "Schedule", "images_per_step"]


class DetectionTask(Task):
    """Trains any detector with torchvision's interface and evaluates it as COCO does.

    Args:
        detector: Name in torchvision's registry: `dsod300`, `retinanet_densenet121_fpn`,
            `maskrcnn_densenet121_fpn`, ….
        args: Keyword arguments of that detector, without `num_classes`.
        optimizer: What steps the weights.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side: several times faster
            for convolutions on CPUs and for half precision on GPUs.
        seed: Everything random inside the model is a function of (seed, step, process).
        memory: What dense blocks keep for the backward pass: "none" (all), "shared", "bottleneck",
            "shared_lean", "layer" or "block"; "auto" takes the fastest one that fits
            `memory_budget`; null leaves it to `args`. Losses and gradients stay the same.
        memory_budget: GiB that "auto" lets the DenseNet, without neck and heads, keep between
            forward and backward pass; null for half of the memory that is free beside the weights.
        evaluator: "pycocotools", or "faster_coco_eval" for equal numbers in less time.
        categories: The classes; given by the data.

    Attributes:
        target_types: Annotations that the detector learns from: boxes, and perhaps masks or
            keypoints. All are evaluated, and the last one says which weights are best.
        views: How the evaluated images are looked at, where not as the detector does.
    """

    spec: DetectorSpec
    headline: tuple[str, ...] = ("AP", "AP50")
    look_at = "boxes"

    def __init__(
        self,
        detector: str = "dsod300",
        args: dict[str, Any] | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008 - never changed; --help shows them
        schedule: Schedule = Schedule(),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        memory: MemoryOption | None = None,
        memory_budget: float | None = None,
        evaluator: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        categories: Categories | None = None,
    ) -> None:
        assert categories is not None, "linked from the data"
        args = with_keypoints(detector, dict(args or {}), categories)
        spec = DetectorSpec(detector, args, categories)
        super().__init__(spec, optimizer, schedule, channels_last, seed, memory, memory_budget)
        self.evaluator = evaluator
        allow_channels_last(self.model)
        self.target_types = learned_by(self.model)
        if len(self.target_types) > 1:
            self.headline = headline_of(self.target_types)
        self.views: DetectionViews | None = None

    @classmethod
    def from_detector(cls, detector: Detector, **options: Any) -> "DetectionTask":
        """A task that evaluates a loaded detector (or goes on training it)."""
        task = cls(
            detector.spec.name,
            {**detector.spec.args, **detector.spec.without_downloads()},
            categories=detector.categories,
            **options,
        )
        task.adopt(detector.spec, detector.model, options.get("channels_last", True))
        return task

    @property
    def monitor(self) -> str:
        """AP of the last thing that is learned."""
        return f"val/{headline_of(self.target_types)[-1]}"

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """The detector's own losses, by name."""
        images = [to_float(sample.image) for sample in batch]
        targets = [
            {name: getattr(sample, name) for name in ("boxes", "labels", *self.target_types[1:])}
            for sample in batch
        ]
        found: dict[str, Tensor] = self.model(images, targets)
        return found

    def example(self, data: Any) -> tuple[Any, tuple[int, int]]:
        """One image of the detector's own size, or of that to which it brings the first one."""
        size = self.training_size(data)
        return [torch.rand(3, *size, device=next(self.model.parameters()).device)], size

    def training_size(self, data: Any) -> tuple[int, int]:
        """The detector's own size, or that to which it brings the first image."""
        size = getattr(self.model, "image_size", None)
        if size is None:
            first = data.train_set.records[0]
            device = next(self.model.parameters()).device
            image = torch.zeros(3, first.height, first.width, device=device)
            transform = copy.deepcopy(self.model.transform).eval()  # draws no size then
            size = transform([image])[0].image_sizes[0]
        height, width = size
        return height, width

    def planned_part(self, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
        """The DenseNet, as boxes decide how much the heads keep; batches are padded for it."""
        part = next((m for m in self.model.modules() if isinstance(m, DenseStages)), self.model)
        divisor = getattr(getattr(self.model, "transform", None), "size_divisible", 1)
        height, width = (side + -side % divisor for side in size)
        return part, (height, width)

    def make_metric(self, val_set: DetectionSet) -> CocoMetric:
        """COCO's numbers of all that is learned."""
        keypoints = self.spec.args.get("num_keypoints", COCO_KEYPOINTS)
        return CocoMetric(
            evaluated_truth(val_set, self.target_types, keypoints),
            self.spec.categories,
            [IOU_TYPES[what] for what in self.target_types],
            backend=self.evaluator,
            keypoint_sigmas=keypoint_sigmas(keypoints)
            if "keypoints" in self.target_types
            else None,
        )

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, Any]:
        """Detections of a batch, added to the evaluation; masks as run-length codes at once."""
        found = detect(self.model, [to_float(sample.image) for sample in batch], self.views)
        predictions = [
            {**in_float32(f), "image_id": sample.image_id}
            for sample, f in zip(batch, found, strict=True)
        ]
        self.metric.update(predictions)
        return {"predictions": predictions}

    def draw_batch(self, batch: Sequence[Sample]) -> np.ndarray:
        """The images with their objects, as augmented."""
        names, skeleton = self.spec.categories.names, self.spec.categories.skeleton
        return make_sheet(
            [
                draw_instances(to_pixels(s.image), collect_annotations(s), names, skeleton)
                for s in batch
            ]
        )

    def draw_predictions(self, batch: Sequence[Sample], outputs: dict[str, Any]) -> np.ndarray:
        """Annotated objects on the left, detected ones on the right."""
        return draw_beside_ground_truth(
            [to_pixels(s.image) for s in batch],
            [collect_annotations(s) for s in batch],
            [select_confident(p) for p in outputs["predictions"][: len(batch)]],
            self.spec.categories.names,
            skeleton=self.spec.categories.skeleton,
        )


def in_float32(detections: dict[str, Any]) -> dict[str, Any]:
    """Detections of one image whose numbers may be of half precision."""

    def full(values: Any) -> Any:
        half = isinstance(values, Tensor) and values.is_floating_point()
        return values.float() if half else values

    return {name: full(values) for name, values in detections.items()}
