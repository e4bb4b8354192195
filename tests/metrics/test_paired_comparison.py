import numpy as np
import pytest

from densenet_backbones.metrics.paired_comparison import compare_scores


def test_wins_ties_and_the_interval_of_the_mean():
    """The bootstrap's interval is the normal one for many images, and seeded."""
    generator = np.random.default_rng(1)
    first = generator.uniform(0, 1, 400)
    second = first - generator.normal(0.02, 0.1, 400)
    second[:40] = first[:40]
    found = compare_scores(first, second)
    difference = first - second
    assert found.equal == 40 and found.first_better == (difference > 0).sum()
    half = 1.96 * difference.std() / 20
    assert found.difference == pytest.approx(difference.mean())
    assert [found.low, found.high] == pytest.approx(
        [difference.mean() - half, difference.mean() + half], abs=0.1 * half
    )
    assert found == compare_scores(first, second) != compare_scores(first, second, seed=1)


def test_few_images():
    assert np.isnan(compare_scores(np.ones(1), np.zeros(1)).low)
    with pytest.raises(ValueError, match="at least one; got 0 and 0"):
        compare_scores(np.zeros(0), np.zeros(0))
