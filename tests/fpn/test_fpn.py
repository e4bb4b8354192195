"""Adapters: names, channels and strides of their levels, and maps that agree with them."""

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_levels import C3, C4, C5, maps_of
from torch import nn

import densenet_backbones  # noqa: F401  (registers)
from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import FPN, DensePrediction, caffe_xavier_


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (None, [("p3", 8), ("p4", 16), ("p5", 32)]),
        ("pool", [("p3", 8), ("p4", 16), ("p5", 32), ("p6", 64)]),
        ("p6p7", [("p3", 8), ("p4", 16), ("p5", 32), ("p6", 64), ("p7", 128)]),
    ],
)
def test_fpn_levels_and_maps_agree(extra: str | None, expected: list[tuple[str, int]]) -> None:
    fpn = FPN((C3, C4, C5), 16, extra)
    assert fpn.levels_in == (C3, C4, C5)
    assert [(level.name, level.stride) for level in fpn.levels] == expected
    maps = fpn(maps_of(fpn.levels_in, 128))
    for level, x in zip(fpn.levels, maps, strict=True):
        assert x.shape == (2, 16, 128 // level.stride, 128 // level.stride)
        assert level.channels == 16


def test_fpn_on_a_densenet_and_on_a_resnet() -> None:
    for name, options in (
        ("densenet121_features", {"growth_rate": 4, "block_config": [1, 1, 1, 1]}),
        ("resnet18", {"features_only": True}),
    ):
        net = timm.create_model(name, out_indices=(1, 2, 3, 4), **options)
        fpn = FPN(feature_levels(net), 8)
        maps = fpn(net(torch.randn(1, 3, 64, 64)))
        assert [level.name for level in fpn.levels] == ["p2", "p3", "p4", "p5", "p6"]
        assert [x.shape[-1] for x in maps] == [64 // level.stride for level in fpn.levels]


@pytest.mark.parametrize(("source", "moved"), [("c5", True), ("p5", False)])
def test_p6_reads_what_was_asked_for(source: str, moved: bool) -> None:
    # c5 has as many channels as the outputs: torchvision alone would always read p5.
    levels = (C4, FeatureLevel("c5", 16, 32))
    fpn = FPN(levels, 16, "p6p7", source)
    maps = maps_of(levels)
    p5, p6 = fpn(maps)[1:3]
    torch.testing.assert_close(p6, fpn.pyramid.extra_blocks.p6(maps[1] if moved else p5))


def test_fpn_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="c4 of stride 16, c4b of stride 16: choose other out_ind"):
        FPN((C4, FeatureLevel("c4b", 8, 16)))
    with pytest.raises(ValueError, match="one or more levels of a backbone, got none"):
        FPN(())
    with pytest.raises(ValueError, match="None, 'pool', 'p6p7', got 'p6'"):
        FPN((C3, C4), extra="p6")
    with pytest.raises(ValueError, match="one of 'c5', 'p5', got 'p6'"):
        FPN((C3, C4), extra="p6p7", p6p7_input="p6")


def test_dense_prediction_levels_of_dsod300() -> None:
    with torch.device("meta"):
        adapter = DensePrediction((FeatureLevel("c3", 800, 8), FeatureLevel("c5", 1568, 16)))
        base = [torch.empty(1, 800, 38, 38), torch.empty(1, 1568, 19, 19)]
    assert [(x.name, x.channels, x.stride) for x in adapter.levels] == [
        ("p3", 800, 8),
        ("p4", 512, 16),
        ("p5", 512, 32),
        ("p6", 256, 64),
        ("p7", 256, 128),
        ("p8", 256, 256),
    ]
    maps = adapter(base)
    assert maps[0] is base[0]
    assert [x.shape[1:] for x in maps] == [
        (800, 38, 38),
        (512, 19, 19),
        (512, 10, 10),
        (256, 5, 5),
        (256, 3, 3),
        (256, 2, 2),
    ]


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (13, 7)])
@pytest.mark.parametrize("round_up", [True, False])
def test_dense_prediction_takes_bases_that_round_up_or_down(
    size: tuple[int, int], round_up: bool
) -> None:
    adapter = DensePrediction((C3, C4), (4, 4, 2))
    first = torch.randn(2, C3.channels, *size)
    last_size = [(side + round_up) // 2 for side in size]
    maps = adapter([first, torch.randn(2, C4.channels, *last_size)])
    assert maps[1].shape == (2, 8, *last_size)
    assert maps[2].shape == (2, 8, *[(side + 1) // 2 for side in last_size])
    # The reused half is a plain pool of First in the backbone's own rounding.
    pooled = F.max_pool2d(first, 2, ceil_mode=round_up)
    torch.testing.assert_close(maps[1][:, 4:], adapter.first_reuse(pooled))


def test_every_parameter_of_dense_prediction_learns() -> None:
    adapter = DensePrediction((C3, C4), (4, 4, 2))
    sum(x.square().sum() for x in adapter(maps_of((C3, C4)))).backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert not any(m.bias is not None for m in adapter.modules() if isinstance(m, nn.Conv2d))


def test_dense_prediction_starts_as_dsod_was_first_trained() -> None:
    """Checkpoints and seeds from before depend on these names, their order and these draws."""
    torch.manual_seed(0)
    adapter = DensePrediction((C3, C4), (4, 4))
    convs = [name for name, module in adapter.named_modules() if isinstance(module, nn.Conv2d)]
    assert convs == [
        "trans.conv",
        "first_reuse.conv",
        "stages.0.reuse.conv",
        "stages.0.learn.0.conv",
        "stages.0.learn.1.conv",
    ]
    torch.manual_seed(0)
    for name in convs:  # torch draws when a layer is made, DSOD once all are there
        shape = adapter.get_submodule(name).weight.shape
        nn.Conv2d(shape[1], shape[0], shape[2], bias=False)
    for name in convs:
        weight = adapter.get_submodule(name).weight
        bound = (3 / weight[0].numel()) ** 0.5
        torch.testing.assert_close(torch.empty_like(weight).uniform_(-bound, bound), weight)


def test_plain_prediction_learns_every_map_from_the_one_before() -> None:
    dense = DensePrediction((C3, C4), (4, 4, 2))
    plain = DensePrediction((C3, C4), (4, 4, 2), reuse=False)
    assert plain.levels == dense.levels
    first, last = maps_of((C3, C4))
    maps = plain([first, last])
    assert [x.shape for x in maps] == [x.shape for x in dense([first, last])]
    assert maps[0] is first
    # Nothing of First reaches the others.
    for x, y in zip(maps[1:], plain([torch.zeros_like(first), last])[1:], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    torch.testing.assert_close(maps[2], plain.stages[0](maps[1]))
    sum(x.square().sum() for x in maps).backward()
    assert all(p.grad is not None and p.grad.any() for p in plain.parameters())


def test_first_of_dense_prediction_can_have_any_width() -> None:
    plain = DensePrediction((C3, C4), (4, 4)).eval()
    adapter = DensePrediction((C3, C4), (4, 4), first_channels=8).eval()
    missing, unexpected = adapter.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("first.") for name in missing)
    assert [level.channels for level in adapter.levels] == [8, 8, 8]
    maps = maps_of((C3, C4))
    first, *others = adapter(maps)
    torch.testing.assert_close(others, plain(maps)[1:])  # First is reused as it was
    torch.testing.assert_close(first, adapter.first.conv(adapter.first.norm(maps[0]).relu()))


def test_dense_prediction_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="first_channels must be at least 1, got 0"):
        DensePrediction((C3, C4), first_channels=0)
    with pytest.raises(ValueError, match="needs two levels, got c3 of stride 8, c4"):
        DensePrediction((C3, C4, C5))
    with pytest.raises(ValueError, match="must double"):
        DensePrediction((C3, C5))
    with pytest.raises(ValueError, match=r"half_channels must be positive numbers, got \(4, 0\)"):
        DensePrediction((C3, C4), (4, 0))
    with pytest.raises(ValueError, match=r"half the finer: got \(9, 9\) and \(9, 9\)"):
        DensePrediction((C3, C4), (4,))([torch.zeros(1, 12, 9, 9), torch.zeros(1, 20, 9, 9)])


def test_caffe_xavier_looks_at_fan_in_only() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 200, 3)
    caffe_xavier_(conv)
    bound = (3 / (12 * 9)) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.abs().max() > 0.99 * bound
