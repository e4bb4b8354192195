"""trainable_backbone_layers counts alike in every builder, and frozen stages stay frozen."""

from typing import Any

import pytest
import torchvision
from torch import nn

from densenet_backbones.heads.freezing import FreezableModule

BODY = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8}
BUILDERS = ["dsod300", "retinanet_fpn", "ssd300", "unet"]


def build(builder: str, backbone: str, layers: int | None) -> Any:
    kwargs = BODY if backbone.endswith("_features") else {}
    options: dict[str, Any] = {"backbone": backbone, "backbone_kwargs": kwargs, "num_classes": 3}
    if builder == "dsod300":
        options |= {"image_size": 64, "adapter_channels": (8, 8, 8)}
    return torchvision.models.get_model(builder, **options, trainable_backbone_layers=layers)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("backbone", "stem", "later"),
    [("densenet121_features", "conv0.", "denseblock3."), ("resnet18", "conv1.", "layer3.")],
)
def test_the_last_layers_are_trained(builder: str, backbone: str, stem: str, later: str) -> None:
    model = build(builder, backbone, 3)
    (holder,) = (m for m in model.modules() if isinstance(m, FreezableModule))
    assert holder.frozen_stages == 2
    model.train()
    for name, parameter in holder.feature_net.named_parameters():
        if name.startswith((stem, "denseblock1.", "layer1.")):
            assert not parameter.requires_grad, name
        if name.startswith(later):
            assert parameter.requires_grad, name
    norms = [m for m in holder.feature_net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms[0].training and norms[-1].training
    holder.freeze(0)
    model.train()
    assert all(p.requires_grad for p in model.parameters()) and norms[0].training


@pytest.mark.parametrize("builder", BUILDERS)
def test_layers_out_of_range(builder: str) -> None:
    with pytest.raises(ValueError, match="trainable_backbone_layers must be 0 to 5, got 6"):
        build(builder, "densenet121_features", 6)


def test_a_module_as_backbone_has_no_layers_to_count() -> None:
    with pytest.raises(ValueError, match="trainable_backbone_layers need a backbone given by name"):
        torchvision.models.get_model("dsod300", backbone=nn.Identity(), trainable_backbone_layers=3)
