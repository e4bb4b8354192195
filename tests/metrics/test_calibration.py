import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.metrics.calibration import calibrate, calibrate_detections
from densenet_backbones.metrics.voc import VocClass, VocEvaluation


def test_a_calibrated_model_has_no_error():
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.arange(800) % 4 < np.repeat([1, 3], 400)
    assert calibrate(confidence, right).error == pytest.approx(0)
    assert calibrate(confidence, np.ones(800, bool)).error == pytest.approx(0.5)


def test_whoever_is_quite_sure_is_in_the_last_bin():
    assert calibrate(np.ones(3), np.ones(3, bool), bins=4).counts.tolist() == [0, 0, 0, 3]


def evaluation_of(rows, objects=9):
    """Of one class: pairs of score and right, by falling score."""
    rows = sorted(rows, reverse=True)
    scores = np.array([score for score, _ in rows], float)
    right = np.cumsum([hit for _, hit in rows]) if rows else np.zeros(0)
    precision = right / np.arange(1, len(rows) + 1)
    return VocEvaluation(
        (VocClass("a", objects, 0, 0, right / objects, precision, scores),), 0.5, 1
    )


@given(
    st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n / 1000), st.booleans()), max_size=99)
)
def test_detections_are_calibrated_as_the_pairs_they_come_from(rows):
    found = calibrate_detections(evaluation_of(rows))
    scores, right = (np.array([row[n] for row in sorted(rows, reverse=True)]) for n in (0, 1))
    expected = calibrate(scores.astype(float), right.astype(bool))
    assert found.error == pytest.approx(expected.error, nan_ok=True)
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.accuracy, expected.accuracy)


@given(
    st.lists(st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.booleans()), min_size=1),
    st.integers(0, 10).map(lambda n: n / 10),
)
def test_precision_and_recall_from_a_score_on(rows, least):
    taken = [hit for score, hit in rows if score >= least]
    precision, recall = evaluation_of(rows).measure_from(least)
    assert recall == pytest.approx(sum(taken) / 9)
    assert precision == pytest.approx(np.mean(taken) if taken else np.nan, nan_ok=True)


def test_nothing_found_has_no_calibration():
    found = calibrate_detections(evaluation_of([]))
    assert np.isnan(found.error) and not found.counts.any()
    assert found.list_bins()[0] == {"counts": 0.0, "confidence": None, "accuracy": None}
