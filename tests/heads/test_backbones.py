"""Backbones by name: ``weights_backbone`` means the same in every builder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import DenseNet, DenseNet121_Weights, ResNet50_Weights, WeightsEnum

from densenet_backbones.heads import backbones
from densenet_backbones.heads.backbones import LOADED_LATER, create_features, is_ours

BODY = {"growth_rate": 4, "block_config": (1, 2, 1, 1), "num_init_features": 8}
BUILDERS = ["dsod300", "fcos_fpn", "ssd300", "unet"]  # one of each way to a backbone


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> DenseNet:
    """A small network in place of the one whose weights torchvision publishes."""
    torch.manual_seed(7)
    theirs = DenseNet(4, (1, 2, 1, 1), 8)
    state = {k.replace("norm1", "norm.1"): v for k, v in theirs.state_dict().items()}  # as the file
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: dict(state))
    return theirs


def first_convolution(builder: str, weights: object) -> torch.Tensor:
    options = {"num_classes": 3, "backbone": "densenet121_features", "backbone_kwargs": BODY}
    model: Any = torchvision.models.get_model(builder, **options, weights_backbone=weights)
    return next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    "weights",
    [
        "file",
        "DEFAULT",
        "IMAGENET1K_V1",
        "DenseNet121_Weights.IMAGENET1K_V1",
        DenseNet121_Weights.IMAGENET1K_V1,
    ],
)
def test_weights_are_torchvisions_or_a_file(
    builder: str, weights: object, published: DenseNet, tmp_path: Path
) -> None:
    torch.save(published.state_dict(), tmp_path / "file.pth")
    weights = str(tmp_path / "file.pth") if weights == "file" else weights
    expected = published.features.conv0.weight
    assert torch.equal(first_convolution(builder, weights), expected)
    for none in (None, "", LOADED_LATER):
        assert not torch.equal(first_convolution(builder, none), expected)


@pytest.mark.parametrize("builder", BUILDERS)
def test_timm_means_timm_s_weights(builder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, arguments: dict[str, Any]) -> nn.Module:
        asked.append(arguments.pop("pretrained", False))
        return original(name, arguments)

    original = backbones._create
    monkeypatch.setattr(backbones, "_create", create)
    first_convolution(builder, "timm")
    assert asked[-1] is True and not any(asked[:-1])


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    "weights",
    ["ResNet50_Weights.IMAGENET1K_V1", ResNet50_Weights.IMAGENET1K_V1, "IMAGENET1K_V2"],
)
def test_weights_of_another_network_are_refused(builder: str, weights: object) -> None:
    with pytest.raises(ValueError, match=r"no weights of backbone .*DenseNet121_Weights\.IMAGENET"):
        first_convolution(builder, weights)


def test_a_network_that_torchvision_lacks() -> None:
    with pytest.raises(ValueError, match=r"torchvision has none of it; or give timm, or a file"):
        create_features("dsod_features", "IMAGENET1K_V1")


def test_weights_out_of_reach_have_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no net")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(RuntimeError, match=r"IMAGENET1K_V1 are neither on this machine nor"):
        create_features("densenet121_features", "IMAGENET1K_V1")


def test_timm_s_own_densenets_are_not_ours() -> None:
    assert is_ours("densenet121_features") and is_ours("densenet121_features.tv_in1k")
    assert not is_ours("densenet121") and not is_ours("densenet121.ra_in1k")
    for builder in BUILDERS:
        model: Any = torchvision.models.get_model(builder, num_classes=3, backbone="densenet121")
        assert any("timm.models.densenet" in type(m).__module__ for m in model.modules())
