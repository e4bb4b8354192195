"""Priors and anchors against boxes: ours beside the detectors' own matching, and k-means."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from densenet_backbones.analysis.reference_boxes import (
    cluster_shapes,
    mean_overlap,
    overlap_shapes,
    read_references,
)

NET = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8}


def detector(name, **args):
    return torchvision.models.get_model(name, num_classes=3, **NET, **args).eval()


@pytest.mark.parametrize("name", ["retinanet_fpn", "fasterrcnn_fpn"])
def test_anchors_are_those_that_the_detector_makes(name):
    model = detector(name, min_size=96, max_size=128)
    image = torch.rand(3, 48, 60)
    batch, _ = model.transform([image])
    maps = list(model.backbone(batch.tensors).values())
    part = model.rpn if name.startswith("faster") else model
    expected = part.anchor_generator(ImageList(batch.tensors, batch.image_sizes), maps)[0]
    references = read_references(model)
    seen = references._see((48, 60))
    assert seen == tuple(batch.image_sizes[0])
    assert torch.equal(references.boxes(seen), expected)
    boxes = torch.tensor([[2.0, 3, 30, 40], [50, 10, 53, 12]])
    matches = references.match(boxes, (48, 60))
    scaled = boxes * torch.tensor([seen[1] / 60, seen[0] / 48] * 2)
    assert torch.equal(matches.best_iou, box_iou(scaled, expected).amax(dim=1))


def test_priors_of_ssd_are_those_that_it_makes():
    model = detector("ssd300", image_size=128)
    maps = list(model.backbone(torch.rand(1, 3, 128, 128)).values())
    images = ImageList(torch.rand(1, 3, 128, 128), [(128, 128)])
    expected = model.anchor_generator(images, maps)[0]
    references = read_references(model)
    assert references.has_priors and torch.equal(references.boxes((128, 128)), expected)


def test_unmatched_boxes_of_dsod_are_those_it_finds_itself():
    model = detector("dsod_tiny")
    references = read_references(model)
    corners = torch.rand(40, 2) * 80
    boxes = torch.cat((corners, corners + 1 + torch.rand(40, 2) ** 3 * 100), dim=1)
    (expected,) = model.find_unmatchable([boxes], [(200, 240)])
    matches = references.match(boxes, (200, 240))
    assert 0 < expected.sum() < 40
    assert torch.equal(matches.best_iou < references.threshold, expected)
    assert matches.matched.all()  # each keeps a prior of its own


def test_detectors_without_boxes_have_none():
    assert read_references(detector("fcos_fpn")) is None
    assert read_references(torch.nn.Identity()) is None


def test_an_image_without_boxes_matches_nothing():
    matches = read_references(detector("dsod_tiny")).match(torch.zeros(0, 4), (10, 10))
    assert matches.best_iou.shape == matches.matched.shape == (0,)


sides = st.lists(st.tuples(st.floats(1, 500), st.floats(1, 500)), min_size=1, max_size=60).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@settings(max_examples=40, deadline=None)
@given(sides, st.integers(1, 6))
def test_clusters_lie_among_the_boxes_and_rise(boxes, count):
    shapes = cluster_shapes(boxes, count)
    assert 1 <= len(shapes) <= count and torch.equal(shapes, cluster_shapes(boxes, count))
    areas = shapes.prod(dim=1)
    assert torch.equal(areas, areas.sort().values)
    assert (shapes >= boxes.amin(dim=0) - 1e-9).all() and (shapes <= boxes.amax(dim=0) + 1e-9).all()
    overlap = overlap_shapes(boxes, shapes)
    assert ((overlap > 0) & (overlap <= 1 + 1e-12)).all()


def test_clusters_find_the_kinds_of_boxes_there_are():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([[10.0, 10], [20, 60], [120, 40]], dtype=torch.float64)
    noise = 1 + 0.02 * torch.randn(300, 2, generator=generator, dtype=torch.float64)
    boxes = kinds.repeat(100, 1) * noise
    assert torch.allclose(cluster_shapes(boxes, 3), kinds, rtol=0.02)
    assert mean_overlap(boxes, kinds) > 0.95 > mean_overlap(boxes, kinds[:2])
