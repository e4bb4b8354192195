"""Starts the Triton kernels of passes over whole maps; what `native.passes` are on a CPU.

Maps are (N, C, H, W), of `interfaces.is_in_rows`; vectors are (C,) without gaps. All is computed in
float32, whatever the maps are.
"""

from typing import Any, cast

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import empty_channels_last
from densenet_backbones.dense_block.triton.layout import block_size
from densenet_backbones.dense_block.triton_training.norms import in_few_rows

__all__ = ["add_scaled", "affine_difference", "masked_sums", "scale_shift_relu"]

_VALUES = 4096  # of a program: 32 a thread


class _Tiling:
    """How a map is cut: ``programs`` of ``constants``, in ``rows`` of tiles."""

    def __init__(self, x: Tensor) -> None:
        self.shape = x.numel() // x.shape[1], x.shape[1]
        columns = min(block_size(x.shape[1]), 128)
        self.constants = {"BLOCK_M": _VALUES // columns, "BLOCK_C": columns}
        self.rows = -(-self.shape[0] // self.constants["BLOCK_M"])
        self.programs = (self.rows * -(-self.shape[1] // columns),)


def scale_shift_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(scale * x + shift)``, dense."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import scale_shift_relu_kernel

    out, tiling = empty_channels_last(x, x.shape[1]), _Tiling(x)
    kernel: Any = scale_shift_relu_kernel
    kernel[tiling.programs](x, scale, shift, out, *tiling.shape, x.stride(3), **tiling.constants)
    return out


def masked_sums(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``gradient`` where ``active`` is positive, its sum and its sum weighted by ``x``, in rows.

    Both maps are dense. With ``into``, a map and a scale, scaled values are added to that map and
    None is returned in their place. ``overwrite`` allows to write them into ``gradient``.
    """
    from densenet_backbones.dense_block.triton_training.passes_kernel import masked_sums_kernel

    tiling = _Tiling(x)
    sums = x.new_empty(tiling.rows, 2, x.shape[1], dtype=torch.float32)
    masked = None
    if into is None:
        masked = gradient if overwrite else empty_channels_last(gradient, x.shape[1])
    target, scale = (masked, None) if into is None else into
    assert target is not None
    kernel: Any = masked_sums_kernel
    kernel[tiling.programs](
        *(gradient, active, x, scale, target, sums, *tiling.shape, x.stride(3), target.stride(3)),
        ADD=into is not None,
        **tiling.constants,
    )
    summed, weighted = in_few_rows(sums)
    return masked, summed, weighted


def affine_difference(
    y: Tensor, x: Tensor, scale: Tensor | None, constant: Tensor, slope: Tensor
) -> Tensor:
    """``scale * y - constant - slope * x``, dense; without a scale it is 1."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import (
        affine_difference_kernel,
    )

    out, tiling = empty_channels_last(x, x.shape[1]), _Tiling(x)
    kernel: Any = affine_difference_kernel
    kernel[tiling.programs](
        *(y, x, scale, constant, slope, out, *tiling.shape, y.stride(3), x.stride(3)),
        **tiling.constants,
    )
    return out


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Adds ``scale * x``, dense, to ``total``."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import add_scaled_kernel

    tiling, kernel = _Tiling(x), cast(Any, add_scaled_kernel)
    kernel[tiling.programs](*(total, x, scale, *tiling.shape, total.stride(3)), **tiling.constants)
