"""Images to a batch and findings back to images."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from densenet_backbones.heads import DetectionTransform
from densenet_backbones.untrusted.limits import MAX_PIXELS


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"min_size": [40, 48, 64], "max_size": 100, "size_divisible": 64},
        {"image_size": [40, 60]},
        {"image_size": [40, 60], "size_divisible": 32},
        {
            "image_mean": [100.0, 110, 120],
            "image_std": [1.0, 2, 3],
            "channel_order": "bgr",
            "value_range": 255,
        },
        {"image_mean": [0.5], "image_std": [0.25]},
    ],
)
def test_it_is_described_by_json(arguments: dict[str, Any]) -> None:
    described = DetectionTransform(**arguments).to_dict()
    assert arguments.items() <= described.items()
    again = DetectionTransform(**json.loads(json.dumps(described)))
    assert again.to_dict() == described and repr(again) == repr(DetectionTransform(**arguments))
    image = torch.rand(len(described["image_mean"]), 30, 50)
    expected = DetectionTransform(**arguments).eval()([image])[0].tensors
    assert torch.equal(again.eval()([image])[0].tensors, expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_batch_is_torchvisions(training: bool) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    ours = DetectionTransform(min_size=[40, 56], max_size=80, image_mean=mean, image_std=std).train(
        training
    )
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
        image_mean=[1.0, 2, 3], image_std=[1.0, 1, 2], channel_order="bgr", value_range=255
    )
    red = torch.tensor([1.0, 0, 0])[:, None, None]
    assert transform.normalize(red).flatten().tolist() == [-1, -2, 126]
    assert transform.fill_color == (3, 2, 1)
    five = DetectionTransform(image_mean=[0.2] * 5, image_std=[1.0] * 5)
    assert five.fill_color == pytest.approx([51.0] * 3)


def test_the_image_size_is_height_and_width() -> None:
    transform = DetectionTransform(image_size=(40, 60))
    batch, _ = transform([torch.rand(3, 90, 90)])
    assert batch.tensors.shape == (1, 3, 40, 60) and transform.image_size == (40, 60)


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
        ({"min_size": 10**4, "max_size": 10**4}, "must be at most 89478485 pixels"),
        ({"min_size": [600, 1400]}, "at most max_size"),
        ({"min_size": []}, "min_size must be"),
        ({"size_divisible": 0}, "size_divisible must be at least 1, got 0"),
        ({"image_size": [40]}, r"image_size must be \(H, W\) in pixels"),
        ({"image_mean": [0.5]}, "image_mean and image_std need 1 numbers"),
        (
            {"image_mean": [0.5], "image_std": [1.0], "channel_order": "bgr"},
            "'rgb' but for three channels",
        ),
        ({"value_range": 100}, "value_range must be 1 or 255"),
        ({"image_size": (0, 300)}, r"\(H, W\) in pixels"),
        ({"image_std": (1, 1, 0)}, "image_std above 0"),
        ({"image_mean": (1, 1), "image_std": (1, 1, 1)}, "need 2 numbers"),
        ({"channel_order": "rbg"}, "got 'rbg'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionTransform(**arguments)


def test_arguments_at_their_bounds() -> None:
    assert DetectionTransform(image_size=(1, 9)).image_size == (1, 9)
    assert DetectionTransform(min_size=5, max_size=MAX_PIXELS // 5).max_size == MAX_PIXELS // 5
    assert MAX_PIXELS % 5 == 0  # so that the second is the bound itself


# ------------------------------------------------------------------------------ one image size

DSOD = {
    "image_mean": (104, 117, 123),
    "image_std": (1, 1, 1),
    "channel_order": "bgr",
    "value_range": 255,
}


def flat(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, 6, 8)


def test_dsod_channels_by_hand() -> None:
    batch, _ = DetectionTransform(image_size=(6, 8), **DSOD)([flat(1.0, 0.5, 0.0)])
    assert batch.tensors[0, :, 0, 0].tolist() == pytest.approx([0 - 104, 127.5 - 117, 255 - 123])


def test_rgb_range_1_by_hand() -> None:
    facts = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.2, 0.1)}
    batch, _ = DetectionTransform(image_size=(6, 8), **facts)([flat(1.0, 0.5, 0.0)])
    assert batch.tensors[0, :, 2, 3].tolist() == pytest.approx([1.0, 0.5, -3.0])


@pytest.mark.parametrize(
    "options", [DSOD, {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.2, 0.1)}]
)
def test_the_fill_color_becomes_zero(options: dict[str, Any]) -> None:
    transform = DetectionTransform(image_size=(6, 8), **options)
    red, green, blue = transform.fill_color
    batch, _ = transform([flat(red / 255, green / 255, blue / 255)])
    assert batch.tensors.abs().max() < 1e-4


def test_images_of_any_size_and_their_boxes_come_to_one_size() -> None:
    transform = DetectionTransform(image_size=(60, 80))
    images = [torch.rand(3, 30, 160), torch.rand(3, 60, 80)]
    boxes = torch.tensor([[16.0, 3.0, 160.0, 30.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images]
    batch, resized = transform(images, targets)
    assert batch.tensors.shape == (2, 3, 60, 80)
    assert resized[0]["boxes"].tolist() == [[8.0, 6.0, 80.0, 60.0]]
    assert resized[1]["boxes"].tolist() == boxes.tolist()
    assert targets[0]["boxes"] is boxes  # the caller's are not changed
    assert boxes.tolist() == [[16.0, 3.0, 160.0, 30.0]]


def test_an_image_of_the_right_size_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("resampled")

    transform = DetectionTransform(image_size=(6, 8), image_mean=[0] * 3, image_std=[1] * 3)
    image = torch.rand(3, 6, 8)
    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)
    before = torch.get_rng_state()
    batch, _ = transform([image])
    assert torch.equal(batch.tensors[0], image)
    assert torch.equal(torch.get_rng_state(), before)  # and no size is drawn
    with pytest.raises(AssertionError, match="resampled"):
        transform([torch.rand(3, 8, 6)])


def test_boxes_return_to_each_image() -> None:
    transform = DetectionTransform(image_size=(60, 80)).eval()
    detections = [found([[8.0, 6.0, 80.0, 60.0]]) for _ in range(2)]
    back = transform.postprocess(detections, [(60, 80)] * 2, [(30, 160), (333, 77)])
    assert back[0]["boxes"].tolist() == [[16.0, 3.0, 160.0, 30.0]]
    assert back[1]["boxes"][0].tolist() == pytest.approx([7.7, 33.3, 77, 333])


def test_returned_boxes_never_leave_the_image() -> None:
    transform = DetectionTransform(image_size=(300, 300)).eval()
    for side in range(200, 1400, 7):
        detections = [found([[0.0, 0.0, 300.0, 300.0]])]
        box = transform.postprocess(detections, [(300, 300)], [(side, side + 1)])[0]["boxes"]
        assert box[0, 2] <= side + 1 and box[0, 3] <= side


def test_resizing_in_training_can_be_turned_off() -> None:
    transform = DetectionTransform(min_size=30, max_size=90, resize_in_training=False)
    images = [torch.rand(3, 40, 50)]
    assert transform(images)[0].image_sizes == [(40, 50)] and not transform.resize_in_training
    assert min(transform.eval()(images)[0].image_sizes[0]) == 30
    transform.train().resize_in_training = True
    assert min(transform(images)[0].image_sizes[0]) == 30
    fixed = DetectionTransform(image_size=(60, 80), resize_in_training=False)
    assert fixed.resize_in_training and fixed(images)[0].image_sizes == [(60, 80)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (20, 2000), (1, 100_000)])
def test_no_side_of_a_thin_image_vanishes(size: tuple[int, int], training: bool) -> None:
    transform = DetectionTransform(min_size=64, max_size=100).train(training)
    height, width = size
    target = {
        "boxes": torch.tensor([[0.0, 0, width, height]]),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
        "keypoints": torch.tensor([[[width, height, 1.0]]]),
    }
    batch, (moved,) = transform([torch.rand(3, height, width)], [target])
    ((down, across),) = batch.image_sizes
    assert min(down, across) == 1 and max(down, across) == 100
    assert torch.allclose(moved["boxes"], torch.tensor([[0.0, 0, across, down]]))
    assert moved["masks"].tolist() == torch.ones(1, down, across).tolist()
    assert torch.allclose(moved["keypoints"], torch.tensor([[[across, down, 1.0]]]))
    if not training:
        found = [{"boxes": moved["boxes"], "scores": torch.ones(1), "labels": torch.ones(1)}]
        (back,) = transform.postprocess(found, batch.image_sizes, [size])
        assert torch.allclose(back["boxes"], target["boxes"])
