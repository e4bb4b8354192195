"""Starts the kernels of a convolution's gradients, where norm and ReLU stand before it.

Both gradients are implicit matrix products, as in cuDNN (Chetlur et al., 1410.0759).

Sums are added up in one order: from the same numbers come the same gradients, to the last bit.

Triton is imported by the first call, not with this module.

Shapes: N images, C channels of what was normed, O outputs, H and W pixels. Maps are channels last,
and may be the first channels of a wider buffer.
"""

from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import allocate_channels_last
from densenet_backbones.dense_block.triton.layout import (
    choose_block_size,
    get_convolution_precision,
    get_size_class,
    read_pixel_stride,
    require,
    require_dtype,
)
from densenet_backbones.dense_block.triton_training.norms import reduce_rows

__all__ = ["compute_input_gradient", "compute_weight_gradient"]

# Programs that keep a large GPU busy: two for each of some 130 multiprocessors.
_PROGRAMS = 256


def compute_input_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    dilation: int = 1,
    into: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Compute the gradient of the norm's output, 0 where ``relu(scale * x + shift)`` cut off.

    Args:
        gradient: Gradient of the convolution's output, (N, O, H, W).
        weight: (O, C, 1, 1), or (O, C, 3, 3) with ``padding = dilation``; of the gradient's type.
        x: Input of the norm, (N, C, H, W).
        norm: Scale and shift, (C,) each.
        dilation: Distance of the taps.
        into: A map, (N, C, H, W), to which the result is added, multiplied by the scale. Otherwise
            it is returned, in the precision of ``x``.

    Returns:
        The gradient, (N, C, H, W), or None; its sum and its sum weighted by ``x``, (R, C) each, of
        which the R rows are to be added up, both in float32.

    Raises:
        ValueError: A tensor has another shape, type or memory format.
    """
    outputs, channels, side = weight.shape[:3]
    images, _, height, width = x.shape
    shape = (images, outputs, height, width)
    require(gradient.shape == shape, "gradient", f"shape {shape}", gradient)
    require(x.shape[1] == channels, "x", f"{channels} channels", x)
    require_dtype(gradient, weight)
    from densenet_backbones.dense_block.triton_training.input_gradient_kernel import (
        input_gradient_kernel,
    )

    rows = images * height * width
    tile = _choose_tile(rows, channels, outputs)
    tiles = -(-rows // tile["BLOCK_M"])
    sums = x.new_empty(tiles, 2, channels, dtype=torch.float32)
    target = allocate_channels_last(x, channels) if into is None else into
    down, right = weight.stride()[2:]
    # A program for each tile; the weight's taps are read backward, the last one first.
    kernel: Any = input_gradient_kernel
    kernel[(tiles * -(-channels // tile["BLOCK_C"]),)](
        gradient,
        weight[:, :, side - 1 :, side - 1 :],  # the last tap first
        x,
        *norm,
        target,
        sums,
        rows,
        height,
        width,
        outputs,
        channels,
        dilation,
        read_pixel_stride(gradient, "gradient"),
        *weight.stride()[:2],
        -down,
        -right,
        read_pixel_stride(x, "x"),
        read_pixel_stride(target, "into"),
        ADD=into is not None,
        SIDE=side,
        PRECISION=get_convolution_precision(),
        **tile,
        num_warps=4,
        num_stages=3,
    )
    summed, weighted = reduce_rows(sums)
    return target if into is None else None, summed, weighted


def _choose_tile(rows: int, channels: int, outputs: int) -> dict[str, int]:
    """Choose the constants of `input_gradient_kernel`, from sizes alone.

    Tiles are small, as registers are what there is least of: maps and sums of one of 128 times 128
    leave no room on a multiprocessor for a second program, which would load while it writes.
    """
    columns = min(choose_block_size(channels), 64)
    pixels = 64
    while pixels > 16 and -(-rows // pixels) * -(-channels // columns) < _PROGRAMS:
        pixels //= 2
    depth = min(choose_block_size(outputs), 64)
    return {"BLOCK_M": pixels, "BLOCK_C": columns, "BLOCK_O": depth}


def compute_weight_gradient(
    gradient: Tensor, x: Tensor, norm: tuple[Tensor, Tensor], side: int, *, dilation: int = 1
) -> Tensor:
    """Compute the gradient of the weight of a convolution of ``relu(scale * x + shift)``.

    That input is computed on the way into the product, and rounded to the gradient's type.

    Args:
        gradient: Gradient of the convolution's output, (N, O, H, W).
        x: Input of the norm, (N, C, H, W).
        norm: Scale and shift, (C,) each.
        side: Side of the kernel: 1, or 3 with ``padding = dilation``.
        dilation: Distance of the taps.

    Returns:
        (O, C, side, side), in float32.

    Raises:
        ValueError: A tensor has another shape or memory format.
    """
    images, channels, height, width = x.shape
    outputs = gradient.shape[1]
    shape = (images, outputs, height, width)
    require(gradient.shape == shape, "gradient", f"shape {shape}", gradient)
    from densenet_backbones.dense_block.triton_training.weight_gradient_kernel import (
        weight_gradient_kernel,
    )

    # Enough parts of the pixels to keep a GPU busy, each with a sum of its own.
    rows, pairs = images * height * width, side * side * outputs
    part_rows = _choose_part_rows(rows, pairs, channels)
    parts = -(-rows // part_rows)
    partial = x.new_empty(parts, pairs, channels, dtype=torch.float32)
    kernel: Any = weight_gradient_kernel
    kernel[lambda c: (-(-pairs // c["BLOCK_J"]) * -(-channels // c["BLOCK_C"]), parts)](
        gradient,
        x,
        *norm,
        partial,
        rows,
        part_rows,
        height,
        width,
        outputs,
        channels,
        dilation,
        read_pixel_stride(gradient, "gradient"),
        read_pixel_stride(x, "x"),
        get_size_class(rows),
        get_size_class(channels),
        SIDE=side,
        PRECISION=get_convolution_precision(),
    )
    return partial.sum(0).view(side, side, outputs, channels).permute(2, 3, 0, 1)


def _choose_part_rows(rows: int, pairs: int, channels: int) -> int:
    """Choose the pixels of a program: few enough for many programs, a multiple of 128."""
    tiles = -(-pairs // 64) * -(-channels // 64)
    parts = max(1, 2 * _PROGRAMS // tiles)
    return -(-rows // (128 * parts)) * 128
