"""Calibration: are predictions right as often as they are sure?

The expected calibration error is Guo et al., "On Calibration of Modern Neural Networks"
(1706.04599), equation 3, in bins of equal width of the confidence. A classifier's confidence is the
probability of the predicted class; a detector's is the score of a detection, which is right where
VOC's rule finds its object (Kueppers et al., 2004.13546, section 3, without box positions).

Legend: N predictions, B bins.
"""

from dataclasses import dataclass

import numpy as np

from densenet_backbones.metrics.undefined import divide_counts, replace_nan
from densenet_backbones.metrics.voc import VocEvaluation

BINS = 15
"""As in the paper."""


@dataclass(frozen=True)
class Calibration:
    """Predictions by their confidence.

    Attributes:
        counts: (B,) number of predictions of each bin.
        confidence: (B,) their mean confidence, NaN for empty bins.
        accuracy: (B,) share of them that are right, likewise.
        error: Expected calibration error, in [0, 1]; NaN without predictions.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float

    def list_bins(self) -> list[dict[str, object]]:
        """Return the bins in plain JSON types; numbers that are not defined are None."""
        rows = zip(self.counts.tolist(), self.confidence, self.accuracy, strict=True)
        return [
            replace_nan({"counts": float(n), "confidence": float(c), "accuracy": float(a)})
            for n, c, a in rows
        ]


def calibrate(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Calibration:
    """Compare how sure predictions are with how often they are right.

    Args:
        confidence: (N,) in [0, 1].
        right: (N,) bool.
        bins: B.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sure = divide_counts(np.bincount(place, confidence, bins), counts)
    hits = divide_counts(np.bincount(place, right.astype(float), bins), counts)
    gaps = np.nan_to_num(np.abs(sure - hits))
    error = float((gaps * counts).sum() / len(right)) if len(right) else float("nan")
    return Calibration(counts, sure, hits, error)


def calibrate_detections(evaluation: VocEvaluation) -> Calibration:
    """Compare the scores of detections with how often they are right.

    Args:
        evaluation: Its detections of all classes are taken, those on difficult objects left out.
    """
    scores, right = [np.zeros(0)], [np.zeros(0, bool)]
    for result in evaluation.classes:
        # Precision times the number of detections so far counts the right ones among them.
        hits = np.rint(result.precision * np.arange(1, len(result.precision) + 1))
        scores.append(result.scores)
        right.append(np.diff(hits, prepend=0) > 0)
    return calibrate(np.concatenate(scores), np.concatenate(right))
