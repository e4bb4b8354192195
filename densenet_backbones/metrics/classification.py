"""Evaluation of a classifier: accuracies, confusion, scores of each class, calibration.

Legend: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from densenet_backbones.metrics.calibration import Calibration, calibrate
from densenet_backbones.metrics.undefined import divide_counts, mean_of_defined, replace_nan

TOP = 5


@dataclass(frozen=True)
class LabelScore:
    """Scores of one class; NaN where they are not defined.

    Attributes:
        name: Name of the class.
        images: Number of evaluated images of it.
        recall: Share of them that are predicted as it.
        precision: Share of the images predicted as it that are it.
        f1: Harmonic mean of both.
    """

    name: str
    images: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True)
class ClassificationEvaluation:
    """Result of an evaluation.

    Attributes:
        images: Number of images.
        numbers: "accuracy" (top-1), "top5", "mean_recall" over the classes, "macro_F1", "nll" (mean
            cross-entropy) and "ECE".
        classes: Scores of each class.
        matrix: (K, K) int64 images; rows the true class, columns the predicted one.
        calibration: Images by the probability of the predicted class.
        indices: (N,) position of each image in its set.
        labels: (N,) true class, from 0.
        predicted: (N, T) most probable classes, the best first.
        scores: (N, T) their probabilities.
    """

    images: int
    numbers: dict[str, float]
    classes: tuple[LabelScore, ...]
    matrix: np.ndarray
    calibration: Calibration
    indices: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    true_scores: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def find_mistakes(self) -> np.ndarray:
        """Return positions (M,) of wrong predictions in these arrays, the surest first."""
        wrong = np.flatnonzero(self.predicted[:, 0] != self.labels)
        return wrong[np.argsort(-self.scores[wrong, 0], kind="stable")]

    def to_dict(self) -> dict[str, object]:
        """Return the evaluation in plain JSON types; numbers that are not defined are None."""
        return {
            "images": self.images,
            "numbers": replace_nan(self.numbers),
            "classes": [replace_nan(vars(score)) for score in self.classes],
            "confusion_matrix": self.matrix.tolist(),
            "calibration": self.calibration.list_bins(),
        }


class ClassificationMetric(Metric):
    """Most probable classes of the images given to `update`.

    The states are gathered over processes, and put in the order of the images.

    Args:
        names: Class names in the order of the logits.

    Attributes:
        evaluation: Result of the last `compute`; None before.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    indices: list[Tensor]
    labels: list[Tensor]
    predicted: list[Tensor]
    scores: list[Tensor]
    true_scores: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in ("indices", "labels", "predicted", "scores", "true_scores"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.evaluation: ClassificationEvaluation | None = None

    def update(self, probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add images.

        Args:
            probabilities: (N, K) float32.
            labels: (N,) int64 true classes, from 0.
            indices: (N,) int64 position of each image in its set.

        Raises:
            ValueError: If shapes or labels do not fit.
        """
        classes = len(self.names)
        if probabilities.shape != (len(labels), classes):
            raise ValueError(
                f"probabilities must be ({len(labels)}, {classes}), got "
                f"{tuple(probabilities.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must lie in [0, {classes - 1}]")
        best = probabilities.topk(min(TOP, classes), dim=1)
        self.indices.append(indices)
        self.labels.append(labels)
        self.predicted.append(best.indices)
        self.scores.append(best.values)
        self.true_scores.append(probabilities.gather(1, labels[:, None])[:, 0])

    def compute(self) -> dict[str, float]:
        """Return the scores by name (see `ClassificationEvaluation.numbers`)."""
        names = ("indices", "labels", "predicted", "scores", "true_scores")
        gathered = {name: _join(getattr(self, name)) for name in names}
        order = np.argsort(gathered["indices"], kind="stable")
        indices, labels, predicted, scores, true = (gathered[name][order] for name in names)
        k = len(self.names)
        if not len(labels):
            predicted, scores = predicted.reshape(0, min(TOP, k)), scores.reshape(0, min(TOP, k))
        pairs = labels.astype(np.int64) * k + predicted[:, 0].astype(np.int64)
        matrix = np.bincount(pairs, minlength=k * k).reshape(k, k)
        hits, own, given = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        recall, precision = divide_counts(hits, own), divide_counts(hits, given)
        f1 = divide_counts(2 * hits, own + given)
        calibration = calibrate(scores[:, 0], predicted[:, 0] == labels)
        count = len(labels)
        numbers = {
            "accuracy": float(divide_counts(hits.sum(), count)),
            "top5": float(divide_counts((predicted == labels[:, None]).any(1).sum(), count)),
            "mean_recall": mean_of_defined(recall),
            "macro_F1": mean_of_defined(f1),
            "nll": float(-np.log(np.maximum(true, 1e-12)).mean()) if count else float("nan"),
            "ECE": calibration.error,
        }
        rows = zip(self.names, own.tolist(), recall, precision, f1, strict=True)
        self.evaluation = ClassificationEvaluation(
            count,
            numbers,
            tuple(LabelScore(n, i, float(r), float(p), float(f)) for n, i, r, p, f in rows),
            matrix,
            calibration,
            *(indices, labels, predicted, scores, true),
        )
        return numbers


def _join(parts: list[Tensor] | Tensor) -> np.ndarray:
    """Return one array of what `update` collected, or processes have joined already."""
    if isinstance(parts, Tensor):
        return parts.cpu().numpy()
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.int64)
