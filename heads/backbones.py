"""Base networks of detectors that predict from strides 8 and 16 upwards."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

import densenet_backbones.timm_models  # noqa: F401  (registers our names)
from densenet_backbones.features import FeatureLevel, feature_levels

BASE_STRIDES = (8, 16)

# szq0214/DSOD subtracts these means, in Caffe's channel order, and scales nothing.
DSOD_NORMALISATION = {
    "mean": [104.0, 117.0, 123.0],
    "std": [1.0, 1.0, 1.0],
    "channel_order": "bgr",
    "value_range": 255,
}


def base_network(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A timm feature network, ending after its last map of stride 16.

    Args:
        name: any timm name; DSOD's own bases are tapped behind the transition's 1x1 unless ``tap``
            says otherwise, so that the map of stride 8 is DSOD's "First".
        pretrained: load timm's weights.
        **kwargs: for ``timm.create_model``.

    Returns:
        A network whose `feature_levels` include strides 8 and 16.
    """
    if is_dsod_name(name):
        kwargs.setdefault("tap", "compressed")
    if kwargs.get("out_indices") is None:
        whole = timm.create_model(name, pretrained=False, features_only=True, **kwargs)
        info: Any = whole.feature_info
        taken = sorted(index % len(info) for index in info.out_indices)
        kwargs["out_indices"] = tuple(taken[i] for i in base_positions(feature_levels(whole)))
    return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)


def base_positions(levels: Sequence[FeatureLevel]) -> tuple[int, ...]:
    """Positions of the two base maps among ``levels``: the last one of each base stride."""
    by_stride = {level.stride: position for position, level in enumerate(levels)}
    if not set(BASE_STRIDES) <= by_stride.keys():
        raise ValueError(
            f"the backbone must have maps of strides {BASE_STRIDES}, got "
            f"{[level.stride for level in levels]}; choose other out_indices"
        )
    return tuple(by_stride[stride] for stride in BASE_STRIDES)


def normalisation_of(backbone: nn.Module, name: str | None) -> dict[str, Any]:
    """Mean, std, channel order and range that a backbone expects, as `Preprocessing` takes them.

    DSOD's own for its own bases and for modules that say nothing; else that of timm's
    ``pretrained_cfg``, RGB 0..1.
    """
    cfg = getattr(backbone, "pretrained_cfg", None)
    if not cfg or (name is not None and is_dsod_name(name)):
        return dict(DSOD_NORMALISATION)
    return {"mean": cfg["mean"], "std": cfg["std"], "channel_order": "rgb", "value_range": 1}


def is_dsod_name(name: str) -> bool:
    """Whether a timm name is one of DSOD's bases."""
    return name.startswith("dsod_")


def without_data(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of shapes only, for `functional_call` on inputs without data."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
