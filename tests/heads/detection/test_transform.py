"""Images to a batch and findings back to images."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from densenet_backbones.heads import DetectionTransform


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"min_size": [40, 48, 64], "max_size": 100, "size_divisible": 64},
        {"fixed_size": [40, 60], "size_divisible": 1},
        {"mean": [100.0, 110, 120], "std": [1.0, 2, 3], "channel_order": "bgr", "value_range": 255},
        {"mean": [0.5], "std": [0.25]},
    ],
)
def test_it_is_described_by_json(arguments: dict[str, Any]) -> None:
    described = DetectionTransform(**arguments).to_dict()
    assert arguments.items() <= described.items()
    again = DetectionTransform(**json.loads(json.dumps(described)))
    assert again.to_dict() == described and repr(again) == repr(DetectionTransform(**arguments))
    image = torch.rand(len(described["mean"]), 30, 50)
    expected = DetectionTransform(**arguments).eval()([image])[0].tensors
    assert torch.equal(again.eval()([image])[0].tensors, expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_batch_is_torchvisions(training: bool) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    ours = DetectionTransform(min_size=[40, 56], max_size=80, mean=mean, std=std).train(training)
    theirs = GeneralizedRCNNTransform([40, 56], 80, mean, std).train(training)
    images = [torch.rand(3, 30, 50), torch.rand(3, 61, 33)]
    targets = [{"boxes": torch.tensor([[1.0, 2, 20, 25]])} for _ in images]
    torch.manual_seed(0)
    batch, moved = ours(images, targets)
    torch.manual_seed(0)
    expected, expected_moved = theirs(images, targets)
    assert batch.image_sizes == expected.image_sizes
    assert torch.allclose(batch.tensors, expected.tensors, atol=1e-6)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(moved, expected_moved))  # noqa: B905


def test_channel_order_and_range() -> None:
    transform = DetectionTransform(
        mean=[1.0, 2, 3], std=[1.0, 1, 2], channel_order="bgr", value_range=255
    )
    red = torch.tensor([1.0, 0, 0])[:, None, None]
    assert transform.normalize(red).flatten().tolist() == [-1, -2, 126]
    assert transform.fill_color == (3, 2, 1)
    assert DetectionTransform(mean=[0.2] * 5, std=[1.0] * 5).fill_color == pytest.approx([51.0] * 3)


def test_a_fixed_size_is_height_and_width() -> None:
    batch, _ = DetectionTransform(fixed_size=(40, 60), size_divisible=1)([torch.rand(3, 90, 90)])
    assert batch.tensors.shape == (1, 3, 40, 60)


def found(boxes: list[list[float]]) -> dict[str, Tensor]:
    number = len(boxes)
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.linspace(1, 0.5, number),
        "labels": torch.arange(number),
    }


def test_boxes_end_at_the_image_and_have_area() -> None:
    transform = DetectionTransform().eval()
    boxes = [[-5.0, 2, 300, 90], [50, 20, 50, 40], [400, 10, 500, 20], [1, 1, 9, 9]]
    (result,) = transform.postprocess([found(boxes)], [(100, 200)], [(50, 100)])
    assert result["boxes"].tolist() == [[0, 1, 100, 45], [0.5, 0.5, 4.5, 4.5]]
    assert result["labels"].tolist() == [0, 3] and len(result["scores"]) == 2
    (same,) = transform.train().postprocess([found(boxes)], [(100, 200)], [(50, 100)])
    assert len(same["boxes"]) == 4  # in training nothing is looked at


def test_rounding_does_not_leave_the_image() -> None:
    transform = DetectionTransform().eval()
    for width in range(250, 400):
        seen, given = (800, 800 * width // 250), (250, width)
        whole = [[0.0, 0, float(seen[1]), float(seen[0])]]
        (result,) = transform.postprocess([found(whole)], [seen], [given])
        assert (result["boxes"][:, 2] <= width).all() and (result["boxes"][:, 3] <= 250).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_size": 0}, "min_size must be 1 or more and at most max_size, got 0 and 1333"),
        ({"min_size": [600, 1400]}, "at most max_size"),
        ({"min_size": []}, "min_size must be"),
        ({"size_divisible": 0}, "size_divisible must be at least 1, got 0"),
        ({"fixed_size": [40]}, r"fixed_size must be \(H, W\) in pixels"),
        ({"mean": [0.5]}, "mean and std need 1 numbers"),
        ({"mean": [0.5], "std": [1.0], "channel_order": "bgr"}, "'rgb' but for three channels"),
        ({"value_range": 100}, "value_range must be 1 or 255"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionTransform(**arguments)
