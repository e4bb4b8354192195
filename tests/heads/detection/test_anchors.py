"""Anchors and RoI pooling by the levels' strides, and generators that do not belong to them."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import _default_anchorgen as default_of_rcnn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen as default_of_retinanet
from torchvision.ops import MultiScaleRoIAlign

from densenet_backbones.features import FeatureLevel
from densenet_backbones.heads import FCOS, FasterRCNN, RetinaNet, densenet_fpn_backbone
from densenet_backbones.heads.detection.anchors import PyramidAnchors, build_roi_pool, check_anchors
from densenet_backbones.heads.detection.one_stage import RETINANET_STRIDES
from densenet_backbones.heads.detection.transform import DetectionTransform

TINY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}


def levels(*strides: int) -> tuple[FeatureLevel, ...]:
    return tuple(FeatureLevel(f"p{s.bit_length() - 1}", 64, s) for s in strides)


def maps(height: int, width: int, *strides: int) -> list[Tensor]:
    return [torch.zeros(1, 64, -(-height // s), -(-width // s)) for s in strides]


def batch(height: int, width: int) -> ImageList:
    return ImageList(torch.zeros(1, 3, height, width), [(height, width)])


@pytest.mark.parametrize(
    ("default", "scales", "strides"),
    [
        (default_of_retinanet, RETINANET_STRIDES, (8, 16, 32, 64, 128)),
        (default_of_rcnn, [8.0], (4, 8, 16, 32, 64)),
    ],
)
def test_anchors_are_torchvisions_on_its_own_levels(
    default: Any, scales: list[float], strides: tuple[int, ...]
) -> None:
    ours = PyramidAnchors(levels(*strides), scales)
    assert ours.sizes == default().sizes
    shape = (256, 384)  # multiples of every stride: elsewhere torchvision's strides are off
    expected = default()(batch(*shape), maps(*shape, *strides))
    found = ours(batch(*shape), maps(*shape, *strides))
    assert all(map(torch.equal, found, expected))


def test_one_level_alone_has_anchors() -> None:
    (boxes,) = PyramidAnchors(levels(16), [2.0], (1.0,))(batch(32, 48), maps(32, 48, 16))
    assert boxes.tolist() == [
        [x - 16, y - 16, x + 16, y + 16] for y in (0, 16) for x in (0, 16, 32)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cells_are_a_stride_apart_on_maps_that_are_rounded_up(dtype: torch.dtype) -> None:
    strides = (8, 64, 128)
    ours = PyramidAnchors(levels(*strides), [1.0], [1.0])
    features = [x.to(dtype) for x in maps(800, 1344, *strides)]
    (anchors,) = ours(batch(800, 1344), features)
    assert anchors.dtype == torch.float32
    start = 0
    for stride, x in zip(strides, features, strict=True):
        rows, columns = x.shape[-2:]
        of_level = anchors[start : start + rows * columns].reshape(rows, columns, 4)
        start += rows * columns
        centers = (of_level[..., :2] + of_level[..., 2:]) / 2
        assert torch.equal(centers[0, :, 0], torch.arange(columns) * float(stride))
        assert torch.equal(centers[:, 0, 1], torch.arange(rows) * float(stride))
        assert (of_level[..., 2:] - of_level[..., :2] == stride).all()
    assert start == len(anchors)


@pytest.mark.parametrize("options", [{}, {"output_stride": 16}, {"min_stride": 16}])
@pytest.mark.parametrize("adapter", ["fpn", "dense_prediction"])
def test_anchors_of_the_detectors_follow_the_true_strides(
    adapter: Any, options: dict[str, Any]
) -> None:
    if adapter == "dense_prediction" and options.get("min_stride") == 16:
        options = {"min_stride": 8}
    backbone = densenet_fpn_backbone(
        backbone_kwargs=TINY, out_channels=64, adapter=adapter, **options
    )
    retinanet = RetinaNet(backbone, 3, DetectionTransform(), anchor_scale=0.5)
    fcos = FCOS(backbone, 3, DetectionTransform())
    rcnn = FasterRCNN(backbone, 3, DetectionTransform())
    strides = [level.stride for level in backbone.levels]
    scales = [scale / 2 for scale in RETINANET_STRIDES]
    assert retinanet.anchor_generator.sizes == tuple(
        tuple(int(scale * stride) for scale in scales) for stride in strides
    )
    assert fcos.anchor_generator.sizes == tuple((stride,) for stride in strides)
    assert rcnn.rpn.anchor_generator.sizes == tuple((8 * stride,) for stride in strides)
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, 128, 192))
    for level, x in zip(backbone.levels, features.values(), strict=True):
        assert x.shape[-2:] == (-(-128 // level.stride), -(-192 // level.stride))


def generator(*sizes: float) -> AnchorGenerator:
    return AnchorGenerator(tuple((size,) for size in sizes), ((1.0,),) * len(sizes))


def test_anchors_made_for_other_levels_are_refused() -> None:
    # what torchvision trains without a word: RetinaNet's table on four levels and a pool
    with pytest.raises(ValueError, match=r"level p2 have sizes \[32, 40, 50\] on a stride of 4"):
        check_anchors(default_of_retinanet(), levels(4, 8, 16, 32, 64), RETINANET_STRIDES[1])
    with pytest.raises(ValueError, match=r"sizes for 5 levels and the backbone has 4, of strides"):
        check_anchors(default_of_rcnn(), levels(4, 8, 16, 32), 8)
    with pytest.raises(ValueError, match=r"level p4 have sizes .* on a stride of 16"):
        check_anchors(generator(32, 64, 64), levels(4, 8, 16), 8)
    check_anchors(generator(24, 48, 200), levels(4, 8, 16), 8)
    every_size = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((1.0,),) * 3)
    check_anchors(every_size, levels(16, 32, 64), 8)  # as torchvision's MobileNet has them


def test_detectors_refuse_them() -> None:
    backbone = densenet_fpn_backbone(backbone_kwargs=TINY, out_channels=64)
    make = (backbone, 3, DetectionTransform())
    with pytest.raises(ValueError, match="they were made for other levels"):
        RetinaNet(*make, anchor_generator=default_of_retinanet())
    with pytest.raises(ValueError, match="they were made for other levels"):
        FCOS(*make, anchor_generator=generator(8, 16, 32, 64, 128))
    with pytest.raises(ValueError, match="one entry a level"):
        FasterRCNN(*make, rpn_anchor_generator=generator(32))
    own = generator(24, 48, 96, 192, 384)
    assert FasterRCNN(*make, rpn_anchor_generator=own).rpn.anchor_generator is own


@pytest.mark.parametrize(("scales", "ratios"), [([], [1.0]), ([1.0], []), ([0.0], [1.0])])
def test_anchors_need_sizes(scales: list[float], ratios: list[float]) -> None:
    with pytest.raises(ValueError, match="anchors need scales and aspect ratios above 0"):
        PyramidAnchors(levels(8), scales, ratios)


def test_boxes_are_pooled_as_torchvision_pools_them() -> None:
    strides = (4, 8, 16, 32)
    features = OrderedDict(
        (level.name, torch.rand(1, 2, 256 // level.stride, 256 // level.stride))
        for level in levels(*strides)
    )
    boxes = [torch.tensor([[3.0, 5, 40, 60], [0, 0, 250, 250], [20, 20, 140, 130]])]
    ours = build_roi_pool(levels(*strides), 7)
    theirs = MultiScaleRoIAlign(list(features), 7, 2)
    assert torch.equal(ours(features, boxes, [(256, 256)]), theirs(features, boxes, [(256, 256)]))


def test_pooling_of_a_small_image_reads_the_right_place() -> None:
    # 33 pixels are padded to 64: torchvision would take the map of 16 cells for one of stride 2
    ramp = torch.arange(16.0).repeat(16, 1)[None, None] * 4
    features = OrderedDict(p2=ramp, p3=ramp[..., ::2, ::2])
    inputs = (features, [torch.tensor([[8.0, 8, 24, 24]])], [(33, 33)])
    assert build_roi_pool(levels(4, 8), 1)(*inputs).item() == pytest.approx(16.0)
    assert MultiScaleRoIAlign(["p2", "p3"], 1, 2)(*inputs).item() > 24
    assert build_roi_pool(levels(32), 7).scales == [1 / 32]
    with pytest.raises(ValueError, match=r"levels whose strides double, got \[4, 16\]"):
        build_roi_pool(levels(4, 16), 7)
