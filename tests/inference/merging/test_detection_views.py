"""Views, Soft-NMS and box voting of detectors: what comes back in the frame of the image itself."""

import argparse
from dataclasses import replace

import pytest
import torch
from tiny_runs import PYRAMID_ARGS, RCNN_ARGS
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import batched_nms

import densenet_backbones.torchvision_models  # noqa: F401 - registers our models
from densenet_backbones.data.masks.run_lengths import decode_mask
from densenet_backbones.heads import dsod_tiny
from densenet_backbones.inference.merging.detection_views import (
    DetectionViews,
    parse_views,
)
from densenet_backbones.inference.merging.soft_nms import SoftNMS, batched_soft_nms
from densenet_backbones.inference.options import add_view_options

SIDE = (40, 60)  # H, W
BOXES = torch.tensor([[5.0, 10, 15, 20], [6, 10, 15, 20], [30, 5, 55, 35]])


class Finder(nn.Module):
    """Finds what an image is painted with: each channel's value of 1 is an object of its class.

    Its first keypoint is the upper left corner of a box, its second the upper right one: which of
    them is which turns around in a mirror.
    """

    def __init__(self, nms=0.5, number=100):
        super().__init__()
        self.transform = GeneralizedRCNNTransform(80, 120, [0.0] * 3, [1.0] * 3)
        self.nms_thresh, self.detections_per_img = nms, number
        self.sizes = []

    def forward(self, images):
        self.sizes.append((self.transform.min_size, self.transform.max_size))
        return [self.found(image) for image in images]

    def found(self, image):
        boxes, scores, labels, masks = [], [], [], []
        for channel, plane in enumerate(image):
            for level in plane.unique().tolist():
                if level == 0:
                    continue
                y, x = torch.nonzero(plane == level, as_tuple=True)
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                scores.append(level)
                labels.append(channel + 1)
                masks.append((plane == level).float()[None] * 0.9)
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        scores, labels = torch.tensor(scores), torch.tensor(labels)
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        points = torch.stack([boxes[:, :2], boxes[:, [2, 1]]], 1)
        points = torch.cat([points, torch.ones(len(boxes), 2, 1)], 2)
        return {
            "boxes": boxes[keep],
            "scores": scores[keep],
            "labels": labels[keep],
            "masks": torch.stack(masks)[keep],
            "keypoints": points[keep],
            "keypoints_scores": points[keep][..., 0],
        }


def painted():
    image = torch.zeros(3, *SIDE)
    image[0, 10:20, 5:15] = 0.9
    image[1, 5:35, 30:55] = 0.6
    return image


def test_a_mirrored_view_comes_back_to_its_place():
    model, image = Finder(), painted()
    (plain,) = model([image])
    turned = DetectionViews(flip=True, mirrored_keypoints=(1, 0))
    back = turned._detect_mirrored(model, [image])[0]
    for name in ("boxes", "scores", "labels", "keypoints"):
        assert torch.equal(back[name], plain[name]), name
    for mask, code in zip(plain["masks"], back["masks"], strict=True):
        assert (decode_mask(code) == (mask[0] > 0.5).numpy()).all()


def test_keypoints_keep_their_sides_only_if_these_are_known():
    model, image = Finder(), painted()
    (plain,) = model([image])
    (unknown,) = DetectionViews(flip=True)._detect_mirrored(model, [image])
    assert torch.equal(unknown["keypoints"], plain["keypoints"].flip(1))


def test_views_that_agree_are_one_detection():
    model, images = Finder(), [painted(), painted() * 0.5]
    plain = model(images)
    merged = DetectionViews(flip=True, scales=(0.5, 1.0, 1.5), mirrored_keypoints=(1, 0))
    found = merged(model, images)
    assert len(found) == 2
    for one, expected in zip(found, plain, strict=True):
        assert one.keys() == expected.keys()
        for name in ("boxes", "scores", "labels", "keypoints", "keypoints_scores"):
            assert torch.equal(one[name], expected[name]), name
        assert len(one["masks"]) == 2 and set(one["masks"][0]) == {"size", "counts"}


def test_scales_are_of_the_detectors_own_size_and_put_back():
    model = Finder()
    model.transform.min_size = (60, 80)
    DetectionViews(scales=(0.75, 1.0, 1.25), flip=True)(model, [painted()])
    expected = [((45, 60), 90), ((60, 80), 120), ((75, 100), 150)]
    assert model.sizes == [size for size in expected for _ in range(2)]
    assert (model.transform.min_size, model.transform.max_size) == ((60, 80), 120)


def test_as_many_detections_as_the_detector_keeps():
    model = Finder(number=1)
    (found,) = DetectionViews(flip=True)(model, [painted()])
    assert found["scores"].tolist() == pytest.approx([0.9])
    assert len(found["boxes"]) == len(found["masks"]) == 1


class Listed(nn.Module):
    """Finds the same overlapping boxes in every image."""

    nms_thresh, detections_per_img = 0.5, 2
    scores = torch.tensor([0.9, 0.8, 0.7])

    def forward(self, images):
        labels = torch.ones(3, dtype=torch.int64)
        keep = batched_nms(BOXES, self.scores, labels, self.nms_thresh)
        keep = keep[: self.detections_per_img]
        found = {"boxes": BOXES[keep], "scores": self.scores[keep], "labels": labels[keep]}
        return [dict(found) for _ in images]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_takes_the_place_of_the_detectors_own(method):
    model, image = Listed(), torch.zeros(3, *SIDE)
    assert model([image])[0]["scores"].tolist() == pytest.approx([0.9, 0.7])  # 0.8 was dropped
    soft = SoftNMS(method)
    (found,) = DetectionViews(soft_nms=soft)(model, [image])
    labels = torch.ones(3, dtype=torch.int64)
    keep, scores = batched_soft_nms(BOXES, model.scores, labels, soft)
    assert torch.equal(found["boxes"], BOXES[keep[:2]])
    assert torch.equal(found["scores"], scores[:2])
    assert (model.nms_thresh, model.detections_per_img) == (0.5, 2)
    model.detections_per_img = 3
    (found,) = DetectionViews(soft_nms=soft)(model, [image])
    assert len(found["scores"]) == 3 and 0 < found["scores"].min() < 0.3


def test_what_nms_drops_votes_on_where_the_kept_box_lies():
    model, image = Listed(), torch.zeros(3, *SIDE)
    (plain,) = model([image])
    (found,) = DetectionViews(vote_thresh=0.65)(model, [image])
    assert torch.equal(found["scores"], plain["scores"])
    left = (5 * 0.9 + 6 * 0.8) / (0.9 + 0.8)  # the first two boxes have an IoU of 0.9
    torch.testing.assert_close(found["boxes"], torch.tensor([[left, 10, 15, 20], [30, 5, 55, 35]]))
    (soft,) = DetectionViews(soft_nms=SoftNMS(), vote_thresh=0.65)(model, [image])
    torch.testing.assert_close(soft["boxes"], found["boxes"])
    (none,) = DetectionViews(vote_thresh=1)(model, [image])
    assert torch.equal(none["boxes"], plain["boxes"])
    assert (model.nms_thresh, model.detections_per_img) == (0.5, 2)


class Heads(nn.Module):
    """As torchvision's RoI heads: boxes first, then a mask for each box that is kept."""

    def __init__(self):
        super().__init__()
        self.nms_thresh, self.detections_per_img, self.masked = 0.5, 2, []

    def postprocess_detections(self, images):
        (found,) = Listed.forward(self, images)
        return tuple([found[name]] for name in ("boxes", "scores", "labels"))

    scores = Listed.scores

    def forward(self, images):
        boxes, scores, labels = self.postprocess_detections(images)
        self.masked.append(len(boxes[0]))
        masks = torch.ones(len(boxes[0]), 1, *SIDE)
        return [{"boxes": boxes[0], "scores": scores[0], "labels": labels[0], "masks": masks}]


class TwoStages(nn.Module):
    """A detector with such heads."""

    def __init__(self):
        super().__init__()
        self.roi_heads = Heads()

    def forward(self, images):
        return self.roi_heads(images)


def test_only_boxes_that_stay_get_a_mask():
    model = TwoStages()
    soft = SoftNMS("gaussian", sigma=5.0)
    ask = DetectionViews(soft_nms=soft)
    (found,) = ask(model.roi_heads, [torch.zeros(3, *SIDE)])  # it is a detector in itself
    assert model.roi_heads.masked == [3]
    (fewer,) = ask(model, [torch.zeros(3, *SIDE)])
    assert model.roi_heads.masked == [3, 2]
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(fewer[name], found[name]), name
    assert "postprocess_detections" not in vars(model.roi_heads)
    (voted,) = DetectionViews(vote_thresh=0.65)(model, [torch.zeros(3, *SIDE)])
    assert model.roi_heads.masked == [3, 2, 2]  # of the boxes where the votes have put them
    (expected,) = DetectionViews(vote_thresh=0.65)(Listed(), [torch.zeros(3, *SIDE)])
    assert torch.equal(voted["boxes"], expected["boxes"])


def test_dsod_is_asked_in_the_same_ways():
    torch.manual_seed(0)
    model = dsod_tiny(
        num_classes=3,
        image_size=64,
        backbone_kwargs={"growth_rate": 4, "block_config": [1] * 4, "num_init_features": 8},
        adapter_channels=[8] * 4,
        detections_per_img=9,
    ).eval()
    image, before = torch.rand(3, 48, 80), model.selection
    with torch.no_grad():
        (plain,) = model([image])
        (same,) = DetectionViews()(model, [image])
        (both,) = DetectionViews(flip=True)(model, [image])
        (soft,) = DetectionViews(flip=True, soft_nms=SoftNMS("gaussian"))(model, [image])
    assert torch.equal(same["boxes"], plain["boxes"])
    for found in (both, soft):
        assert len(found["boxes"]) == 9
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"][:, 2] <= 80).all() and (found["boxes"][:, 3] <= 48).all()
    assert both["scores"][0] >= plain["scores"][0]
    assert model.selection is before

    # Asked to vote is built to vote; and what votes at home does so across the views as well.
    model.selection = voting = replace(before, score_thresh=0.3, vote_thresh=0.5)
    with torch.no_grad():
        (built,) = model([image])
        (own,) = DetectionViews()(model, [image])
        (across,) = DetectionViews(flip=True)(model, [image])
        (off,) = DetectionViews(vote_thresh=1)(model, [image])
        model.selection = replace(voting, vote_thresh=1.0)
        (unmoved,) = model([image])
        (asked,) = DetectionViews(vote_thresh=0.5)(model, [image])
        (turned,) = DetectionViews(flip=True)(model, [image])
    for name in ("boxes", "scores", "labels"):
        for found in (own, asked):
            torch.testing.assert_close(found[name], built[name])
        assert torch.equal(off[name], unmoved[name])
    assert not torch.equal(built["boxes"], unmoved["boxes"])
    assert torch.equal(across["scores"], turned["scores"])
    assert not torch.equal(across["boxes"], turned["boxes"])
    with pytest.raises(ValueError, match="DSOD sees every image at one size"):
        DetectionViews(scales=(0.5, 1.0)).check(model)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("retinanet_fpn", {**PYRAMID_ARGS, "out_channels": 32, "detections_per_img": 4}),
        ("fcos_fpn", {**PYRAMID_ARGS, "out_channels": 64, "detections_per_img": 4}),
        ("fasterrcnn_fpn", {**RCNN_ARGS, "box_detections_per_img": 4}),
        ("ssd300", {"backbone_kwargs": PYRAMID_ARGS["backbone_kwargs"], "detections_per_img": 4}),
    ],
)
def test_every_kind_of_detector_is_asked_in_the_same_ways(name, args):
    torch.manual_seed(0)
    thresholds = {} if "box_score_thresh" in args else {"score_thresh": 0.0}
    model = get_model(name, num_classes=3, **args, **thresholds).eval()
    images = [torch.rand(3, 48, 80), torch.rand(3, 64, 50)]
    scales = (1.0,) if name == "ssd300" else (1.0, 1.5)
    with torch.no_grad():
        plain = model(images)
        same = DetectionViews()(model, images)
        soft = DetectionViews(True, scales, SoftNMS("linear"))(model, images)
        voted = DetectionViews(vote_thresh=0.4)(model, images)
        again = model(images)
    moved = [not torch.equal(a["boxes"], b["boxes"]) for a, b in zip(plain, voted, strict=True)]
    assert any(moved)
    for one, other in zip(plain, voted, strict=True):
        # FCOS counts boxes of the background among the four that it keeps, and drops them then.
        number = len(one["scores"])
        assert number == len(other["scores"]) or name == "fcos_fpn"
        for key in ("scores", "labels"):
            assert torch.equal(one[key], other[key][:number])
    for one, two, three, merged, image in zip(plain, same, again, soft, images, strict=True):
        assert torch.equal(one["boxes"], two["boxes"]) and torch.equal(one["scores"], two["scores"])
        assert torch.equal(one["boxes"], three["boxes"])  # put back as it was
        boxes = merged["boxes"]
        assert 0 < len(boxes) == len(merged["scores"]) == len(merged["labels"]) <= 4
        assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor(image.shape[:0:-1])).all()
        assert (merged["scores"].diff() <= 0).all()


def options(*argv):
    parser = argparse.ArgumentParser()
    add_view_options(parser)
    return parser.parse_args(argv)


def test_options_of_the_command_line():
    assert parse_views(options(), Finder()) is None
    asked = ("--tta", "flip", "--tta-scales", "0.75,1,1.25", "--soft-nms", "gaussian")
    assert parse_views(options(*asked, "--box-votes", "0.65"), Finder(), (1, 0)) == DetectionViews(
        True, (0.75, 1.0, 1.25), SoftNMS("gaussian"), (1, 0), 0.65
    )
    assert parse_views(options("--box-votes", "1"), Finder()).vote_thresh == 1
    assert parse_views(options("--soft-nms", "linear"), Finder()).scales == (1.0,)


@pytest.mark.parametrize(
    ("argv", "model", "message"),
    [
        (("--tta-scales", "1,x"), Finder(), "--tta-scales must be numbers with commas between"),
        (("--tta-scales", "0,1"), Finder(), r"scales must be one or more factors in \(0, 8\]"),
        (("--tta", "flip"), None, "--box-votes are for detectors; leave them out"),
        (("--box-votes", "0.5"), None, "--box-votes are for detectors; leave them out"),
        (("--box-votes", "1.5"), Finder(), r"--box-votes must lie in \[0, 1\], got 1.5"),
        (("--box-votes", "nan"), Finder(), r"--box-votes must lie in \[0, 1\], got nan"),
        (("--tta", "flip"), nn.Linear(1, 1), "nothing is known of how Linear selects"),
        (("--tta-scales", "2"), Listed(), "Listed sees every image at one size"),
    ],
)
def test_what_cannot_be_done_is_refused(argv, model, message):
    with pytest.raises(ValueError, match=message):
        parse_views(options(*argv), model)
