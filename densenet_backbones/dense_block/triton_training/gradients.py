"""Starts the kernels of a convolution's gradients, where norm and ReLU stand before it.

Sums are added up in one order: from the same numbers come the same gradients, to the last bit.

Triton is imported by the first call, not with this module.

Shapes: N images, C channels of what was normed, O outputs, H and W pixels. Maps are channels last,
and may be the first channels of a wider buffer.
"""

from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import empty_channels_last
from densenet_backbones.dense_block.triton.layout import (
    block_size,
    convolution_precision,
    pixel_stride,
    require,
    require_dtype,
    size_class,
)
from densenet_backbones.dense_block.triton_training.norms import in_few_rows

__all__ = ["input_gradient", "weight_gradient"]

# Programs that keep a large GPU busy: two for each of some 130 multiprocessors.
_PROGRAMS = 256


def input_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    *,
    dilation: int = 1,
    into: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradient of the norm's output: what ``relu(scale * x + shift)`` was cut off at is 0.

    Args:
        gradient: Of the convolution's output, (N, O, H, W).
        weight: (O, C, 1, 1), or (O, C, 3, 3) with ``padding = dilation``; of the gradient's type.
        x: What was normed, (N, C, H, W).
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
    tile = _tile(rows, channels, outputs)
    tiles = -(-rows // tile["BLOCK_M"])
    sums = x.new_empty(tiles, 2, channels, dtype=torch.float32)
    target = empty_channels_last(x, channels) if into is None else into
    down, right = weight.stride()[2:]
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
        pixel_stride(gradient, "gradient"),
        *weight.stride()[:2],
        -down,
        -right,
        pixel_stride(x, "x"),
        pixel_stride(target, "into"),
        ADD=into is not None,
        SIDE=side,
        PRECISION=convolution_precision(),
        **tile,
        num_warps=4,
        num_stages=3,
    )
    summed, weighted = in_few_rows(sums)
    return target if into is None else None, summed, weighted


def _tile(rows: int, channels: int, outputs: int) -> dict[str, int]:
    """Constants of `input_gradient_kernel`, from sizes alone.

    Tiles are small, as registers are what there is least of: maps and sums of one of 128 times 128
    leave no room on a multiprocessor for a second program, which would load while it writes.
    """
    columns = min(block_size(channels), 64)
    pixels = 64
    while pixels > 16 and -(-rows // pixels) * -(-channels // columns) < _PROGRAMS:
        pixels //= 2
    depth = min(block_size(outputs), 64)
    return {"BLOCK_M": pixels, "BLOCK_C": columns, "BLOCK_O": depth}


def weight_gradient(
    gradient: Tensor, x: Tensor, norm: tuple[Tensor, Tensor], side: int, *, dilation: int = 1
) -> Tensor:
    """The gradient of the weight of a convolution of ``relu(scale * x + shift)``.

    That input is computed on the way into the product, and rounded to the gradient's type.

    Args:
        gradient: Of the convolution's output, (N, O, H, W).
        x: What was normed, (N, C, H, W).
        norm: Scale and shift, (C,) each.
        side: Of the kernel: 1, or 3 with ``padding = dilation``.
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

    rows, pairs = images * height * width, side * side * outputs
    part_rows = _part_rows(rows, pairs, channels)
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
        pixel_stride(gradient, "gradient"),
        pixel_stride(x, "x"),
        size_class(rows),
        size_class(channels),
        SIDE=side,
        PRECISION=convolution_precision(),
    )
    return partial.sum(0).view(side, side, outputs, channels).permute(2, 3, 0, 1)


def _part_rows(rows: int, pairs: int, channels: int) -> int:
    """Pixels that one program sums over: few enough for many programs, a multiple of 128."""
    tiles = -(-pairs // 64) * -(-channels // 64)
    parts = max(1, 2 * _PROGRAMS // tiles)
    return -(-rows // (128 * parts)) * 128
