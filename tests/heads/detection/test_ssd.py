"""SSD on our backbones: its maps, priors and scales."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from densenet_backbones.heads import SSD, ssd300, ssd512
from densenet_backbones.heads.detection.ssd import build_ssd_priors

BODY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
CELLS_300, CELLS_512 = (38, 19, 10, 5, 3, 1), (64, 32, 16, 8, 4, 2, 1)


def on_meta(builder: Any, **options: Any) -> SSD:
    with torch.device("meta"):
        model = builder(**options)
    assert isinstance(model, SSD)
    return model


@pytest.mark.parametrize(
    ("builder", "options", "cells"),
    [
        (ssd300, {}, CELLS_300),
        (ssd300, {"backbone": "resnet18"}, CELLS_300),
        (ssd300, {"output_stride": 16}, CELLS_300),
        (ssd300, {"adapter": "bifpn"}, CELLS_300),
        (ssd512, {}, CELLS_512),
        (ssd512, {"adapter": "dense_prediction"}, CELLS_512),
        (ssd300, {"image_size": 320}, (40, 20, 10, 5, 3, 1)),
    ],
)
def test_maps_are_ssd_s(builder: Any, options: dict[str, Any], cells: tuple[int, ...]) -> None:
    model = on_meta(builder, **options)
    assert model.backbone.adapter.cells == cells
    with torch.no_grad():
        maps = model.backbone(torch.empty(2, 3, *model.image_size, device="meta"))
    assert [tuple(x.shape[-2:]) for x in maps.values()] == [(side, side) for side in cells]
    assert [x.shape[1] for x in maps.values()] == model.backbone.out_channels
    priors = sum(
        a * side * side
        for a, side in zip(model.anchor_generator.num_anchors_per_location(), cells, strict=True)
    )
    if cells == CELLS_300:
        assert priors == 8732  # 1512.02325, section 3.1, table 1
    if cells == CELLS_512:
        assert priors == 24564


def test_priors_at_300_are_torchvisions() -> None:
    with torch.device("meta"):
        expected = ssd300_vgg16(weights=None, weights_backbone=None).anchor_generator
    ours = build_ssd_priors(300, CELLS_300, "coco")
    assert ours.aspect_ratios == expected.aspect_ratios and ours.steps == expected.steps
    assert ours.scales == pytest.approx(expected.scales)
    maps = [torch.zeros(1, 1, side, side) for side in CELLS_300]
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    assert torch.allclose(ours(images, maps)[0], expected(images, maps)[0], atol=1e-4)
    half = [x.bfloat16() for x in maps]
    assert torch.equal(ours(images, half)[0], ours(images, maps)[0])


def test_priors_at_512_are_ssd512_s() -> None:
    boxes = build_ssd_priors(512, CELLS_512, "voc")
    assert boxes.steps == [8, 16, 32, 64, 128, 256, 512]
    sizes = [scale * 512 for scale in boxes.scales]  # weiliu89/caffe, ssd_pascal_512.py
    assert sizes == pytest.approx([35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6])
    assert [len(ratios) for ratios in boxes.aspect_ratios] == [1, 2, 2, 2, 2, 1, 1]


def test_the_backbone_s_own_maps_have_a_length() -> None:
    torch.manual_seed(0)
    model = ssd300(num_classes=3, image_size=64, backbone_kwargs=BODY).eval()
    with torch.no_grad():
        maps = list(model.backbone(torch.rand(1, 3, 64, 64)).values())
    for x in maps[:3]:
        assert torch.allclose(x.norm(dim=1), torch.tensor(20.0), atol=1e-2)
    assert {p.shape for p in model.backbone.adapter.base.parameters()} == {
        (level.channels,) for level in model.backbone.adapter.levels_in
    }


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (DefaultBoxGenerator([[2]] * 6), "are for 6 levels and the backbone has 4"),
        (DefaultBoxGenerator([[2]] * 4, steps=[8, 16, 32, 16]), "level 3 have a step of 16 pixels"),
    ],
)
def test_priors_of_other_levels_are_refused(generator: nn.Module, message: str) -> None:
    model = ssd300(num_classes=3, image_size=64, backbone_kwargs=BODY)
    with pytest.raises(ValueError, match=message):
        SSD(model.backbone, 3, model.transform, anchor_generator=generator)


def test_frozen_layers_and_sizes() -> None:
    model = ssd300(num_classes=3, image_size=64, backbone_kwargs=BODY, trainable_backbone_layers=3)
    assert model.backbone.frozen_stages == 2
    assert model.image_size == (64, 64)
    with pytest.raises(ValueError, match="3 or more levels"):
        ssd300(num_classes=3, image_size=32, min_stride=16, backbone_kwargs=BODY)
