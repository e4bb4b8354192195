"""Path aggregation: a feature pyramid, and a way back up from its finest level."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn.adapter import (
    Adapter,
    build_pyramid_levels,
    match_size,
    pad_narrow_maps,
)
from densenet_backbones.fpn.feature_pyramid import build_extra_blocks, run_pyramid

__all__ = ["PAN"]


class PAN(Adapter):
    """Feature pyramid with PANet's bottom-up path (Liu et al., arXiv:1803.01534, figure 1b).

    Section 3.1: the finest map stays, N2 = P2. Every further one is N_i+1 = f(P_i+1 + g(N_i)) with
    3x3 convolutions f and g, g of stride 2, each followed by ReLU. Extra levels stand on the result
    as they do on a feature pyramid: ``"pool"`` sub-samples the last N.

    The authors' code (ShuLiu1993/PANet, ``lib/modeling/FPN.py``) leaves the ReLUs out where it
    trains without group norm; this follows the paper.

    Args:
        levels_in: One or more levels, fine to coarse, each of twice the stride of the one before.
        out_channels: Channels of every output level.
        extra: Coarser levels on top, as of `FPN`.
        p6p7_input: Map that ``"p6p7"`` convolves: ``"c5"``, the last input level, or ``"p5"``, the
            last output level.

    Attributes:
        pyramid: Names and shapes of its parameters are those of `FPN`'s.

    Raises:
        ValueError: If an argument is out of range, or strides do not double.
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        out_channels: int = 256,
        extra: str | None = "pool",
        p6p7_input: str = "c5",
    ) -> None:
        super().__init__()
        self.levels = build_pyramid_levels(levels_in, out_channels, extra)
        self.levels_in = tuple(levels_in)
        self.pyramid = FeaturePyramidNetwork([level.channels for level in levels_in], out_channels)
        self.steps = nn.ModuleList(_Step(out_channels) for _ in levels_in[1:])
        self.extra = build_extra_blocks(
            extra, self.levels_in[-1].channels, out_channels, p6p7_input
        )
        pad_narrow_maps(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Turn maps of ``levels_in`` into maps of ``levels``."""
        self._check_number(features)
        finest, *coarser = run_pyramid(self.pyramid, features)
        # Up from the finest map, so that its details reach the coarse ones in few steps.
        maps = [finest]
        for step, x in zip(self.steps, coarser, strict=True):
            maps.append(step(maps[-1], x))
        if self.extra is not None:
            maps, _ = self.extra(maps, features, [])
        return maps


class _Step(nn.Module):
    """N_i (N, C, H, W) and P_i+1 (N, C, H / 2, W / 2) to N_i+1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.fuse = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        for conv in (self.down, self.fuse):  # as torchvision starts its pyramid
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        down = match_size(F.relu(self.down(finer)), coarser)
        return F.relu(self.fuse(coarser + down))
