"""Adapters: names, channels and strides of their levels, and maps that agree with them."""

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_levels import C3, C4, C5, maps_of
from torch import nn

import densenet_backbones  # noqa: F401  (registers)
from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import FPN, Adapter, DensePrediction, build_adapter, caffe_xavier_


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
    with pytest.raises(ValueError, match="'pool', 'p6p7' or None, got 'p6'"):
        FPN((C3, C4), extra="p6")
    with pytest.raises(ValueError, match="'c5' or 'p5', got 'p6'"):
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
    with pytest.raises(ValueError, match=r"first_channels must be a whole number of 1 .* got 0"):
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


# -- every adapter ------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_captured_whole_for_all_sizes(name: str) -> None:
    """Images of 32 k pixels, from 160 on: below, maps of a single cell are a case of their own."""
    adapter = build_adapter(name, (C3, C4, C5), 6, "p6p7").eval()
    sides = torch.export.Dim("rows", min=5, max=64), torch.export.Dim("columns", min=5, max=64)
    batch = torch.export.Dim("batch", max=64)
    shapes = [
        {0: batch, **{2 + axis: side * (32 // level.stride) for axis, side in enumerate(sides)}}
        for level in adapter.levels_in
    ]
    program = torch.export.export(
        adapter, (maps_of(adapter.levels_in, 256, 320),), dynamic_shapes=(shapes,)
    ).module()
    compiled = torch.compile(adapter, fullgraph=True, backend="eager", dynamic=True)
    for size in ((256, 320), (416, 160)):
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
        ((C3, C4), {"extra": "p6"}, "extra must be 'pool', 'p6p7' or None, got 'p6'"),
        ((C3, C4), {"out_channels": 0}, "out_channels must be a whole number of 1 .* got 0"),
        ((C3, C4), {"out_channels": "8"}, "out_channels must be a whole number .* got '8'"),
        ((C3, C4), {"repeat": 3, "depth": 1}, "takes out_channels, extra.* not depth, repeat"),
    ],
)
def test_a_wrong_adapter_gets_a_sentence(
    name: str, levels: tuple[FeatureLevel, ...], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_adapter(name, levels, **options)


def test_a_wrong_name_or_number_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="one of fpn, pan, bifpn, dense_prediction, got 'nasfpn'"):
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
