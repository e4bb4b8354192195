"""Two models' scores of the same images: wins, ties, and the mean difference with its interval.

The interval is the percentile bootstrap over images (B. Efron and R. J. Tibshirani, "An
Introduction to the Bootstrap", 1993, section 13.3): images are drawn with replacement, each with
both scores.

Legend: I images.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_TIE = 1e-9  # scores that differ by rounding alone are equal


@dataclass(frozen=True)
class PairedComparison:
    """Result of `compare_scores`.

    Attributes:
        first_better: Number of images where the first model is better.
        second_better: The same of the second.
        equal: Number of the others.
        difference: Mean of first minus second.
        low: Lower end of the mean's 95 % interval; NaN with fewer than two images.
        high: Upper end of it.
    """

    first_better: int
    second_better: int
    equal: int
    difference: float
    low: float
    high: float


def compare_scores(first: np.ndarray, second: np.ndarray, seed: int = 0) -> PairedComparison:
    """Compare the scores of two models on the same images.

    Args:
        first: (I,) scores of one model, the higher the better.
        second: (I,) scores of the other on the same images.
        seed: Seed of the images that are drawn.

    Raises:
        ValueError: If there are no images, or the numbers of scores differ.
    """
    if not len(first) or len(first) != len(second):
        raise ValueError(
            f"scores must be of the same images, at least one; got {len(first)} and {len(second)}"
        )
    differences = np.asarray(first, float) - np.asarray(second, float)
    low = high = float("nan")
    if len(differences) > 1:
        generator = np.random.default_rng(seed)
        size = len(differences)
        means = [differences[generator.integers(0, size, size)].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(means, (2.5, 97.5)).tolist()
    better = int((differences > _TIE).sum())
    worse = int((differences < -_TIE).sum())
    mean = float(differences.mean())
    return PairedComparison(better, worse, len(differences) - better - worse, mean, low, high)
