"""Backbones of torchvision's detectors: levels, weights, norms, freezing."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet
from torchvision.ops.misc import FrozenBatchNorm2d

from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.fpn import FPN, DensePrediction
from densenet_backbones.heads import DetectionBackbone, densenet_fpn_backbone
from densenet_backbones.heads.detection.body import select_levels
from densenet_backbones.heads.freezing import list_stages

TINY = {"growth_rate": 4, "block_config": [1, 2, 1, 1], "num_init_features": 8}


def tiny(name: str = "densenet121_features", **options: Any) -> DetectionBackbone:
    torch.manual_seed(0)
    ours = {"backbone_kwargs": TINY} if name == "densenet121_features" else {}
    return densenet_fpn_backbone(name, **{"out_channels": 16, **ours, **options})


def image(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 64, 96, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------ levels


@pytest.mark.parametrize("adapter", ["fpn", "pan", "bifpn", "dense_prediction"])
@pytest.mark.parametrize(
    ("options", "strides", "beyond"),
    [
        ({}, (4, 8, 16, 32, 64), 1),
        ({"extra": None}, (4, 8, 16, 32), 0),
        ({"min_stride": 8, "extra": "p6p7"}, (8, 16, 32, 64, 128), 2),
        ({"output_stride": 16}, (4, 8, 16, 32), 1),
        ({"output_stride": 16, "min_stride": 8, "extra": "p6p7"}, (8, 16, 32, 64), 2),
        ({"output_stride": 8, "min_stride": 4}, (4, 8, 16), 1),
    ],
)
def test_strides_are_the_network_s(
    adapter: Any, options: dict[str, Any], strides: tuple[int, ...], beyond: int
) -> None:
    backbone = tiny(adapter=adapter, **options).eval()
    assert tuple(level.stride for level in backbone.levels) == strides
    assert {level.channels for level in backbone.levels} == {16} == {backbone.out_channels}
    assert backbone.roi_levels == backbone.levels[: len(strides) - beyond]
    with torch.no_grad():
        maps = backbone(image())
    assert isinstance(maps, OrderedDict)
    names = [*"0123"[: len(strides) - beyond], *((), ("pool",), ("p6", "p7"))[beyond]]
    assert tuple(maps) == tuple(names) == backbone.map_names
    for level, x in zip(backbone.levels, maps.values(), strict=True):
        # halving rounds up beyond the coarsest map of the network
        assert x.shape == (2, 16, -(-64 // level.stride), -(-96 // level.stride))


def test_one_level_will_do() -> None:
    backbone = tiny(min_stride=32, extra=None).eval()
    assert [level.name for level in backbone.levels] == ["p5"]
    assert backbone(image())["0"].shape == (2, 16, 2, 3)


def test_of_levels_with_one_stride_the_deepest_is_read() -> None:
    strides = (2, 4, 8, 16, 16)
    levels = [FeatureLevel(f"c{i + 1}", 8, stride) for i, stride in enumerate(strides)]
    assert select_levels(levels, 4) == (1, 2, 4)
    assert select_levels(levels, 16) == (4,)
    with pytest.raises(ValueError, match=r"one of the backbone's strides \[2, 4, 8, 16\], got 5"):
        select_levels(levels, 5)
    backbone = tiny(output_stride=16)
    assert [level.name for level in backbone.adapter.levels_in] == ["c2", "c3", "c5"]


def test_the_maps_are_the_adapter_s_of_the_body_s() -> None:
    backbone = tiny().eval()
    whole = timm.create_model("densenet121_features", **TINY).eval()
    whole.load_state_dict(backbone.body.state_dict())
    with torch.no_grad():
        expected = backbone.adapter(whole(image())[1:])
        assert all(map(torch.equal, backbone(image()).values(), expected))


def test_the_body_ends_where_the_adapter_stops_reading() -> None:
    body = tiny(adapter="dense_prediction").body
    assert [level.name for level in feature_levels(body)] == ["c2", "c3"]
    assert not any(name.startswith("denseblock3") for name, _ in body.named_modules())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "rdnet_tiny"])
def test_any_timm_network_will_do(name: str) -> None:
    with torch.device("meta"):
        backbone = densenet_fpn_backbone(name, out_channels=32).eval()
        maps = backbone(torch.empty(1, 3, 64, 96))
    assert [level.stride for level in backbone.levels] == [4, 8, 16, 32, 64]
    assert [tuple(x.shape[-2:]) for x in maps.values()][:2] == [(16, 24), (8, 12)]


def test_levels_must_fit_and_have_one_width() -> None:
    body = timm.create_model("densenet121_features", **TINY)
    levels = feature_levels(body)
    with pytest.raises(ValueError, match=r"the same number of channels, got \[\('p2', 12\)"):
        DetectionBackbone(body, DensePrediction(levels[1:3], [4, 4]))
    other = [FeatureLevel("c2", 99, 4), FeatureLevel("c3", 99, 8)]
    with pytest.raises(ValueError, match=r"the adapter reads .*99.*, the body gives"):
        DetectionBackbone(body, FPN(other, 16))


# ------------------------------------------------------------------------------ weights


def torchvision_densenet() -> DenseNet:
    torch.manual_seed(7)
    net = DenseNet(4, (1, 2, 1, 1), 8, num_classes=5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_a_file_in_torchvisions_naming(tmp_path: Path, suffix: str) -> None:
    theirs = torchvision_densenet()
    path = tmp_path / f"densenet{suffix}"
    save: Any = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(theirs.state_dict(), path)
    backbone = tiny(weights_backbone=str(path)).eval()
    with torch.no_grad():
        assert torch.equal(backbone.body(image())[-1], theirs.features(image()).relu())
    norms = [m for m in backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms and backbone.frozen_stages == 2  # frozen norms, three trained layers
    assert "state_dict" not in backbone.body.pretrained_cfg


def test_weights_are_adapted_to_other_channels(tmp_path: Path) -> None:
    theirs = torchvision_densenet()
    torch.save(theirs.state_dict(), tmp_path / "densenet.pth")
    backbone = tiny(weights_backbone=str(tmp_path / "densenet.pth"), in_chans=1).eval()
    assert backbone.in_chans == 1
    summed = theirs.features.conv0.weight.sum(dim=1, keepdim=True)
    assert torch.equal(backbone.body.conv0.weight, summed)
    assert backbone(image(1))["0"].shape == (2, 16, 16, 24)


def test_weights_of_another_library_s_network(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    backbone = tiny("resnet18", weights_backbone=str(tmp_path / "resnet.pth"), norm="bn").eval()
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image()))))
        x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        assert torch.allclose(backbone.body(image())[-1], x, atol=1e-5)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(torchvision_densenet().state_dict(), tmp_path / "densenet.pth")
    wider = {"backbone_kwargs": {**TINY, "growth_rate": 6}}
    with pytest.raises(ValueError, match=r"densenet.pth: the weights do not fit .*of another sha"):
        tiny(weights_backbone=str(tmp_path / "densenet.pth"), **wider)
    with pytest.raises(ValueError, match=r"densenet.pth: it has no weights for 20 .*conv1.weight"):
        tiny("resnet18", weights_backbone=str(tmp_path / "densenet.pth"))
    with pytest.raises(ValueError, match=r"nowhere.pth: there is no such file"):
        tiny(weights_backbone="nowhere.pth")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"pretrained": True}, "'pretrained'; weights_backbone='timm' begins with published"),
        ({"weight_backbone": "timm"}, "did you mean 'weights_backbone'?"),
        ({"weights": "COCO_V1"}, "unexpected keyword argument 'weights'"),
    ],
)
def test_an_unknown_argument_is_refused(wrong: dict[str, object], sentence: str) -> None:
    """Left aside without a word, it would leave the backbone random."""
    with pytest.raises(TypeError, match=sentence):
        tiny(**wrong)


# ------------------------------------------------------------------------------ norms, freezing


@pytest.mark.parametrize("name", ["densenet121_features", "resnet18"])
@pytest.mark.parametrize(
    ("norm", "kind"),
    [("bn", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("sync", nn.SyncBatchNorm)],
)
def test_norms(name: str, norm: Any, kind: type[nn.Module]) -> None:
    backbone = tiny(name, norm=norm)
    norms = [m for m in backbone.body.modules() if "norm" in type(m).__name__.lower()]
    assert norms
    assert all(isinstance(m, kind) or type(m).__name__ == kind.__name__ for m in norms)
    assert backbone(image())["3"].isfinite().all()


@pytest.mark.parametrize("adapter", ["fpn", "bifpn"])
def test_torchvisions_own_detector_stands_on_it(adapter: Any) -> None:
    model = torchvision.models.detection.FasterRCNN(tiny(adapter=adapter), 2, min_size=64)
    images = list(image())
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model(images, [target, target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.adapter.parameters())
    assert [d.keys() for d in model.eval()(images)] == [{"boxes", "labels", "scores"}] * 2


def test_group_norm_is_for_our_own() -> None:
    even = {**TINY, "block_config": [2, 2, 2, 2]}
    backbone = tiny(norm="group", backbone_kwargs=even)
    assert any(isinstance(m, nn.GroupNorm) for m in backbone.body.modules())
    with pytest.raises(ValueError, match=r"'group' is for our own backbones; 'resnet18' has"):
        tiny("resnet18", norm="group")


LAST_OF_STAGES = {
    "densenet121_features": ("norm0", "transition1", "transition2", "transition3", "norm5"),
    "resnet18": ("bn1", "layer1", "layer2", "layer3", "layer4"),
    "convnext_atto": ("stem_1", "stages_0", "stages_1", "stages_2", "stages_3"),
    "efficientnet_b0": ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
}


@pytest.mark.parametrize("name", LAST_OF_STAGES)
def test_trainable_layers_are_counted_from_the_end(name: str) -> None:
    with torch.device("meta"):
        body = tiny(name).body
    names = [key for key, _ in body.named_parameters()]
    for layers in (5, 3, 0):
        with torch.device("meta"):
            backbone = tiny(name, trainable_backbone_layers=layers)
        assert backbone.frozen_stages == 5 - layers and backbone.num_stages == 5
        frozen = [k for k, p in backbone.body.named_parameters() if not p.requires_grad]
        if layers == 5:
            assert frozen == []
            continue
        last = LAST_OF_STAGES[name][4 - layers]
        end = max(i for i, key in enumerate(names) if key.startswith(f"{last}."))
        assert sorted(frozen) == sorted(names[: end + 1])


@pytest.mark.parametrize("name", ["densenet121_features", "resnet18"])
def test_frozen_stages_stay_in_eval_mode_and_can_thaw(name: str) -> None:
    backbone = tiny(name)
    backbone.freeze(2)
    backbone.train()
    stages = list_stages(backbone.body)
    before = {key: value.clone() for key, value in backbone.body.state_dict().items()}
    sum(x.sum() for x in backbone(image()).values()).backward()
    changed = {k for k, v in backbone.body.state_dict().items() if not torch.equal(v, before[k])}
    still = {id(b) for stage in stages[:2] for module in stage for b in module.buffers()}
    assert changed  # norms of the trained stages have seen a batch
    assert not any(id(backbone.body.get_buffer(key)) in still for key in changed)
    assert not any(m.training for stage in stages[:2] for m in stage)
    frozen = [p for p in backbone.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)
    backbone.freeze(0)
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    with pytest.raises(ValueError, match="stages must be 0 to 5"):
        backbone.freeze(6)


def test_a_short_body_counts_the_layers_of_the_whole_network() -> None:
    backbone = tiny(adapter="dense_prediction", trainable_backbone_layers=3)
    assert backbone.num_stages == 3 and backbone.frozen_stages == 2
    assert tiny(adapter="dense_prediction", trainable_backbone_layers=0).frozen_stages == 3


def test_a_network_without_named_stages_is_not_frozen() -> None:
    with torch.device("meta"):
        backbone = densenet_fpn_backbone("hrnet_w18_small", out_channels=16)
        assert backbone.frozen_stages == 0
        with pytest.raises(ValueError, match="does not say which modules make its stages"):
            backbone.freeze(1)


# ------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "densenet121_features",
            {"trainable_backbone_layers": 6},
            "_layers must be 0 to 5, got 6",
        ),
        ("densenet121_features", {"in_chans": 0}, "in_chans and output_stride must be 1 or more"),
        ("densenet121_features", {"min_stride": 3}, "min_stride must be one of the backbone's"),
        ("densenet121_features", {"output_stride": 7}, "output_stride"),
        ("densenet121_features", {"adapter": "nas"}, "adapter must be one of"),
        (
            "densenet121_features",
            {"extra": "p8"},
            "extra must be one of None, 'pool', 'p6p7', got 'p8'",
        ),
        ("densenet121_features", {"adapter_kwargs": {"repeats": 2}}, "'fpn' takes .*not repeats"),
        (
            "resnet18",
            {"backbone_kwargs": {"growth": 4}},
            "cannot be built with .*growth",
        ),
        ("vgg11_bn", {"output_stride": 16}, "vgg11_bn"),
        ("swin_tiny_patch4_window7_224", {}, "returns NHWC maps; NCHW maps are needed"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(name, **options)


def test_names_for_the_optimizer() -> None:
    backbone = tiny(adapter="bifpn")
    names = {name for name, _ in backbone.named_parameters()}
    exempt = backbone.no_weight_decay()
    assert exempt and exempt <= names and all(name.startswith("adapter.") for name in exempt)
    groups = timm.models.group_parameters(backbone, backbone.group_matcher())
    assert {name for group in groups.values() for name in group} == names
