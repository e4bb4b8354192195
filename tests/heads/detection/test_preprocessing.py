"""Images to the network's frame, boxes back to the images'."""

import json

import pytest
import torch

from densenet_backbones.heads.detection.preprocessing import Preprocessing

DSOD = {
    "mean": (104, 117, 123),
    "std": (1, 1, 1),
    "channel_order": "bgr",
    "value_range": 255,
}


def _flat(red: float, green: float, blue: float, size: tuple[int, int] = (6, 8)) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, *size)


def test_dsod_channels_by_hand() -> None:
    batch, _ = Preprocessing((6, 8), **DSOD)([_flat(1.0, 0.5, 0.0)])
    assert batch.tensors[0, :, 0, 0].tolist() == pytest.approx([0 - 104, 127.5 - 117, 255 - 123])


def test_rgb_range_1_by_hand() -> None:
    preprocessing = Preprocessing((6, 8), (0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    batch, _ = preprocessing([_flat(1.0, 0.5, 0.0)])
    assert batch.tensors[0, :, 2, 3].tolist() == pytest.approx([1.0, 0.5, -3.0])


@pytest.mark.parametrize("options", [DSOD, {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.2, 0.1)}])
def test_the_fill_color_becomes_zero(options: dict) -> None:
    preprocessing = Preprocessing((6, 8), **options)
    red, green, blue = preprocessing.fill_color
    batch, _ = preprocessing([_flat(red / 255, green / 255, blue / 255)])
    assert batch.tensors.abs().max() < 1e-4


def test_images_of_any_size_and_their_boxes_come_to_one_size() -> None:
    preprocessing = Preprocessing((60, 80))
    images = [torch.rand(3, 30, 160), torch.rand(3, 60, 80)]
    boxes = torch.tensor([[16.0, 3.0, 160.0, 30.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images]
    batch, resized = preprocessing(images, targets)
    assert batch.tensors.shape == (2, 3, 60, 80)
    assert resized[0]["boxes"].tolist() == [[8.0, 6.0, 80.0, 60.0]]
    assert resized[1]["boxes"].tolist() == boxes.tolist()
    assert targets[0]["boxes"] is boxes  # the caller's are not changed
    assert boxes.tolist() == [[16.0, 3.0, 160.0, 30.0]]


def test_an_image_of_the_right_size_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("resampled")

    preprocessing = Preprocessing((6, 8))
    image = torch.rand(3, 6, 8)
    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)
    batch, _ = preprocessing([image])
    assert torch.equal(batch.tensors[0], image)
    with pytest.raises(AssertionError, match="resampled"):
        preprocessing([torch.rand(3, 8, 6)])


@pytest.mark.parametrize("training", [True, False])
def test_boxes_return_to_each_image(training: bool) -> None:
    preprocessing = Preprocessing((60, 80)).train(training)
    found = [{"boxes": torch.tensor([[8.0, 6.0, 80.0, 60.0]])} for _ in range(2)]
    sizes = [(30, 160), (333, 77)]
    back = preprocessing.postprocess(found, [(60, 80)] * 2, sizes)
    assert back[0]["boxes"].tolist() == [[16.0, 3.0, 160.0, 30.0]]
    assert back[1]["boxes"][0].tolist() == pytest.approx([7.7, 33.3, 77, 333])


def test_returned_boxes_never_leave_the_image() -> None:
    preprocessing = Preprocessing((300, 300))
    whole = torch.tensor([[0.0, 0.0, 300.0, 300.0]])
    for side in range(200, 1400, 7):
        found = [{"boxes": whole.clone()}]
        box = preprocessing.postprocess(found, [(300, 300)], [(side, side + 1)])[0]["boxes"]
        assert box[0, 2] <= side + 1 and box[0, 3] <= side


def test_to_dict_is_json_and_the_constructor_s_arguments() -> None:
    preprocessing = Preprocessing((300, 320), **DSOD)
    state = json.loads(json.dumps(preprocessing.to_dict()))
    assert Preprocessing(**state).to_dict() == preprocessing.to_dict()
    assert state["image_size"] == [300, 320]
    assert "channel_order=bgr" in repr(preprocessing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (300,)}, r"\(H, W\) in pixels"),
        ({"image_size": (0, 300)}, r"\(H, W\) in pixels"),
        ({"image_size": (8, 8), "std": (1, 1, 0)}, "std above 0"),
        ({"image_size": (8, 8), "mean": (1, 1)}, "three numbers"),
        ({"image_size": (8, 8), "channel_order": "rbg"}, "got 'rbg'"),
        ({"image_size": (8, 8), "value_range": 256}, "1 or 255, got 256"),
    ],
)
def test_mistakes_get_a_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**arguments)
