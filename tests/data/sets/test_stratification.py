"""Held-out groups: classes in both parts, in proportion, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_backbones.data.sets.stratification import OPEN, TRAIN, VAL, Group, assign_sides


def make_group(size, *labels):
    counts = dict.fromkeys(labels, size)
    return Group(size, np.array(list(counts), np.int64), np.array(list(counts.values()), np.int64))


@st.composite
def groups(draw, labels=6, most=3):
    """Groups of 1 to 4 images, each with some labels."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=40))
    own = st.lists(st.integers(0, labels - 1), max_size=most, unique=True)
    return [make_group(size, *draw(own)) for size in sizes]


@settings(max_examples=60, deadline=None)
@given(groups(most=1), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.5]))
def test_every_class_of_two_groups_is_in_both_parts(listed, seed, fraction):
    sides = assign_sides(listed, fraction, seed)
    assert set(sides) == {TRAIN, VAL}
    for label in range(6):
        own = [n for n, group in enumerate(listed) if label in group.labels]
        if len(own) > 1:
            assert set(sides[own]) == {TRAIN, VAL}
    np.testing.assert_array_equal(sides, assign_sides(listed, fraction, seed))


@settings(max_examples=60, deadline=None)
@given(groups(), st.integers(0, 5), st.data())
def test_groups_that_have_a_part_stay_in_it(listed, seed, data):
    sides = np.array(
        data.draw(
            st.lists(
                st.sampled_from([TRAIN, VAL, OPEN]), min_size=len(listed), max_size=len(listed)
            )
        )
    )
    before = sides.copy()
    after = assign_sides(listed, 0.2, seed, sides)
    np.testing.assert_array_equal(sides, before)
    np.testing.assert_array_equal(after[before != OPEN], before[before != OPEN])
    assert OPEN not in after
    assert set(after) == {TRAIN, VAL} or OPEN not in before


def test_classes_are_held_out_in_proportion():
    rng = np.random.default_rng(0)
    shares = (0.7, 0.3, 0.1, 0.02)
    has = rng.random((2000, len(shares))) < shares
    listed = [make_group(1, *np.flatnonzero(row).tolist()) for row in has]
    sides = assign_sides(listed, 0.2, seed=1)
    held_out = has[sides == VAL].sum(axis=0) / has.sum(axis=0)
    assert np.abs(held_out - 0.2).max() < 0.02
    assert abs((sides == VAL).mean() - 0.2) < 0.005
    assert not np.array_equal(sides, assign_sides(listed, 0.2, seed=2))


@pytest.mark.parametrize("seed", range(5))
def test_one_group_is_held_out_of_ten_and_rare_classes_are_shared(seed):
    """Five films of ten images: one is held out. Two images of a rare class: one is."""
    sides = assign_sides([make_group(10, 0) for _ in range(5)], 0.2, seed)
    assert (sides == VAL).sum() == 1
    sides = assign_sides([make_group(1, 0)] * 98 + [make_group(1, 0, 1)] * 2, 0.2, seed)
    assert (sides[98:] == VAL).sum() == 1 and abs((sides == VAL).sum() - 20) <= 1
    # One image of a class teaches it.
    assert assign_sides([make_group(1, 0)] * 9 + [make_group(1, 0, 1)], 0.2, seed)[9] == TRAIN


def test_a_class_that_the_greedy_choice_misses_is_moved_into_both_parts():
    listed = [make_group(1, 0, 1), make_group(1, 1, 2), make_group(1, 2, 3), make_group(1, 3, 0)]
    for seed in range(20):
        sides = assign_sides(listed, 0.5, seed)
        assert sides[0] != sides[1] and sides[1] != sides[2] and sides[2] != sides[3]
