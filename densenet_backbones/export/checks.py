"""Check an exported file: compare its results with those of the model on the same images.

Legend: D detections that an image can have at most, N images, K channels, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Agreement", "Results", "compare_detections", "compare_pixels"]

Results = Mapping[str, np.ndarray]
"""Outputs of a file or a model by their names."""

# Two computations of one detection differ by less, in scores and in pixels: float32 sums in another
# order.
_SCORE, _BOX = 1e-3, 0.5
# The part that may differ by more: two boxes whose overlap is the threshold of non-maximum
# suppression to the last digit, a pixel between two classes. Of a few, one may.
_MAY_DIFFER, _FEW = 0.01, 10


@dataclass(frozen=True)
class Agreement:
    """Number of results of a file that are those of the model.

    Attributes:
        unit: Name of the compared things, in the plural.
        total: Number of them.
        agreed: Number of those that agree.
        largest: Largest difference of each kind among those that agree.
    """

    unit: str
    total: int
    agreed: int
    largest: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """True if all agree, but for what rounding can change."""
        one = self.total >= _FEW  # of a few, one is no rounding
        return self.total - self.agreed <= max(one, _MAY_DIFFER * self.total)

    def __str__(self) -> str:
        if not self.total:
            return f"there were no {self.unit} to compare"
        rows = ", ".join(f"{value:.2g} {kind}" for kind, value in self.largest.items())
        differ = f"; largest difference {rows}" if self.agreed else ""
        return f"{self.agreed} of {self.total} {self.unit} agree{differ}"


def compare_detections(results: Results, expected: Results) -> Agreement:
    """Pair the detections of two computations of one image, best first, and compare each pair.

    Args:
        results: ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) and ``num_detections``.
        expected: The first three, of any number of detections.
    """
    count = int(results["num_detections"])
    boxes, scores, labels = (results[name][:count] for name in ("boxes", "scores", "labels"))
    free = np.ones(count, bool)
    score_difference = box_difference = 0.0
    pairs = 0
    rows = (expected[name] for name in ("boxes", "scores", "labels"))
    for box, score, label in zip(*rows, strict=True):
        # The nearest free detection of the same class, if its box and score are close enough.
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


def compare_pixels(results: Results, expected: Results) -> Agreement:
    """Compare the labels and scores, or the logits, of each pixel of the same images."""
    values = "logits" if "logits" in expected else "scores"
    difference = np.abs(results[values] - expected[values])
    scale = max(1.0, float(np.abs(expected[values]).max())) if values == "logits" else 1.0
    agreed = difference <= _SCORE * scale
    if "labels" in expected:
        agreed &= results["labels"] == expected["labels"]
    largest = float(difference[agreed].max()) if agreed.any() else 0.0
    unit = "logits" if values == "logits" else "pixels"
    return Agreement(unit, agreed.size, int(agreed.sum()), {f"in {values}": largest})
