"""Segmentation metric: IoU, accuracies and boundary scores, collected over images and processes.

mIoU and accuracies follow Long et al., "Fully Convolutional Networks for Semantic Segmentation"
(CVPR 2015, section 5): all pixels of the set are counted in one confusion matrix. IoU equals
torchmetrics' `MulticlassJaccardIndex(ignore_index=255)`, or `MultilabelJaccardIndex`. The boundary
F-score is Csurka et al.'s (`metrics/boundary.py`).

Legend: N images, H x W pixels, K classes (labels, where an image may have several).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from densenet_backbones.data.mask_samples import IGNORED, MaskTask
from densenet_backbones.metrics.boundary import TOLERANCE, boundary_scores
from densenet_backbones.metrics.undefined import divide_counts, mean_of_defined, replace_nan

_ONE = 2**40
"""Boundary scores are summed as whole multiples of 1 / `_ONE`: integer sums do not depend on the
order, so that the result is the same on any number of processes."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class; NaN where there is nothing to divide by.

    Attributes:
        name: Name of the class.
        pixels: Number of pixels annotated as this class.
        iou: Intersection over union.
        accuracy: Share of its annotated pixels that are predicted as it (recall).
        precision: Share of the pixels predicted as it that are annotated so.
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
    """Result of a finished evaluation.

    Attributes:
        task: "multiclass", "binary" or "multilabel".
        images: Number of images evaluated.
        numbers: Scores of the whole set by name: mIoU, pixel_accuracy, class_accuracy (mean over
            the classes) and boundary_F, each in [0, 1].
        classes: One row a class, in label order.
        matrix: int64 counts of pixels, rows the true and columns the predicted class: (K, K), or
            (K, 2, 2) for "multilabel", one matrix a label.
        image_scores: Mean IoU of each image of the set, over the classes annotated or predicted in
            it; NaN for images that were not evaluated or have no pixel that counts.
    """

    task: MaskTask
    images: int
    numbers: dict[str, float]
    classes: tuple[ClassScore, ...]
    matrix: np.ndarray
    image_scores: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def to_dict(self) -> dict[str, object]:
        """Return the evaluation in plain JSON types; numbers that are not defined are None."""
        return {
            "task": self.task,
            "images": self.images,
            "numbers": replace_nan(self.numbers),
            "classes": [replace_nan(vars(score)) for score in self.classes],
            "confusion_matrix": self.matrix.tolist(),
        }


class SegmentationMetric(Metric):
    """Confusion matrix and boundary scores of the images given to `update`.

    Scores are those of the whole set: pixels of all images count alike in the confusion matrix.
    Ignored pixels (255) are in no number. The mean IoU is over the classes that are annotated or
    predicted anywhere.

    All states are int64 and summed over processes, so that any number of processes gives the same.

    Args:
        names: Class names in label order; two for "binary", the negative one first.
        task: "multiclass" or "binary": every pixel has one of the K labels. "multilabel": 1 or 0
            for each label.
        tolerance: Distance by which a border may be off, as a share of the image's diagonal; None
            leaves boundary scores out, which take longer than all the rest.
        records: Number of images of the set, of each of which the mean IoU is kept.

    Attributes:
        evaluation: Result of the last `compute`; None before.

    Raises:
        ValueError: If there is no class, or not two for "binary".
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
    record_scores: Tensor  # (records,), parts of `_ONE` and 1 more; 0 for images not seen

    def __init__(
        self,
        names: Sequence[str],
        task: MaskTask = "multiclass",
        tolerance: float | None = TOLERANCE,
        records: int = 0,
    ) -> None:
        super().__init__()
        if not names or (task == "binary" and len(names) != 2):
            raise ValueError(
                f"names must be those of the classes, two for a binary task; got {list(names)} "
                f"for {task}"
            )
        self.names, self.task, self.tolerance = tuple(names), task, tolerance
        # Counts in int64, which processes can add up without rounding.
        k = len(self.names)
        sizes: dict[str, tuple[int, ...]] = {
            "matrix": (k, 2, 2) if task == "multilabel" else (k, k),
            "images": (),
            "boundary_sums": (k,),
            "boundary_counts": (k,),
            "image_sum": (),
            "image_count": (),
            "record_scores": (records,),
        }
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.evaluation: SegmentationEvaluation | None = None

    def update(
        self, predictions: Tensor, targets: Tensor, indices: Sequence[int] | None = None
    ) -> None:
        """Add images of one size.

        Args:
            predictions: (N, H, W) labels of any integer type; (N, K, H, W) of 0 and 1 for
                "multilabel".
            targets: Labels of the same shape, with 255 where a pixel does not count.
            indices: Place of each image in the set, whose own scores are then kept.

        Raises:
            ValueError: If the shapes differ, or a label is out of range.
        """
        dimensions = 4 if self.task == "multilabel" else 3
        if predictions.shape != targets.shape or predictions.dim() != dimensions:
            raise ValueError(
                f"predictions and targets must have one shape of {dimensions} dimensions, got "
                f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
            )
        classes = 2 if self.task == "multilabel" else len(self.names)
        # Labels out of range would be counted in another class's cell.
        valid = targets != IGNORED
        for what, labels in (("predictions", predictions), ("targets", targets[valid])):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise ValueError(
                    f"{what} must lie in [0, {classes - 1}], got {int(labels.min())} to "
                    f"{int(labels.max())}"
                )
        self.images += len(targets)
        for n in range(len(targets)):
            matrix = count_pixels(predictions[n], targets[n], self.task, len(self.names))
            self.matrix += matrix
            if indices is not None:
                iou = _measure_iou(matrix.cpu().numpy())[0]
                score = mean_of_defined(iou)
                self.record_scores[indices[n]] = 0 if np.isnan(score) else round(score * _ONE) + 1
        if self.tolerance is not None:
            for prediction, target in zip(predictions, targets, strict=True):
                self._add_boundaries(prediction.cpu().numpy(), target.cpu().numpy())

    def compute(self) -> dict[str, float]:
        """Return the scores by name (see `SegmentationEvaluation.numbers`), NaN if undefined."""
        matrix = self.matrix.cpu().numpy()
        iou, hits, true, predicted = _measure_iou(matrix)
        correct = hits.sum() + (matrix[:, 0, 0].sum() if matrix.ndim == 3 else 0)
        # Scores of each class, and their means.
        accuracy, precision = divide_counts(hits, true), divide_counts(hits, predicted)
        boundary = divide_counts(
            self.boundary_sums.cpu().numpy() / _ONE, self.boundary_counts.cpu().numpy()
        )
        numbers = {
            "mIoU": mean_of_defined(iou),
            "pixel_accuracy": float(divide_counts(correct, matrix.sum())),
            "class_accuracy": mean_of_defined(accuracy),
        }
        if self.tolerance is not None:
            total = float(self.image_sum) / _ONE
            numbers["boundary_F"] = float(divide_counts(total, float(self.image_count)))
        rows = zip(self.names, true, iou, accuracy, precision, boundary, strict=True)
        classes = (ClassScore(n, int(t), *map(float, values)) for n, t, *values in rows)
        images = int(self.images)
        parts = self.record_scores.cpu().numpy()
        scores = np.where(parts > 0, (parts - 1) / _ONE, np.nan)
        self.evaluation = SegmentationEvaluation(
            self.task, images, numbers, tuple(classes), matrix, scores
        )
        return numbers

    def _add_boundaries(self, prediction: np.ndarray, target: np.ndarray) -> None:
        assert self.tolerance is not None
        if self.task == "multilabel":
            pairs = zip(prediction, target, strict=True)
            scores = np.array([boundary_scores(p, t, 2, self.tolerance)[1] for p, t in pairs])
        else:
            scores = boundary_scores(prediction, target, len(self.names), self.tolerance)
        # Sums over the images where a class has a border, and over images of their own mean.
        defined = ~np.isnan(scores)
        parts = np.round(np.where(defined, scores, 0) * _ONE).astype(np.int64)
        self.boundary_sums += torch.from_numpy(parts).to(self.device)
        self.boundary_counts += torch.from_numpy(defined.astype(np.int64)).to(self.device)
        if defined.any():
            self.image_sum += round(float(scores[defined].mean()) * _ONE)
            self.image_count += 1


def count_pixels(predictions: Tensor, targets: Tensor, task: MaskTask, classes: int) -> Tensor:
    """Count the pixels of an image by true and predicted label.

    Args:
        predictions: (H, W) labels; (K, H, W) of 0 and 1 for "multilabel".
        targets: The same of the annotations, with 255 where a pixel does not count.
        task: How classes share pixels.
        classes: K.

    Returns:
        int64 counts, rows the true and columns the predicted class: (K, K), or (K, 2, 2) for
        "multilabel", one matrix a label.
    """
    valid = targets != IGNORED
    if task != "multilabel":
        return _count_pairs(predictions[valid], targets[valid], classes)
    labels = zip(predictions, targets, valid, strict=True)
    return torch.stack([_count_pairs(p[counted], t[counted], 2) for p, t, counted in labels])


def _measure_iou(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return IoU, hits, true and predicted pixels of each class, (K,) each."""
    if matrix.ndim == 3:  # a matrix a label
        hits, true, predicted = matrix[:, 1, 1], matrix[:, 1].sum(1), matrix[:, :, 1].sum(1)
    else:
        hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return divide_counts(hits, true + predicted - hits), hits, true, predicted


def _count_pairs(predictions: Tensor, targets: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts, rows the true label, columns the predicted one.

    Our own, and not torchmetrics' `multiclass_confusion_matrix`: where deterministic algorithms are
    on, that one compares each pixel with all classes^2 pairs (21 classes, 256x256 pixels: a second
    and a gigabyte in place of half a millisecond).
    """
    pairs = targets.long() * classes + predictions.long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
