"""Every adapter by its name: the same levels, true for any image, captured whole."""

import pytest
import timm
import torch
from long_cases import first_now
from tiny_levels import C3, C4, C5, maps_of
from torch import nn

import densenet_backbones  # noqa: F401  (registers)
from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import Adapter, build_adapter

ADAPTERS = ("fpn", "pan", "bifpn", "dense_prediction")
EXTRA_STRIDES = {None: [], "pool": [64], "p6p7": [64, 128]}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("extra", EXTRA_STRIDES)
@pytest.mark.parametrize("finest", [0, 1])
def test_adapters_have_the_same_levels(name: str, extra: str | None, finest: int) -> None:
    levels = (C3, C4, C5)[finest:]
    adapter = build_adapter(name, levels, 6, extra)
    assert isinstance(adapter, Adapter)
    assert adapter.levels_in == levels[: len(adapter.levels_in)]
    strides = [8, 16, 32][finest:] + EXTRA_STRIDES[extra]
    assert [(x.name, x.channels, x.stride) for x in adapter.levels] == [
        (f"p{stride.bit_length() - 1}", 6, stride) for stride in strides
    ]
    assert adapter.no_weight_decay() <= {name for name, _ in adapter.named_parameters()}


@pytest.fixture(scope="module")
def backbones() -> list[nn.Module]:
    """DenseNet rounds sizes down from block to block, ResNet up."""
    options = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
    return [
        timm.create_model("densenet121_features", out_indices=(2, 3, 4), **options).eval(),
        timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval(),
    ]


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("size", [(64, 128), (101, 67), (161, 95), (33, 250)])
@torch.no_grad()
def test_levels_are_true_for_odd_images(
    name: str, size: tuple[int, int], backbones: list[nn.Module]
) -> None:
    for net in backbones:
        levels = feature_levels(net)
        adapter = build_adapter(name, levels, 6, "p6p7").eval()
        assert adapter.levels_in == levels[: len(adapter.levels_in)]
        maps = adapter(net(torch.randn(1, 3, *size))[: len(adapter.levels_in)])
        for level, x in zip(adapter.levels, maps, strict=True):
            assert x.shape[:2] == (1, level.channels)
            for cells, pixels in zip(x.shape[-2:], size, strict=True):
                assert max(pixels // level.stride, 1) <= cells <= -(-pixels // level.stride)


@pytest.mark.parametrize("name", first_now(ADAPTERS))
def test_adapters_are_captured_whole_for_all_heights(name: str) -> None:
    """Images of 32 k rows, from 160 on: below, maps of a single row are a case of their own."""
    options = {"repeats": 1} if name == "bifpn" else {}
    adapter = build_adapter(name, (C3, C4, C5), 6, "p6p7", **options).eval()
    rows, batch = torch.export.Dim("rows", min=5, max=64), torch.export.Dim("batch", max=64)
    shapes = [{0: batch, 2: rows * (32 // level.stride)} for level in adapter.levels_in]
    program = torch.export.export(
        adapter, (maps_of(adapter.levels_in, 256, 320),), dynamic_shapes=(shapes,)
    ).module()
    compiled = torch.compile(adapter, fullgraph=True, backend="eager", dynamic=True)
    for size in ((256, 320), (416, 320)):
        maps = maps_of(adapter.levels_in, *size)
        torch.testing.assert_close(program(maps), adapter(maps))
        torch.testing.assert_close(compiled(maps), adapter(maps))


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ((C3, C5), {}, "strides must double .* c3 of stride 8, c5 of stride 32: choose other out"),
        ((C3, C4, FeatureLevel("c5", 28, 16)), {}, "strides must double .* c5 of stride 16"),
        ((), {}, "or more levels"),
        ((C3, C4), {"extra": "p6"}, "extra must be one of None, 'pool', 'p6p7', got 'p6'"),
        ((C3, C4), {"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ((C3, C4), {"out_channels": "8"}, "out_channels must be a whole number, got '8'"),
        ((C3, C4), {"repeat": 3, "depth": 1}, "takes out_channels, extra.* not depth, repeat"),
    ],
)
def test_a_wrong_adapter_gets_a_sentence(
    name: str, levels: tuple[FeatureLevel, ...], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_adapter(name, levels, **options)


def test_a_wrong_name_or_number_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"adapter must be one of 'fpn', .* got 'nasfpn'"):
        build_adapter("nasfpn", (C3, C4))
    with pytest.raises(ValueError, match="must be even, two halves, got 7"):
        build_adapter("dense_prediction", (C3, C4), 7)
    with pytest.raises(ValueError, match="needs two or more levels, got c5 of stride 32"):
        build_adapter("dense_prediction", (C5,))
    with pytest.raises(ValueError, match=r"reads 2 maps \(c3 .* got 3: choose the backbone's maps"):
        build_adapter("dense_prediction", (C3, C4, C5), 8)(maps_of((C3, C4, C5)))


def test_options_reach_their_adapter() -> None:
    assert len(build_adapter("bifpn", (C3, C4), 6, repeats=5).cells) == 5
    assert build_adapter("fpn", (C3, C4), 6, "p6p7", p6p7_input="p5").pyramid.extra_blocks.use_P5
    assert build_adapter("pan", (C3, C4), 6, "p6p7", p6p7_input="p5").extra.use_P5


@pytest.mark.parametrize("name", ["fpn", "pan"])
def test_one_level_can_carry_a_pyramid(name: str) -> None:
    adapter = build_adapter(name, (C5,), 6, "p6p7")
    assert [x.shape[-1] for x in adapter(maps_of((C5,), 256))] == [8, 4, 2]
