"""BiFPN: cells that fuse all levels downwards and upwards, each input by a learned weight."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn.adapter import (
    EXTRA_LEVELS,
    Adapter,
    build_pyramid_levels,
    describe_levels,
    match_size,
)
from densenet_backbones.messages import check_whole

__all__ = ["BiFPN"]


class BiFPN(Adapter):
    """Bi-directional feature pyramid of EfficientDet (Tan et al., arXiv:1911.09070, section 3).

    A 1x1 convolution and batch norm bring each level to one width; extra levels are max-pooled,
    the first from a 1x1 convolution of the last input level (google/automl,
    ``efficientdet_arch.py``, ``resample_feature_map``). Then ``repeats`` equal cells follow.

    Two differences from google/automl: its first cell has a 1x1 convolution for each use of a
    level, this one for each level; it pads pools of even maps at one end, this one at both.

    Batch norm needs more than one value a channel in training: two images, or a coarsest map of
    more than one cell.

    Args:
        levels_in: One or more levels, fine to coarse, each of twice the stride of the one before.
        out_channels: Channels of every output level.
        repeats: Number of cells (EfficientDet-D0 has 3, of 64 channels).
        extra: Coarser levels, which all cells fuse as well: ``"pool"`` for one, ``"p6p7"`` for two,
            or None.

    Raises:
        ValueError: If an argument is out of range, strides do not double, or there is one level
                in all.
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        out_channels: int = 256,
        repeats: int = 3,
        extra: str | None = "pool",
    ) -> None:
        super().__init__()
        check_whole("repeats", repeats)
        self.levels = build_pyramid_levels(levels_in, out_channels, extra)
        self.levels_in = tuple(levels_in)
        if len(self.levels) < 2:
            raise ValueError(
                f"BiFPN fuses two or more levels, got {describe_levels(levels_in)} and "
                f"extra={extra!r}"
            )
        sources = [*self.levels_in, *[self.levels_in[-1]] * bool(EXTRA_LEVELS[extra])]
        self.laterals = nn.ModuleList(_conv_norm(s.channels, out_channels) for s in sources)
        self.cells = nn.ModuleList(
            BiFPNCell(len(self.levels), out_channels) for _ in range(repeats)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Turn maps of ``levels_in`` into maps of ``levels``."""
        self._check_number(features)
        # All maps at one width; the first extra level has a lateral of its own from the last map.
        sources = [*features, features[-1]][: len(self.laterals)]
        maps = [lateral(x) for lateral, x in zip(self.laterals, sources, strict=True)]
        if len(maps) > len(features):
            maps[-1] = _halve(maps[-1])
        while len(maps) < len(self.levels):
            maps.append(_halve(maps[-1]))
        for cell in self.cells:
            maps = cell(maps)
        return maps

    def no_weight_decay(self) -> set[str]:
        """Return the fusion weights: relative to each other; zero switches an input off."""
        return {name for name, _ in self.named_parameters() if name.endswith(".fusion_weights")}


class BiFPNCell(nn.Module):
    """One BiFPN layer: maps of one width, fine to coarse, to maps of the same shapes.

    Downwards, each level but the finest and coarsest becomes td = conv(in, td of the coarser);
    upwards, each level becomes out = conv(in, td, out of the finer), where the finest level has no
    finer and the coarsest no td. ``conv`` is `FastFusion` of its inputs (figure 2d, equations of
    section 3.3).

    Args:
        num_levels: Number of levels, at least 2.
        channels: Channels of every map.
    """

    def __init__(self, num_levels: int, channels: int) -> None:
        super().__init__()
        inner = num_levels - 2
        self.down = nn.ModuleList(FastFusion(2, channels) for _ in range(inner))
        self.finest = FastFusion(2, channels)
        self.up = nn.ModuleList(FastFusion(3, channels) for _ in range(inner))
        self.coarsest = FastFusion(2, channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Fuse maps (N, C, H, W), fine to coarse, to maps of the same shapes."""
        finest, *inner, coarsest = maps
        # Down: coarse maps tell finer ones what is there.
        intermediate = [coarsest]  # coarse to fine
        for fuse, x in zip(self.down, reversed(inner), strict=True):
            intermediate.append(fuse(x, match_size(intermediate[-1], x)))
        # Up again: inner levels see their own input, the way down, and the finer result.
        fused = [self.finest(finest, match_size(intermediate[-1], finest))]
        for fuse, x, td in zip(self.up, inner, reversed(intermediate[1:]), strict=True):
            fused.append(fuse(x, td, match_size(_halve(fused[-1]), x)))
        last = match_size(_halve(fused[-1]), coarsest)
        fused.append(self.coarsest(coarsest, last))
        return fused


class FastFusion(nn.Module):
    """Fast normalized fusion of maps, then SiLU and a depthwise-separable 3x3 with batch norm.

    sum_i w_i x_i / (eps + sum_j w_j), where ReLU keeps every w >= 0 (section 3.3; eps = 1e-4). The
    activation stands before the convolution, as in google/automl (``OpAfterCombine``).

    Args:
        num_inputs: Number of maps to fuse.
        channels: Channels of every map.
    """

    eps = 1e-4

    def __init__(self, num_inputs: int, channels: int) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(num_inputs))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        """Fuse maps of one shape (N, C, H, W) to one."""
        weights = F.relu(self.fusion_weights)
        weights = weights / (weights.sum() + self.eps)
        weighted = (w * x for w, x in zip(weights.unbind(), maps, strict=True))
        x = F.silu(reduce(torch.add, weighted))
        fused: Tensor = self.norm(self.pointwise(self.depthwise(x)))
        return fused


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))


def _halve(x: Tensor) -> Tensor:
    """Max-pool by stride 2: (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
