"""DSOD's dense prediction structure: every map halves the one before, reusing and learning."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn.adapter import (
    Adapter,
    check_doubling,
    describe_levels,
    name_next_level,
    name_pyramid_level,
    pad_narrow_maps,
)
from densenet_backbones.messages import check_whole

__all__ = ["DensePrediction", "caffe_xavier_"]


class DensePrediction(Adapter):
    """DSOD's dense prediction structure, for any two levels of any backbone.

    The finer base level ("First") is an output as it is, or, with ``first_channels``, by a 1x1
    convolution that DSOD does not have, so that all levels can have one width. The second output
    joins a 1x1 convolution of the coarser base level with a pooled 1x1 convolution of First. Every
    further output halves the one before and joins what it reuses (pool, 1x1) with what it learns
    (1x1, 3x3 of stride 2), each half of its channels. All convolutions are BN-ReLU-conv without
    bias; pools are 2x2 of stride 2 in ceil mode.

    Source: DSOD (arXiv:1708.01241) section 3.2 and szq0214/DSOD, ``model_libs.py``,
    ``DSOD300_V3_Body`` (and ``DSOD512_V3_Body``, which ends with one more stage of 128).

    Args:
        levels_in: Two levels, the second of twice the first's stride.
        half_channels: For the second and each further output, the channels of either half.
        first_channels: Channels of the first output; None for First as it is.
        reuse: False gives the plain structure that the paper compares with (figure 1, left): every
            output but First is learned, all of its channels, from the one before alone.

    Raises:
        ValueError: If an argument is out of range, or strides do not double.
    """

    def __init__(
        self,
        levels_in: Sequence[FeatureLevel],
        half_channels: Sequence[int] = (256, 256, 128, 128, 128),
        first_channels: int | None = None,
        reuse: bool = True,
    ) -> None:
        super().__init__()
        if len(levels_in) != 2:
            raise ValueError(f"DensePrediction needs two levels, got {describe_levels(levels_in)}")
        if not half_channels or min(half_channels) < 1:
            raise ValueError(f"half_channels must be positive numbers, got {half_channels!r}")
        check_doubling(levels_in)
        # The two maps of the base: the first predicts by itself, and both make the second.
        first, last = self.levels_in = tuple(levels_in)
        half, *further = half_channels
        self.trans = _bn_relu_conv(last.channels, half if reuse else 2 * half, kernel_size=1)
        self.first_reuse: nn.Sequential | None = None
        if reuse:
            self.first_reuse = _bn_relu_conv(first.channels, half, kernel_size=1)
        self.first: nn.Sequential | None = None
        if first_channels is not None:
            check_whole("first_channels", first_channels)
            self.first = _bn_relu_conv(first.channels, first_channels, kernel_size=1)
        width = first.channels if first_channels is None else first_channels
        levels = [FeatureLevel(name_pyramid_level(first, 1), width, first.stride)]
        levels.append(FeatureLevel(name_next_level(levels[0].name), 2 * half, last.stride))
        # Every further map is half learned and half reused from the one before, or all learned.
        self.stages = nn.ModuleList()
        for half in further:
            previous = levels[-1]
            make: Callable[[int, int], nn.Module] = _ReuseAndLearn if reuse else _learn
            self.stages.append(make(previous.channels, half))
            levels.append(
                FeatureLevel(name_next_level(previous.name), 2 * half, 2 * previous.stride)
            )
        self.levels = tuple(levels)
        self.apply(caffe_xavier_)
        pad_narrow_maps(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Turn the two base maps into maps of ``levels``."""
        self._check_number(features)
        first, last = features
        second = self.trans(last)
        if self.first_reuse is not None:
            second = torch.cat((second, self.first_reuse(_halve_to(first, last))), dim=1)
        if self.first is not None:
            first = self.first(first)
        maps = [first, second]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class _ReuseAndLearn(nn.Module):
    """One further output of `DensePrediction`: (N, C, H, W) to (N, 2 * half, H / 2, W / 2)."""

    def __init__(self, in_channels: int, half: int) -> None:
        super().__init__()
        self.reuse = _bn_relu_conv(in_channels, half, kernel_size=1)
        self.learn = _learn(in_channels, half, half)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, kernel_size=2, stride=2, ceil_mode=True)
        return torch.cat((self.reuse(pooled), self.learn(x)), dim=1)


def _learn(in_channels: int, half: int, out_channels: int | None = None) -> nn.Sequential:
    """The learned half of an output, or without ``out_channels`` all 2 * half of its channels."""
    return nn.Sequential(
        _bn_relu_conv(in_channels, half, kernel_size=1),
        _bn_relu_conv(half, out_channels or 2 * half, kernel_size=3, stride=2),
    )


def caffe_xavier_(module: nn.Module) -> None:
    """Initialize a convolution by Caffe's "xavier": uniform within sqrt(3 / fan_in).

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
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(in_channels), relu=nn.ReLU(), conv=conv))


def _halve_to(x: Tensor, other: Tensor) -> Tensor:
    """Max-pool ``x`` to the size of ``other``.

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
