"""Training and evaluation of a detector."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from densenet_backbones.data.samples import Categories, DetectionSet, Sample
from densenet_backbones.training.coco_metric import CocoMetric
from densenet_backbones.training.detector import Detector, DetectorSpec, to_float
from densenet_backbones.training.optimization import Optimizer, Schedule, images_per_step
from densenet_backbones.training.pictures import (
    draw_detections,
    ground_truth_beside_predictions,
    montage,
    to_pixels,
)
from densenet_backbones.training.task import NonFiniteLossError, Task

__all__ = ["DetectionTask", "NonFiniteLossError", "Optimizer", "Schedule", "images_per_step"]

SHOWN_SCORE = 0.5
"""Detections below this score are left out of pictures."""


class DetectionTask(Task):
    """Trains any detector with torchvision's interface and evaluates it as COCO does.

    Args:
        detector: Name in torchvision's registry: `dsod300`, `dsod300_smallest`, `dsod_tiny`, ….
        args: Keyword arguments of that detector, without `num_classes`.
        optimizer: What steps the weights.
        schedule: The learning rate over the run.
        channels_last: Keep maps in memory with their channels side by side: several times faster
            for convolutions on CPUs and for half precision on GPUs.
        seed: Everything random inside the model is a function of (seed, step, process).
        evaluator: "pycocotools", or "faster_coco_eval" for equal numbers in less time.
        categories: The classes; given by the data.
    """

    spec: DetectorSpec
    headline = ("AP", "AP50")
    look_at = "boxes"

    def __init__(
        self,
        detector: str = "dsod300",
        args: dict[str, Any] | None = None,
        optimizer: Optimizer = Optimizer(),  # noqa: B008 - never changed; --help shows them
        schedule: Schedule = Schedule(),  # noqa: B008
        channels_last: bool = True,
        seed: int = 0,
        evaluator: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        categories: Categories | None = None,
    ) -> None:
        assert categories is not None, "linked from the data"
        spec = DetectorSpec(detector, dict(args or {}), categories)
        super().__init__(spec, optimizer, schedule, channels_last, seed)
        self.evaluator = evaluator

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

    def losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """The detector's own losses, by name."""
        images = [to_float(sample.image) for sample in batch]
        targets = [{"boxes": sample.boxes, "labels": sample.labels} for sample in batch]
        found: dict[str, Tensor] = self.model(images, targets)
        return found

    def example(self, data: Any) -> tuple[Any, tuple[int, int]] | None:
        """One image of the detector's own size, where it has one."""
        size = getattr(self.model, "image_size", None)
        if size is None:
            return None
        device = next(self.model.parameters()).device
        return [torch.rand(3, *size, device=device)], size

    def make_metric(self, val_set: DetectionSet) -> CocoMetric:
        """COCO's numbers."""
        ground_truth = val_set.ground_truth()
        return CocoMetric(ground_truth, self.spec.categories, backend=self.evaluator)

    def validation_step(self, batch: list[Sample], batch_idx: int) -> dict[str, Any]:
        """Detections of a batch, added to the evaluation."""
        found = self.model([to_float(sample.image) for sample in batch])
        predictions = [
            {
                **{k: v.float() if v.is_floating_point() else v for k, v in f.items()},
                "image_id": sample.image_id,
            }
            for sample, f in zip(batch, found, strict=True)
        ]
        self.metric.update(predictions)
        return {"predictions": predictions}

    def draw_batch(self, batch: Sequence[Sample]) -> np.ndarray:
        """The images with their boxes, as augmented."""
        boxes = [(s.boxes.cpu().numpy(), s.labels.cpu().numpy()) for s in batch]
        pairs = zip((to_pixels(s.image) for s in batch), boxes, strict=True)
        names = self.spec.categories.names
        return montage([draw_detections(image, *found, names) for image, found in pairs])

    def draw_predictions(self, batch: Sequence[Sample], outputs: dict[str, Any]) -> np.ndarray:
        """Annotated boxes on the left, detected ones on the right."""
        return ground_truth_beside_predictions(
            [to_pixels(s.image) for s in batch],
            [(s.boxes.cpu().numpy(), s.labels.cpu().numpy()) for s in batch],
            [confident(p) for p in outputs["predictions"][: len(batch)]],
            self.spec.categories.names,
        )


def confident(
    prediction: dict[str, Any], score: float = SHOWN_SCORE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, labels and scores of the detections worth drawing."""
    arrays = {
        k: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v)
        for k, v in prediction.items()
        if k in ("boxes", "labels", "scores")
    }
    keep = arrays["scores"] >= score
    return arrays["boxes"][keep], arrays["labels"][keep], arrays["scores"][keep]
