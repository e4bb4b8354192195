"""Starts the Triton kernels of passes over whole maps; what `native.passes` are on a CPU.

Batch norm and its gradient are those of Ioffe and Szegedy (1502.03167, section 3).

Maps are (N, C, H, W), of `interfaces.is_in_rows`; vectors are (C,) without gaps. All is computed in
float32, whatever the maps are.
"""

from typing import Any, cast

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import allocate_channels_last
from densenet_backbones.dense_block.triton.layout import choose_block_size
from densenet_backbones.dense_block.triton_training.norms import reduce_rows

__all__ = ["add_scaled", "compute_affine_difference", "mask_and_sum", "scale_shift_relu"]

_VALUES = 4096  # of a program: 32 a thread


class _Tiling:
    """Tiles of a map: ``programs`` of ``constants``, in ``rows`` of tiles."""

    def __init__(self, x: Tensor) -> None:
        self.shape = x.numel() // x.shape[1], x.shape[1]
        columns = min(choose_block_size(x.shape[1]), 128)
        self.constants = {"BLOCK_M": _VALUES // columns, "BLOCK_C": columns}
        self.rows = -(-self.shape[0] // self.constants["BLOCK_M"])
        self.programs = (self.rows * -(-self.shape[1] // columns),)


def scale_shift_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute ``relu(scale * x + shift)``, dense."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import scale_shift_relu_kernel

    out, tiling = allocate_channels_last(x, x.shape[1]), _Tiling(x)
    kernel: Any = scale_shift_relu_kernel
    kernel[tiling.programs](x, scale, shift, out, *tiling.shape, x.stride(3), **tiling.constants)
    return out


def mask_and_sum(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return ``gradient`` where ``active`` is positive, and sums of it and of it times ``x``.

    Both maps are dense. With ``into``, a map and a scale, scaled values are added to that map and
    None is returned in their place. ``overwrite`` allows to write them into ``gradient``.
    """
    from densenet_backbones.dense_block.triton_training.passes_kernel import masked_sums_kernel

    tiling = _Tiling(x)
    sums = x.new_empty(tiling.rows, 2, x.shape[1], dtype=torch.float32)
    masked = None
    if into is None:
        masked = gradient if overwrite else allocate_channels_last(gradient, x.shape[1])
    target, scale = (masked, None) if into is None else into
    assert target is not None
    kernel: Any = masked_sums_kernel
    kernel[tiling.programs](
        *(gradient, active, x, scale, target, sums, *tiling.shape, x.stride(3), target.stride(3)),
        ADD=into is not None,
        **tiling.constants,
    )
    summed, weighted = reduce_rows(sums)
    return masked, summed, weighted


def compute_affine_difference(
    y: Tensor, x: Tensor, scale: Tensor | None, constant: Tensor, slope: Tensor
) -> Tensor:
    """Compute ``scale * y - constant - slope * x``, dense; without a scale it is 1."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import (
        affine_difference_kernel,
    )

    out, tiling = allocate_channels_last(x, x.shape[1]), _Tiling(x)
    kernel: Any = affine_difference_kernel
    kernel[tiling.programs](
        *(y, x, scale, constant, slope, out, *tiling.shape, y.stride(3), x.stride(3)),
        **tiling.constants,
    )
    return out


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Add ``scale * x``, dense, to ``total``, in place."""
    from densenet_backbones.dense_block.triton_training.passes_kernel import add_scaled_kernel

    tiling, kernel = _Tiling(x), cast(Any, add_scaled_kernel)
    kernel[tiling.programs](*(total, x, scale, *tiling.shape, total.stride(3)), **tiling.constants)
