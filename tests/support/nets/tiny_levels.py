"""Levels of a small backbone, and maps of them, for tests of adapters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel

C3, C4, C5 = FeatureLevel("c3", 12, 8), FeatureLevel("c4", 20, 16), FeatureLevel("c5", 28, 32)


def maps_of(
    levels: Sequence[FeatureLevel],
    height: int = 64,
    width: int | None = None,
    *,
    up: bool = True,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Random maps of two images; each level rounds its size up, or down."""
    sides = (height, width or height)
    return [
        torch.randn(
            2, level.channels, *[(s + up * (level.stride - 1)) // level.stride for s in sides]
        ).to(dtype)
        for level in levels
    ]


def shake(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, with no parameter or statistic left at 0 or 1."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.5 + 0.1)
    return module.double().eval()
