"""Numbers that may be undefined, such as the recall of a class without objects: NaN, None in JSON.

numpy's own functions are not used as they are: `np.nanmean` adds zeros in the place of NaN, which
changes the last digits of a sum, and warns where nothing is defined.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike


def mean_of_defined(values: ArrayLike) -> float:
    """Mean of the numbers that are not NaN; NaN where all are."""
    numbers = np.asarray(values, float)
    defined = numbers[~np.isnan(numbers)]
    return float(defined.mean()) if defined.size else float("nan")


def divide_counts(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Quotients of sums or counts as float64, NaN where both are 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(numerator, denominator, dtype=np.float64))


def replace_nan(numbers: Mapping[str, object]) -> dict[str, object]:
    """Copy a row of numbers, and whatever else is in it, with None for each NaN: JSON has none."""
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in numbers.items()
    }
