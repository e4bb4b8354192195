"""Numbers that may be undefined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.metrics.undefined import divide_counts, mean_of_defined, replace_nan


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.randoms())
def test_the_mean_is_that_of_the_defined_numbers_to_the_last_bit(values, random):
    mixed = [*values]
    for _ in range(random.randint(0, 9)):
        mixed.insert(random.randint(0, len(mixed)), math.nan)
    assert mean_of_defined(mixed) == np.mean(values)


def test_nothing_defined_has_no_mean():
    assert math.isnan(mean_of_defined([])) and math.isnan(mean_of_defined([math.nan] * 2))


@pytest.mark.filterwarnings("error")
def test_nothing_of_nothing_is_undefined():
    shares = divide_counts(np.array([[1, 3], [0, 0]]), np.array([[4], [0]]))
    np.testing.assert_array_equal(shares, [[0.25, 0.75], [math.nan, math.nan]])
    assert shares.dtype == np.float64


def test_json_gets_none_for_nan_and_all_else_as_it_is():
    row = {"name": "ant", "objects": 0, "ap": math.nan, "ar": np.float64(0.5)}
    assert replace_nan(row) == {"name": "ant", "objects": 0, "ap": None, "ar": 0.5}
