"""The U-Net decoder over any backbone."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_nets import TINY, parameters_of, randomise_norms
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.heads import Segmenter, UNet
from densenet_backbones.heads.segmentation.unet import AttentionGate, DecoderStage, unet

CIFAR = {"backbone": "densenet40_k12_features"}


def tiny(**options: object) -> Segmenter:
    torch.manual_seed(0)
    defaults = {"num_classes": 3, "backbone_kwargs": TINY, "decoder_channels": (16, 12, 8, 8, 4)}
    return randomise_norms(unet(**{**defaults, **options}))


# --- over any backbone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({}, [2, 4, 8, 16, 32]),
        ({"backbone_kwargs": {**TINY, "tap": "norm", "memory": "layer"}}, [2, 4, 8, 16, 32]),
        ({"backbone_kwargs": {**TINY, "out_indices": (1, 2, 3)}}, [4, 8, 16]),
        ({"backbone_kwargs": {**TINY, "out_indices": (0,)}}, [2]),
        ({**CIFAR, "backbone_kwargs": {"block_config": (1, 1, 1), "out_indices": 3}}, [1, 2, 4]),
        ({"backbone": "resnet18", "backbone_kwargs": {}}, [2, 4, 8, 16, 32]),
        ({"backbone": "convnext_atto", "backbone_kwargs": {}}, [4, 8, 16, 32]),
        ({"logits_stride": 4}, [2, 4, 8, 16, 32]),
        ({"logits_stride": 2, "backbone": "convnext_atto", "backbone_kwargs": {}}, [4, 8, 16, 32]),
    ],
)
def test_logits_have_the_images_size_and_every_parameter_learns(
    options: dict, strides: list[int]
) -> None:
    model = tiny(**options)
    levels = feature_levels(model.net.backbone)
    assert [level.stride for level in levels] == strides
    assert model.stride == strides[-1]
    logits = model(torch.rand(2, 3, 45, 71))
    assert logits.shape == (2, 3, 45, 71)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({"backbone_kwargs": {**TINY, "output_stride": 8}}, r"\[2, 4, 8, 8, 8\]"),
        ({"backbone_kwargs": {**TINY, "out_indices": (0, 2)}}, r"\[2, 8\]"),
        ({**CIFAR, "backbone_kwargs": {"block_config": (1, 1, 1)}}, r"\[1, 1, 2, 4\]"),
        ({**CIFAR, "backbone_kwargs": {"block_config": (1, 1), "out_indices": (1,)}}, r"\[1\]"),
    ],
)
def test_strides_that_do_not_double_get_a_sentence(options: dict, strides: str) -> None:
    with pytest.raises(ValueError, match=f"{strides}: choose other out_indices or output_stride"):
        tiny(**options)


def test_any_module_that_describes_its_levels_is_a_backbone() -> None:
    net = timm.create_model("densenet121_features", **TINY)
    model = UNet(net, 2, decoder_channels=(8, 8, 8, 8, 8))
    assert model(torch.rand(2, 3, 32, 64)).shape == (2, 2, 32, 64)
    other = nn.Identity()
    with pytest.raises(ValueError, match="Identity does not describe its feature maps"):
        UNet(other, 2)
    other.levels = (FeatureLevel("c1", 8, 3), FeatureLevel("c2", 8, 6))
    with pytest.raises(ValueError, match=r"from a power of 2 up to 2 or more, got \[3, 6\]"):
        UNet(other, 2)


def test_normalization_is_that_of_the_backbones_weights_unless_given() -> None:
    assert tiny().normalization.image_mean == pytest.approx([0.485, 0.456, 0.406])
    small = {"growth_rate": 4, "block_config": (1, 1), "num_init_features": 8}
    dsod = {"backbone": "dsod_features", "backbone_kwargs": {**small, "transition_pool": True}}
    assert tiny(**dsod).normalization.to_dict() == {
        "image_mean": [104, 117, 123],
        "image_std": [1, 1, 1],
        "channel_order": "bgr",
        "value_range": 255,
    }
    own = tiny(**dsod, image_mean=[0, 0, 0]).normalization
    assert own.image_mean == [0, 0, 0] and own.channel_order == "bgr"


def test_memory_modes_of_the_backbone_reach_it() -> None:
    assert tiny(backbone_kwargs={**TINY, "memory": "block"}).net.backbone.memory == "block"


def test_padding_is_the_mean_beyond_the_right_and_the_bottom() -> None:
    model = tiny().double().eval()
    images = torch.rand(2, 3, 50, 60, dtype=torch.float64)
    whole = (
        torch.tensor(model.normalization.image_mean).double().view(1, 3, 1, 1).repeat(2, 1, 64, 64)
    )
    whole[..., :50, :60] = images
    torch.testing.assert_close(model(images), model(whole)[..., :50, :60])


# --- the decoder -------------------------------------------------------------------------------


def test_equals_smps_decoder_on_the_same_weights() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    model, x = tiny(upsampling="nearest").eval(), torch.randn(2, 3, 64, 96)
    maps = model.net.backbone(x)
    theirs = UnetDecoder(
        encoder_channels=[3, *(m.shape[1] for m in maps)],
        decoder_channels=[16, 12, 8, 8, 4],
    ).eval()
    ours = model.net.stages.state_dict()
    named = zip(theirs.state_dict(), ours.values(), strict=True)
    theirs.load_state_dict(dict(named))
    torch.testing.assert_close(model.net(x), model.net.classifier(theirs([x, *maps])))


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest", "transposed"])
@pytest.mark.parametrize("attention", [False, True])
def test_forward_equals_the_paper_written_out(upsampling: str, attention: bool) -> None:
    model = tiny(upsampling=upsampling, attention=attention).double().eval()
    net, x = model.net, torch.randn(2, 3, 64, 32, dtype=torch.float64)
    *skips, y = net.backbone(x)
    for stage in net.stages:
        if upsampling == "transposed":
            up = F.conv_transpose2d(y, stage.up.weight, stage.up.bias, stride=2)
        elif upsampling == "nearest":
            up = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        else:
            up = F.interpolate(y, scale_factor=2.0, mode="bilinear")
        if skips:
            skip = skips.pop()
            up = torch.cat((up, stage.gate(skip, y) if attention else skip), dim=1)
        assert (stage.gate is not None) == (attention and up.shape[1] > y.shape[1])
        for part in stage.convs:
            up = F.conv2d(up, part.conv.weight, padding=1)
            up = part.norm(up).relu()
        y = up
    assert not skips
    torch.testing.assert_close(net(x), net.classifier(y))


def test_attention_gate_by_hand() -> None:
    gate = AttentionGate(skip_channels=2, gate_channels=1)
    assert gate.theta.weight.shape == (1, 2, 2, 2)
    with torch.no_grad():
        for p in gate.parameters():
            p.fill_(1.0)
        gate.phi.bias.fill_(-30.0)
        gate.psi.bias.fill_(-4.0)
    skip, coarse = torch.ones(1, 2, 2, 2), torch.full((1, 1, 1, 1), 25.0)
    # theta sums 8 ones; 8 + 25 - 30 = 3; sigmoid(3 - 4)
    assert gate(skip, coarse).unique().item() == pytest.approx(1 / (1 + math.exp(1)))
    # A gate that disagrees is cut off by the ReLU: sigmoid(-4)
    assert gate(skip, coarse - 10).unique().item() == pytest.approx(1 / (1 + math.exp(4)))
    with torch.no_grad():
        gate.psi.bias.fill_(40.0)
    assert torch.equal(gate(skip, coarse), skip)  # wide open


def test_deep_supervision_in_training_only() -> None:
    model = tiny(deep_supervision=True)
    x = torch.randn(2, 3, 64, 96)
    output = model.net(x)
    assert [tuple(a.shape) for a in output["aux"]] == [
        (2, 3, 64 // stride, 96 // stride) for stride in (16, 8, 4, 2)
    ]
    output = model(torch.rand(2, 3, 50, 33))
    assert [tuple(a.shape) for a in [output["logits"], *output["aux"]]] == [(2, 3, 50, 33)] * 5
    sum(a.square().mean() for a in [output["logits"], *output["aux"]]).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert isinstance(model.eval()(torch.rand(2, 3, 50, 33)), Tensor)
    assert len(tiny().net.aux_classifiers) == 0


def test_widths_count_from_the_images_size() -> None:
    def widths(model: Segmenter) -> list[int]:
        return [stage.convs[1].conv.out_channels for stage in model.net.stages]

    assert widths(tiny()) == [16, 12, 8, 8, 4]
    assert widths(tiny(backbone_kwargs={**TINY, "out_indices": (1, 2)})) == [8, 8, 4]


@pytest.mark.parametrize("stride", [1, 2, 4, 16])
def test_a_coarser_map_is_classified_and_its_logits_brought_up(stride: int) -> None:
    whole, model = tiny().eval(), tiny(logits_stride=stride).eval()
    # The same stages, without the finest ones: weights of the one fit the other's.
    left = len(model.net.stages)
    assert left == 5 - math.log2(stride)
    model.net.backbone.load_state_dict(whole.net.backbone.state_dict())
    model.net.stages.load_state_dict(whole.net.stages[:left].state_dict())
    x = torch.randn(2, 3, 64, 96)
    *skips, coarse = whole.net.backbone(x)
    for stage in whole.net.stages[:left]:
        coarse = stage(coarse, skips.pop() if skips else None)
    assert coarse.shape[-2:] == (64 // stride, 96 // stride)
    logits = F.interpolate(model.net.classifier(coarse), x.shape[-2:], mode="bilinear")
    torch.testing.assert_close(model.net(x), logits)


def test_deep_supervision_is_of_maps_coarser_than_the_classified_one() -> None:
    output = tiny(logits_stride=4, deep_supervision=True).net(torch.randn(2, 3, 64, 96))
    assert output["logits"].shape == (2, 3, 64, 96)
    assert [a.shape[-1] for a in output["aux"]] == [96 // 16, 96 // 8]


def test_group_norm_leaves_no_batch_norm_in_the_decoder() -> None:
    stages = tiny(norm="group", decoder_channels=(32, 24, 8, 3, 4)).net.stages
    norms = [stage.convs[0].norm for stage in stages]
    assert all(isinstance(norm, nn.GroupNorm) for norm in norms)
    assert [n.num_channels // n.num_groups for n in norms] == [16, 8, 8, 1, 4]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in stages.modules())


def test_converters_of_norms_keep_every_activation() -> None:
    model = tiny().eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.net.stages.modules())
    torch.testing.assert_close(converted(images), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"decoder_channels": (64, 32)}, r"5 or more numbers .* stride of 32, got \[64, 32\]"),
        ({"decoder_channels": (8, 8, 8, 8, 0)}, r"1 or more, .* got \[8, 8, 8, 8, 0\]"),
        ({"logits_stride": 0}, "logits_stride must be at least 1, got 0"),
        ({"logits_stride": 3}, "logits_stride must be a power of 2 below .* of 32, got 3"),
        ({"logits_stride": 32}, "logits_stride must be a power of 2 below .* of 32, got 32"),
        ({"upsampling": "cubic"}, r"upsampling must be one of 'bilinear', .* got 'cubic'"),
        ({"norm": "layer"}, r"norm must be one of 'bn', 'group', got 'layer'"),
    ],
)
def test_wrong_options_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


# --- as a whole --------------------------------------------------------------------------------


def test_a_few_steps_find_squares() -> None:
    model = tiny(num_classes=2)
    images, target = torch.zeros(2, 3, 32, 40), torch.zeros(2, 32, 40, dtype=torch.int64)
    images[0, :, 5:20, 5:20] = images[1, :, 10:30, 22:38] = 1.0
    target[0, 5:20, 5:20] = target[1, 10:30, 22:38] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images), target).backward()
        optimizer.step()
    assert (model(images).argmax(dim=1) == target).float().mean() > 0.97


def test_sizes_and_parameter_names_are_stable() -> None:
    assert parameters_of(lambda: unet(num_classes=21)) == 13_607_845
    names = set(dict(tiny(deep_supervision=True, attention=True).named_parameters()))
    assert {n for n in names if n.startswith("net.stages.0.")} == {
        "net.stages.0.gate.theta.weight",
        "net.stages.0.gate.phi.weight",
        "net.stages.0.gate.phi.bias",
        "net.stages.0.gate.psi.weight",
        "net.stages.0.gate.psi.bias",
        "net.stages.0.convs.0.conv.weight",
        "net.stages.0.convs.0.norm.weight",
        "net.stages.0.convs.0.norm.bias",
        "net.stages.0.convs.1.conv.weight",
        "net.stages.0.convs.1.norm.weight",
        "net.stages.0.convs.1.norm.bias",
    }
    assert {"net.classifier.bias", "net.aux_classifiers.3.weight"} < names
    assert "net.backbone.denseblock1.denselayer1.conv1.weight" in names
    assert "net.stages.1.up.weight" in dict(tiny(upsampling="transposed").named_parameters())


def test_a_stage_without_skip_has_nothing_to_gate() -> None:
    stage = DecoderStage(4, None, 2, "bilinear", attention=True, norm="bn")
    assert stage.gate is None
    assert stage(torch.rand(2, 4, 3, 5), None).shape == (2, 2, 6, 10)
