"""Detectors as one graph: the same detections as the detector, whatever the image's size."""

from typing import Any

import pytest
import torch
from exported_detectors import KINDS, PYRAMID_ARGS, lively, noise_images, plain_image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from densenet_backbones.export.detector_form import make_export_form
from densenet_backbones.export.operators import RESIZE, limit_size, resize_to_limits
from densenet_backbones.heads.detection.one_stage import retinanet_fpn

# Smaller and larger than the network's input, either way up, and of sides that divide nothing.
SIZES = [(150, 170), (64, 64), (301, 111), (99, 99), (40, 500)]


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Any:
    return lively(request.param)


def test_equals_the_detector(model: Any) -> None:
    form = make_export_form(model)
    found_labels = set()
    with torch.no_grad():
        for image in [*noise_images(SIZES), plain_image()]:
            (expected,) = model([image])
            found = form(image[None])
            count = int(found.num_detections)
            assert count == len(expected["boxes"])
            # The last bits of a mean hang on the order it is summed in.
            votes = form.selection.vote_thresh < 1
            torch.testing.assert_close(
                found.boxes[:count], expected["boxes"], rtol=1e-5 if votes else 0, atol=0
            )
            assert torch.equal(found.labels[:count], expected["labels"])
            # A sigmoid's last bit differs between the vector unit and what is left over.
            torch.testing.assert_close(found.scores[:count], expected["scores"], rtol=0, atol=1e-6)
            assert len(found.boxes) == form.selection.detections_per_img
            found_labels |= set(found.labels[:count].tolist())
    assert len(found_labels) >= 2


def test_network_input_is_that_of_the_transform(model: Any) -> None:
    form = make_export_form(model)
    for image in noise_images(SIZES):
        x, seen, given = form.prepare(image[None])
        batch, _ = form.transform([image])
        assert torch.equal(x, batch.tensors)
        assert seen.tolist() == list(batch.image_sizes[0])
        assert given.tolist() == list(image.shape[1:])


def test_retinanet_finds_nothing_in_a_plain_image() -> None:
    found = make_export_form(lively("retinanet"))(plain_image()[None])
    assert found.num_detections == 0
    assert not any(part.any() for part in found)


def test_boxes_that_lose_their_area_at_the_border_are_left_out() -> None:
    """As `DetectionTransform` does, behind the detector's own limit on their number."""
    model = lively("retinanet")
    model.detections_per_img = 300
    image = noise_images([(150, 170)])[0]
    form = make_export_form(model)
    candidates = form.find_candidates

    def squeezed(x: Tensor, size: Tensor) -> Any:
        found = candidates(x, size)
        boxes = found.boxes.clone()
        boxes[::3, 2] = boxes[::3, 0]
        return found._replace(boxes=boxes)

    form.find_candidates = squeezed  # type: ignore[method-assign]
    with torch.no_grad():
        found, whole = form(image[None]), make_export_form(model)(image[None])
    count = int(found.num_detections)
    assert count > 0
    assert (found.boxes[:count, 2] > found.boxes[:count, 0]).all()
    assert (found.scores[:count].diff() <= 0).all()
    assert not any(part[count:].any() for part in found[:3])
    assert count < int(whole.num_detections)


@pytest.mark.parametrize(("low", "high"), [(800, 1333), (128, 200), (640, 640)])
def test_sizes_are_torchvisions(low: int, high: int) -> None:
    transform = GeneralizedRCNNTransform(low, high, [0.0], [1.0]).eval()
    for height, width in [(480, 640), (427, 640), (99, 99), (337, 337), (1304, 138), (33, 500)]:
        image = torch.rand(1, height, width)
        resized, _ = transform.resize(image)
        assert limit_size(height, width, low, high) == tuple(resized.shape[1:])
        if high < 300:
            assert torch.equal(resize_to_limits(image[None], low, high)[0], resized)


def test_the_resizing_operator_can_be_followed() -> None:
    image = torch.rand(1, 3, 45, 71)
    torch.library.opcheck(RESIZE, (image, 64, 96))


def test_images_of_any_number_of_channels() -> None:
    model = retinanet_fpn(num_classes=2, **{**PYRAMID_ARGS, "in_chans": 2}).eval()
    form = make_export_form(model)
    assert form.channels == 2
    assert form(torch.rand(1, 2, 60, 70)).boxes.shape == (300, 4)


@pytest.mark.parametrize(("kind", "stride"), [("retinanet", 32), ("torchvision's fcos", 16)])
def test_coarsest_stride(kind: str, stride: int) -> None:
    assert make_export_form(lively(kind)).measure_coarsest_stride() == stride


def test_what_has_no_form_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\) before its export"):
        make_export_form(KINDS["retinanet"]().train())
    backbone = nn.Conv2d(3, 8, 3)
    backbone.out_channels = 8
    with pytest.raises(
        ValueError, match=r"FasterRCNN has no form for export, as how many .*: DSOD, SSD"
    ):
        make_export_form(FasterRCNN(backbone, 2).eval())
    model = lively("torchvision's ssd")
    model.nms_thresh = 1.5
    with pytest.raises(ValueError, match=r"nms_thresh must lie in \[0, 1\], got 1\.5"):
        make_export_form(model)
