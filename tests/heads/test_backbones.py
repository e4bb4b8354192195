"""Backbones by name: ``weights_backbone`` means the same in every builder."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
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


PYRAMIDS = ["retinanet_fpn", "fasterrcnn_fpn", "fcos_fpn", "unet"]
THEIRS = ["densenet121", *timm.list_models("test_*")]  # timm's own tiny nets, one of each kind


@pytest.mark.parametrize("builder", PYRAMIDS)
@pytest.mark.parametrize("name", THEIRS)
def test_networks_of_timm_work_or_say_why_not(builder: str, name: str) -> None:
    with torch.device("meta"):
        try:
            model = torchvision.models.get_model(builder, num_classes=3, backbone=name)
        except ValueError as error:
            assert "stride" in str(error) or "NCHW" in str(error)
            assert "vit" in name or "mamba" in name  # one stride alone, or channels last
            return
    assert any(type(m).__module__.startswith("timm.models") for m in model.modules())


def test_output_stride_where_a_network_has_none_is_said() -> None:
    for builder in ("retinanet_fpn", "unet"):
        given: Any = {"backbone_kwargs": {"output_stride": 8}}
        with pytest.raises(ValueError, match=r"cannot be built .* leave out output_stride"):
            torchvision.models.get_model(builder, num_classes=3, backbone="densenet121", **given)
    with pytest.raises(ValueError, match=r"strides double.* output_stride of the backbone"):
        torchvision.models.get_model("unet", num_classes=3, **given)


def test_networks_of_one_size_name_the_size() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="cannot run on images of 300x300"):
        torchvision.models.get_model("ssd300", num_classes=3, backbone="test_coatnet")


def test_timms_weights_out_of_reach_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", fail)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(RuntimeError, match="timm publishes of 'test_resnet' are neither on this"):
        create_features("test_resnet", "timm")


@pytest.mark.parametrize("builder", ["retinanet_fpn", "ssd300", "dsod300", "unet", "fcdensenet56"])
def test_torchscript_is_refused_with_what_to_do_instead(builder: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(builder, num_classes=3).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own word on it
        with pytest.raises(RuntimeError, match=r"does not support torch.jit.script.* densenet-exp"):
            torch.jit.script(model)
        if "unet" in builder or "fcdense" in builder:
            return  # a segmenter's operations are the same for all images: traces hold
        with pytest.raises(RuntimeError, match=r"does not support torch.jit.trace.* densenet-exp"):
            torch.jit.trace(model, ([torch.rand(3, 64, 64)],))


def test_config_libraries_numbers_are_taken_by_builders() -> None:
    numbers: Any = {"min_size": np.int64(64), "max_size": np.int64(96), "out_channels": np.int64(8)}
    body: Any = {name: np.array(value) for name, value in BODY.items()}
    model = torchvision.models.get_model(
        "retinanet_fpn", num_classes=np.int64(3), backbone_kwargs=body, **numbers
    )
    assert model.transform.min_size == (64,)
    assert model.backbone.body.spec.block_config == BODY["block_config"]
