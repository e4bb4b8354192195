"""Segmentation's numbers, collected image by image and over processes.

Legend: N images, H x W pixels, K classes (labels, where an image may have several).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from densenet_backbones.data.mask_samples import IGNORED, MaskTask
from densenet_backbones.metrics.boundary import TOLERANCE, boundary_scores

_ONE = 2**40
"""Scores are summed as whole numbers of this part of 1: sums of those do not depend on the order,
so that many processes find what one finds."""


@dataclass(frozen=True)
class ClassScore:
    """One class's numbers; NaN where there is nothing to divide by.

    Attributes:
        name: Of the class.
        pixels: Annotated pixels of it.
        iou: Intersection over union.
        accuracy: Share of its annotated pixels that were found (recall).
        precision: Share of the pixels given to it that are right.
        boundary_f: Mean of the boundary F-score over the images where it has a border.
    """

    name: str
    pixels: int
    iou: float
    accuracy: float
    precision: float
    boundary_f: float


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """What a finished evaluation found.

    Attributes:
        task: "multiclass", "binary" or "multilabel".
        images: How many were evaluated.
        numbers: mIoU, pixel_accuracy, class_accuracy (mean over the classes), boundary_F.
        classes: One row a class, in label order.
        matrix: int64 pixels, rows the true and columns the predicted class: (K, K), or (K, 2, 2)
            for "multilabel", one matrix a label.
    """

    task: MaskTask
    images: int
    numbers: dict[str, float]
    classes: tuple[ClassScore, ...]
    matrix: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not defined are None."""
        return {
            "task": self.task,
            "images": self.images,
            "numbers": {name: _defined(value) for name, value in self.numbers.items()},
            "classes": [
                {
                    name: _defined(value) if isinstance(value, float) else value
                    for name, value in vars(score).items()
                }
                for score in self.classes
            ],
            "confusion_matrix": self.matrix.tolist(),
        }


class SegmentationMetric(Metric):
    """Confusion matrix and boundary scores of the images that were updated.

    The numbers are those of the whole set: pixels of all images count alike in the confusion
    matrix. Ignored pixels (255) are in no number. IoU equals torchmetrics'
    `MulticlassJaccardIndex(ignore_index=255)`, or `MultilabelJaccardIndex`; its mean is over the
    classes that are annotated or predicted anywhere.

    All states are int64 and are summed over processes: any number of them finds the same.

    Args:
        names: Class names in label order; two for "binary", the negative one first.
        task: "multiclass" or "binary": every pixel has one of the K labels. "multilabel": 1 or 0
            for each label.
        tolerance: Of boundaries, as a share of the image's diagonal; None leaves boundary scores
            out, which take longer than all the rest.

    Attributes:
        evaluation: What the last `compute` found; None before.

    Raises:
        ValueError: There is no class, or not two for "binary".
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    matrix: Tensor  # (K, K), or (K, 2, 2) for "multilabel"
    images: Tensor  # ()
    boundary_sums: Tensor  # (K,), parts of `_ONE`
    boundary_counts: Tensor  # (K,)
    image_sum: Tensor  # ()
    image_count: Tensor  # ()

    def __init__(
        self,
        names: Sequence[str],
        task: MaskTask = "multiclass",
        tolerance: float | None = TOLERANCE,
    ) -> None:
        super().__init__()
        if not names or (task == "binary" and len(names) != 2):
            raise ValueError(
                f"names must be those of the classes, two for a binary task; got {list(names)} "
                f"for {task}"
            )
        self.names, self.task, self.tolerance = tuple(names), task, tolerance
        k = len(self.names)
        sizes: dict[str, tuple[int, ...]] = {
            "matrix": (k, 2, 2) if task == "multilabel" else (k, k),
            "images": (),
            "boundary_sums": (k,),
            "boundary_counts": (k,),
            "image_sum": (),
            "image_count": (),
        }
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.evaluation: SegmentationEvaluation | None = None

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take some images of one size.

        Args:
            predictions: (N, H, W) labels, of any whole type; (N, K, H, W) of 0 and 1 for
                "multilabel".
            targets: Of the same shape, with 255 where a pixel does not count.

        Raises:
            ValueError: The shapes differ, or a label is out of range.
        """
        dimensions = 4 if self.task == "multilabel" else 3
        if predictions.shape != targets.shape or predictions.dim() != dimensions:
            raise ValueError(
                f"predictions and targets must have one shape of {dimensions} dimensions, got "
                f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
            )
        highest = 2 if self.task == "multilabel" else len(self.names)
        valid = targets != IGNORED
        for what, labels in (("predictions", predictions), ("targets", targets[valid])):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < highest:
                raise ValueError(
                    f"{what} must lie in [0, {highest - 1}], got {int(labels.min())} to "
                    f"{int(labels.max())}"
                )
        self.images += len(targets)
        if self.task == "multilabel":
            for label, counted in enumerate(valid.unbind(1)):
                pair = predictions[:, label][counted], targets[:, label][counted]
                self.matrix[label] += _counts(*pair, 2)
        else:
            self.matrix += _counts(predictions[valid], targets[valid], highest)
        if self.tolerance is not None:
            for prediction, target in zip(predictions, targets, strict=True):
                self._add_boundaries(prediction.cpu().numpy(), target.cpu().numpy())

    def compute(self) -> dict[str, float]:
        """The four numbers by name (see `SegmentationEvaluation.numbers`), NaN where undefined."""
        matrix = self.matrix.cpu().numpy()
        if self.task == "multilabel":
            hits, true, found = matrix[:, 1, 1], matrix[:, 1].sum(1), matrix[:, :, 1].sum(1)
            right, all_pixels = (matrix[:, 0, 0] + hits).sum(), matrix.sum()
        else:
            hits, true, found = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
            right, all_pixels = hits.sum(), matrix.sum()
        iou, accuracy = _ratio(hits, true + found - hits), _ratio(hits, true)
        precision = _ratio(hits, found)
        boundary = _ratio(self.boundary_sums.cpu().numpy() / _ONE, self.boundary_counts.cpu())
        numbers = {
            "mIoU": _mean(iou),
            "pixel_accuracy": float(_ratio(right, all_pixels)),
            "class_accuracy": _mean(accuracy),
        }
        if self.tolerance is not None:
            sums = float(self.image_sum) / _ONE
            numbers["boundary_F"] = float(_ratio(sums, float(self.image_count)))
        rows = zip(self.names, true, iou, accuracy, precision, boundary, strict=True)
        classes = (ClassScore(n, int(t), *map(float, values)) for n, t, *values in rows)
        images = int(self.images)
        self.evaluation = SegmentationEvaluation(self.task, images, numbers, tuple(classes), matrix)
        return numbers

    def _add_boundaries(self, prediction: np.ndarray, target: np.ndarray) -> None:
        assert self.tolerance is not None
        if self.task == "multilabel":
            pairs = zip(prediction, target, strict=True)
            scores = np.array([boundary_scores(p, t, 2, self.tolerance)[1] for p, t in pairs])
        else:
            scores = boundary_scores(prediction, target, len(self.names), self.tolerance)
        defined = ~np.isnan(scores)
        parts = np.round(np.where(defined, scores, 0) * _ONE).astype(np.int64)
        self.boundary_sums += torch.from_numpy(parts).to(self.device)
        self.boundary_counts += torch.from_numpy(defined.astype(np.int64)).to(self.device)
        if defined.any():
            self.image_sum += round(float(scores[defined].mean()) * _ONE)
            self.image_count += 1


def _counts(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64, rows the true label, columns the predicted one."""
    pairs = targets.long() * classes + predictions.long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Quotients as float64, NaN where there is nothing to divide by."""
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value
