"""A classifier's numbers equal those of torchmetrics, whatever the order of the images."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from densenet_backbones.metrics.calibration import BINS
from densenet_backbones.metrics.classification import ClassificationMetric


def evaluate(probabilities, labels, order=None):
    names = [f"c{n}" for n in range(probabilities.shape[1])]
    metric = ClassificationMetric(names)
    order = torch.arange(len(labels)) if order is None else order
    for part in order.split(7):
        metric.update(probabilities[part], labels[part], part)
    return metric, metric.compute()


def test_without_images_nothing_is_known():
    metric = ClassificationMetric(["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics': computed before an update
        numbers = metric.compute()
    assert set(map(math.isnan, numbers.values())) == {True}
    assert metric.evaluation.matrix.tolist() == [[0, 0], [0, 0]]
    assert metric.evaluation.find_mistakes().tolist() == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 60))
def test_numbers_are_those_of_torchmetrics(seed, classes, images):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(images, classes, generator=generator)).softmax(1)
    labels = torch.randint(classes, (images,), generator=generator)
    metric, numbers = evaluate(probabilities, labels, torch.randperm(images, generator=generator))
    matrix = multiclass_confusion_matrix(probabilities, labels, classes)
    assert metric.evaluation.matrix.tolist() == matrix.tolist()
    expected = {
        "accuracy": multiclass_accuracy(probabilities, labels, classes, average="micro"),
        "top5": multiclass_accuracy(
            probabilities, labels, classes, average="micro", top_k=min(5, classes)
        ),
        "ECE": multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS),
        "macro_F1": multiclass_f1_score(probabilities, labels, classes, average="macro"),
        "nll": torch.nn.functional.nll_loss(probabilities.log(), labels),
    }
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(float(value), abs=2e-6), name
    _, in_order = evaluate(probabilities, labels)
    assert in_order == numbers
    json.dumps(metric.evaluation.to_dict(), allow_nan=False)


def test_the_surest_mistakes_come_first():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    metric, numbers = evaluate(probabilities, torch.tensor([1, 1, 1, 0]))
    assert metric.evaluation.find_mistakes().tolist() == [0, 3, 1]
    assert numbers["accuracy"] == 0.25


def test_wrong_shapes_are_refused():
    metric = ClassificationMetric(["a", "b"])
    with pytest.raises(ValueError, match=r"must be \(1, 2\)"):
        metric.update(torch.ones(1, 3), torch.zeros(1, dtype=torch.long), torch.zeros(1))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\]"):
        metric.update(torch.ones(1, 2), torch.tensor([2]), torch.zeros(1))
