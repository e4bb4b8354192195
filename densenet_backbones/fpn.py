"""Adapters between a backbone and a head: feature levels in, feature levels out.

Every adapter has ``levels_in`` and ``levels`` (tuples of `FeatureLevel`) and maps a list of N x C x
H x W tensors, one a level of ``levels_in``, to a list in the order of ``levels``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from densenet_backbones.features import FeatureLevel

__all__ = ["FPN", "DensePrediction", "caffe_xavier_"]

_EXTRA_LEVELS = {None: 0, "pool": 1, "p6p7": 2}


class FPN(nn.Module):
    """Feature pyramid (Lin et al., arXiv:1612.03144), by torchvision's implementation.

    Args:
        levels_in: two or more levels, fine to coarse, each of twice the stride of the one before.
        out_channels: of every output level.
        extra: coarser levels on top: ``"pool"``, one level by sub-sampling the last output (Faster
            R-CNN); ``"p6p7"``, two levels by 3x3 convolutions of stride 2 (RetinaNet); None.
        p6p7_input: what ``"p6p7"`` convolves: ``"c5"``, the last input level (RetinaNet), or
            ``"p5"``, the last output level (FCOS).
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        out_channels: int = 256,
        extra: str | None = "pool",
        p6p7_input: str = "c5",
    ) -> None:
        super().__init__()
        _check_doubling(levels_in)
        self.levels_in = tuple(levels_in)
        if extra not in _EXTRA_LEVELS:
            raise ValueError(f"extra must be 'pool', 'p6p7' or None, got {extra!r}")
        if p6p7_input not in ("c5", "p5"):
            raise ValueError(f"p6p7_input must be 'c5' or 'p5', got {p6p7_input!r}")
        self.pyramid = FeaturePyramidNetwork(
            [level.channels for level in levels_in],
            out_channels,
            _extra_blocks(extra, self.levels_in[-1].channels, out_channels, p6p7_input),
        )
        names = [_pyramid_name(level, index) for index, level in enumerate(levels_in)]
        strides = [level.stride for level in levels_in]
        for _ in range(_EXTRA_LEVELS[extra]):
            names.append(_next_name(names[-1]))
            strides.append(2 * strides[-1])
        self.levels = tuple(
            FeatureLevel(name, out_channels, stride)
            for name, stride in zip(names, strides, strict=True)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps of ``levels_in`` to maps of ``levels``."""
        named = OrderedDict(
            (level.name, x) for level, x in zip(self.levels_in, features, strict=True)
        )
        return list(self.pyramid(named).values())


class DensePrediction(nn.Module):
    """DSOD's dense prediction structure, for any two levels of any backbone.

    The finer base level ("First") is an output as it is. The second output joins a 1x1 convolution
    of the coarser base level with a pooled 1x1 convolution of First. Every further output halves
    the one before and joins what it reuses (pool, 1x1) with what it learns (1x1, 3x3 of stride 2),
    each half of its channels. All convolutions are BN-ReLU-conv without bias; pools are 2x2 of
    stride 2 in ceil mode.

    Source: DSOD (arXiv:1708.01241) section 3.2 and szq0214/DSOD, ``model_libs.py``,
    ``DSOD300_V3_Body`` (and ``DSOD512_V3_Body``, which ends with one more stage of 128).

    Args:
        levels_in: two levels, the second of twice the first's stride.
        half_channels: for the second and each further output, the channels of either half.
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        half_channels: Sequence[int] = (256, 256, 128, 128, 128),
    ) -> None:
        super().__init__()
        if len(levels_in) != 2:
            raise ValueError(f"DensePrediction needs two levels, got {_describe(levels_in)}")
        if not half_channels or min(half_channels) < 1:
            raise ValueError(f"half_channels must be positive numbers, got {half_channels!r}")
        _check_doubling(levels_in)
        first, last = self.levels_in = tuple(levels_in)
        half, *further = half_channels
        self.trans = _bn_relu_conv(last.channels, half, kernel_size=1)
        self.first_reuse = _bn_relu_conv(first.channels, half, kernel_size=1)
        levels = [FeatureLevel(_pyramid_name(first, 1), first.channels, first.stride)]
        levels.append(FeatureLevel(_next_name(levels[0].name), 2 * half, last.stride))
        self.stages = nn.ModuleList()
        for half in further:
            previous = levels[-1]
            self.stages.append(_ReuseAndLearn(previous.channels, half))
            levels.append(FeatureLevel(_next_name(previous.name), 2 * half, 2 * previous.stride))
        self.levels = tuple(levels)
        self.apply(caffe_xavier_)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The two base maps to maps of ``levels``."""
        first, last = features
        learned = self.trans(last)
        reused = self.first_reuse(_halve_to(first, last))
        maps = [first, torch.cat((learned, reused), dim=1)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class _ReuseAndLearn(nn.Module):
    """One further output of `DensePrediction`: (N, C, H, W) to (N, 2 * half, H / 2, W / 2)."""

    def __init__(self, in_channels: int, half: int) -> None:
        super().__init__()
        self.reuse = _bn_relu_conv(in_channels, half, kernel_size=1)
        self.learn = nn.Sequential(
            _bn_relu_conv(in_channels, half, kernel_size=1),
            _bn_relu_conv(half, half, kernel_size=3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
        return torch.cat((self.reuse(pooled), self.learn(x)), dim=1)


def caffe_xavier_(module: nn.Module) -> None:
    """Caffe's "xavier" for a convolution: uniform within sqrt(3 / fan_in).

    Not torch's ``xavier_uniform_``, which averages fan-in and fan-out (Caffe, ``filler.hpp``).
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")


def _bn_relu_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    return nn.Sequential(
        OrderedDict(norm=nn.BatchNorm2d(in_channels), relu=nn.ReLU(inplace=True), conv=conv)
    )


def _halve_to(x: Tensor, other: Tensor) -> Tensor:
    """Max-pooled ``x``, in the size of ``other``.

    Cutting the last row or column off a ceil-mode pool gives the floor-mode pool, so that backbones
    which round sizes down fit as well as DSOD's own, which rounds them up.
    """
    height, width = other.shape[-2:]
    pooled = F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)[..., :height, :width]
    if pooled.shape[-2:] != other.shape[-2:]:
        raise ValueError(
            f"the coarser base map must be half the finer: got {tuple(x.shape[-2:])} and "
            f"{(height, width)}; choose other levels of the backbone"
        )
    return pooled


def _extra_blocks(
    extra: str | None, c5_channels: int, out_channels: int, p6p7_input: str
) -> ExtraFPNBlock | None:
    if extra is None:
        return None
    if extra == "pool":
        return LastLevelMaxPool()
    block = LastLevelP6P7(c5_channels if p6p7_input == "c5" else out_channels, out_channels)
    # torchvision guesses from the channels, wrongly where c5 and p5 have the same number.
    block.use_P5 = p6p7_input == "p5"
    return block


def _check_doubling(levels: Sequence[FeatureLevel]) -> None:
    if len(levels) < 2:
        raise ValueError(f"an adapter needs two or more levels, got {_describe(levels)}")
    for finer, coarser in pairwise(levels):
        if coarser.stride != 2 * finer.stride:
            raise ValueError(
                "strides must double from level to level, as the paths between them do; got "
                f"{_describe(levels)}: choose other out_indices or output_stride of the backbone"
            )


def _describe(levels: Sequence[FeatureLevel]) -> str:
    return ", ".join(f"{level.name} of stride {level.stride}" for level in levels) or "none"


def _pyramid_name(level: FeatureLevel, index: int) -> str:
    """``p3`` of ``c3``; by position where a level is not named by its stage."""
    stage = level.name[1:]
    return f"p{stage}" if level.name[:1] == "c" and stage.isdigit() else f"p{index + 2}"


def _next_name(name: str) -> str:
    return f"p{int(name[1:]) + 1}"
