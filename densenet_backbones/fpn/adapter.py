"""`Adapter`, the base class of adapters, and the levels that pyramids read and return."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from densenet_backbones.features import FeatureLevel
from densenet_backbones.messages import check_choice, check_whole

__all__ = ["Adapter"]

# Levels that each choice of `extra` adds beyond the backbone's.
EXTRA_LEVELS = {None: 0, "pool": 1, "p6p7": 2}


class Adapter(nn.Module):
    """Module from maps of ``levels_in`` to maps of ``levels``.

    Attributes:
        levels_in: Levels that `forward` takes, in this order.
        levels: Levels that `forward` returns, in this order, fine to coarse.
    """

    levels_in: tuple[FeatureLevel, ...]
    levels: tuple[FeatureLevel, ...]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Turn maps (N, C, H, W) of ``levels_in`` into maps of ``levels``."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the parameters to train without weight decay (timm's method name)."""
        return set()

    def _check_number(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.levels_in):
            raise ValueError(
                f"the adapter reads {len(self.levels_in)} maps "
                f"({describe_levels(self.levels_in)}), got {len(features)}: choose the backbone's "
                "maps by the adapter's levels_in"
            )


def pad_narrow_maps(adapter: nn.Module) -> None:
    """Have strided convolutions of an adapter pad maps that are narrower than the stride.

    PyTorch's bfloat16 convolutions on a CPU with AVX-512 leave the weight's gradient of such a map
    uninitialized, where the kernel reaches beyond it (oneDNN 3.12, seen with AVX-512, its bfloat16
    and AMX; float32 and float16 are right). A map a pixel wide is what a small image leaves to the
    last levels. Zeros on the right, which the convolution's own padding stands for, make it right.

    Backbones of timm and torchvision are left as they are. Their own strided convolutions meet such
    maps where images are 16 pixels wide or less, which trainings in bfloat16 should not be.

    Args:
        adapter: Module with all its parts; convolutions that are 1 wide, or of stride 1, stay.
    """
    for conv in adapter.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride[1] > 1 and conv.kernel_size[1] > 1:
            conv.register_forward_pre_hook(_pad_narrow_map)


def _pad_narrow_map(conv: nn.Conv2d, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    (x,) = inputs
    # No question about sizes where no gradient is asked for: exported programs hold for all sizes.
    exports = torch.compiler.is_exporting() or is_tracing()
    if exports or not torch.is_grad_enabled() or x.device.type != "cpu":
        return inputs
    if x.shape[3] < conv.stride[1]:
        return (F.pad(x, (0, conv.stride[1] - x.shape[3])),)
    return inputs


def match_size(x: Tensor, other: Tensor) -> Tensor:
    """Resize ``x`` (N, C, h, w) to the height and width of ``other``, by nearest neighbors.

    Where ``x`` is one row or column too large, as after halving upwards beside a backbone that
    halves downwards, this drops the last one. No question is asked about the sizes, so that
    exported programs hold for all of them.
    """
    return F.interpolate(x, size=other.shape[-2:], mode="nearest")


def build_pyramid_levels(
    levels_in: Sequence[FeatureLevel], out_channels: int, extra: str | None
) -> tuple[FeatureLevel, ...]:
    """Return a pyramid's levels: the strides of ``levels_in``, then doubled ones for ``extra``.

    Raises:
        ValueError: ``out_channels`` or ``extra`` is not legal, or strides do not double.
    """
    check_doubling(levels_in)
    check_choice("extra", extra, EXTRA_LEVELS)
    check_whole("out_channels", out_channels)
    names = [name_pyramid_level(level, index) for index, level in enumerate(levels_in)]
    strides = [level.stride for level in levels_in]
    for _ in range(EXTRA_LEVELS[extra]):
        names.append(name_next_level(names[-1]))
        strides.append(2 * strides[-1])
    return tuple(
        FeatureLevel(name, out_channels, stride)
        for name, stride in zip(names, strides, strict=True)
    )


def check_doubling(levels: Sequence[FeatureLevel]) -> None:
    """Raise ValueError unless there are levels, each of twice the stride of the one before."""
    if not levels:
        raise ValueError("an adapter needs one or more levels of a backbone, got none")
    for finer, coarser in pairwise(levels):
        if coarser.stride != 2 * finer.stride:
            raise ValueError(
                "strides must double from level to level, as the paths between them do; got "
                f"{describe_levels(levels)}: choose other out_indices or output_stride of the "
                "backbone"
            )


def describe_levels(levels: Sequence[FeatureLevel]) -> str:
    """Return names and strides of levels, for an error's sentence."""
    return ", ".join(f"{level.name} of stride {level.stride}" for level in levels) or "none"


def name_pyramid_level(level: FeatureLevel, index: int) -> str:
    """Return ``p3`` for ``c3``; by position where a level is not named by its stage."""
    stage = level.name[1:]
    return f"p{stage}" if level.name[:1] == "c" and stage.isdigit() else f"p{index + 2}"


def name_next_level(name: str) -> str:
    """Return ``p4`` for ``p3``."""
    return f"p{int(name[1:]) + 1}"
