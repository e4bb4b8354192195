"""Starts the kernels: checks tensors, reads their strides, sizes the grid.

Everything here is also an operator of PyTorch (``densenet_backbones::...``), so that compiled code
and CUDA graphs contain the kernels; outside of compiled code the function is called directly, as an
operator costs more of the CPU's time than a small kernel of the GPU's. No operator has a gradient.

Triton is imported by the first call, not with this module.

Shapes: N images, C channels read, B bottleneck channels, k new channels. Maps are channels-last.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.kernels.layout import (
    block_size,
    lines,
    pixel_stride,
    product_precision,
    require,
    require_dtype,
    size_class,
)
from densenet_backbones.dense_block.kernels.tiles import best_tile

__all__ = ["conv3x3", "fused_layer", "pointwise"]


def pointwise(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    out_low: float = float("-inf"),
    out_high: float = float("inf"),
    pool: bool = False,
) -> None:
    """1x1 convolution between clamps, from the first channels of a buffer into those of another.

    ``out[:, :B] = clamp(weight @ clamp(x[:, :C], low, high) + bias, out_low, out_high)``

    Args:
        x: Buffer, (N, at least C, H, W).
        low: Lower bounds of the inputs, (C,).
        high: Upper bounds, (C,).
        weight: (B, C).
        bias: (B,).
        out: Buffer, (N, at least B, H, W), of which the first B channels are written. It must not
            share memory with ``x``.
        out_low: Lower bound of the outputs.
        out_high: Upper bound.
        pool: Average 2x2 clamped inputs first, which is what averaging the outputs of a transition
            would give; ``out`` is then (N, B, H // 2, W // 2).

    Raises:
        ValueError: A tensor has another shape or memory format.
    """
    height, width = x.shape[2:]
    outputs, channels = weight.shape
    shape = (x.shape[0], height // 2, width // 2) if pool else (x.shape[0], height, width)
    require((out.shape[0], *out.shape[2:]) == shape, "out", f"{shape} pixels", out)
    require(x.shape[1] >= channels, "x", f"at least {channels} channels", x)
    require(out.shape[1] >= outputs, "out", f"at least {outputs} channels", out)
    require_dtype(x, weight)
    bounds = (float(out_low), float(out_high))
    _start(_pointwise, x, low, high, weight, bias, out, *bounds, pool)


def _pointwise(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    out_low: float,
    out_high: float,
    pool: bool,
) -> None:
    from densenet_backbones.dense_block.kernels.pointwise_kernel import pointwise_kernel

    height, width = x.shape[2:]
    outputs, channels = weight.shape
    weight = lines(weight)
    rows = out.shape[0] * out.shape[2] * out.shape[3]
    if rows == 0:
        return
    kernel: Any = pointwise_kernel
    kernel[lambda c: (-(-rows // c["BLOCK_M"]) * -(-outputs // c["BLOCK_B"]),)](
        x,
        low,
        high,
        weight,
        bias,
        out,
        rows,
        channels,
        outputs,
        height,
        width,
        pixel_stride(x, "x"),
        weight.stride(0),
        pixel_stride(out, "out"),
        out_low,
        out_high,
        size_class(rows),
        size_class(channels),
        BOUND_OUT=out_low != float("-inf") or out_high != float("inf"),
        POOL=pool,
        PRECISION=product_precision(),
    )


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    dilation: int = 1,
    pixels: int | None = None,
) -> None:
    """3x3 convolution with ``padding = dilation`` into a slice of a buffer.

    Args:
        x: Bottleneck, (N, B, H, W).
        weight: (k, B, 3, 3).
        bias: (k,), or None.
        out: (N, k, H, W), commonly ``buffer[:, C : C + k]``; nothing else of the buffer is written.
        dilation: Distance of the taps.
        pixels: None to read the input once for each tap; else the places of a program that reads
            it once, halo included, and shifts partial sums: a power of two; see `layer_kernel`.

    Raises:
        ValueError: A tensor has another shape or memory format, or ``pixels`` holds no tile.
    """
    growth, bottleneck = weight.shape[:2]
    require(x.shape[1] == bottleneck, "x", f"{bottleneck} channels", x)
    shape = (x.shape[0], growth, *x.shape[2:])
    require(out.shape == shape, "out", f"shape {shape}", out)
    require_dtype(x, weight)
    if pixels is not None:
        _require_tile(x, dilation, pixels)
    _start(_conv3x3, x, weight, bias, out, dilation, pixels)


def _conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, dilation: int, pixels: int | None
) -> None:
    from densenet_backbones.dense_block.kernels.conv_kernel import conv_kernel

    images, bottleneck, height, width = x.shape
    rows = images * height * width
    if rows == 0:
        return
    if pixels is not None:
        _shifted(x, None, weight, bias, out, dilation, pixels)
        return
    kernel: Any = conv_kernel
    kernel[lambda c: (-(-rows // c["BLOCK_M"]),)](
        x,
        weight,
        bias,
        out,
        rows,
        height,
        width,
        bottleneck,
        weight.shape[0],
        dilation,
        pixel_stride(x, "x"),
        *weight.stride(),
        pixel_stride(out, "out"),
        size_class(rows),
        HAS_BIAS=bias is not None,
        PRECISION=product_precision(),
        BLOCK_K=block_size(weight.shape[0]),
    )


def fused_layer(
    buffer: Tensor,
    low: Tensor,
    high: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None = None,
    *,
    dilation: int = 1,
    mid_low: float = 0.0,
    mid_high: float = float("inf"),
    pixels: int = 256,
) -> None:
    """A dense layer in one kernel: reads ``buffer[:, :C]`` and writes ``buffer[:, C : C + k]``.

    Args:
        buffer: (N, at least C + k, H, W).
        low: Lower bounds of the inputs, (C,).
        high: Upper bounds, (C,).
        weight1: (B, C).
        bias1: (B,).
        weight2: (k, B, 3, 3).
        bias2: (k,), or None.
        dilation: Distance of the taps of the 3x3.
        mid_low: Lower bound of the bottleneck.
        mid_high: Upper bound.
        pixels: Places of a program, halo included: a power of two; see `best_tile`.

    Raises:
        ValueError: A tensor has another shape or memory format, or ``pixels`` holds no tile.
    """
    needed = weight1.shape[1] + weight2.shape[0]
    require(buffer.shape[1] >= needed, "buffer", f"at least {needed} channels", buffer)
    require_dtype(buffer, weight1)
    require_dtype(buffer, weight2)
    _require_tile(buffer, dilation, pixels)
    tensors = (buffer, low, high, weight1, bias1, weight2, bias2)
    _start(_fused_layer, *tensors, dilation, float(mid_low), float(mid_high), pixels)


def _fused_layer(
    buffer: Tensor,
    low: Tensor,
    high: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None,
    dilation: int,
    mid_low: float,
    mid_high: float,
    pixels: int,
) -> None:
    if buffer.numel() > 0:
        channels = weight1.shape[1]
        squeeze = (low, high, weight1, bias1, mid_low, mid_high)
        _shifted(buffer, squeeze, weight2, bias2, buffer[:, channels:], dilation, pixels)


_Squeeze = tuple[Tensor, Tensor, Tensor, Tensor, float, float]


def _shifted(
    x: Tensor,
    squeeze: _Squeeze | None,
    weight2: Tensor,
    bias2: Tensor | None,
    out: Tensor,
    dilation: int,
    pixels: int,
) -> None:
    """Starts `layer_kernel`; without ``squeeze``, for its 3x3 alone."""
    from densenet_backbones.dense_block.kernels.layer_kernel import layer_kernel

    images, _, height, width = x.shape
    growth, bottleneck = weight2.shape[:2]
    tile = best_tile(images * height, width, dilation, pixels)
    assert tile is not None
    # Without a first convolution the kernel reads none of its pointers and sizes.
    nothing = (x, x, weight2[:, :, 0, 0], x, 0.0, 0.0)
    low, high, weight1, bias1, mid_low, mid_high = squeeze or nothing
    weight1 = lines(weight1) if squeeze else weight1
    kernel: Any = layer_kernel
    kernel[(tile.count,)](
        x,
        low,
        high,
        weight1,
        bias1,
        weight2,
        bias2,
        out,
        images * height,
        weight1.shape[1],
        bottleneck,
        growth,
        pixel_stride(x, "x"),
        weight1.stride(0),
        *weight2.stride(),
        pixel_stride(out, "out"),
        mid_low,
        mid_high,
        HEIGHT=height,
        WIDTH=width,
        TILE_HEIGHT=tile.height,
        TILE_WIDTH=tile.width,
        DILATION=dilation,
        SQUEEZE=squeeze is not None,
        HAS_BIAS2=bias2 is not None,
        PRECISION=product_precision(),
        PIXELS=pixels,
        BLOCK_C=32 if pixels > 128 or x.dtype == torch.float32 else 64,
        # 192 bottleneck channels (k = 48) are three slices, for which the inputs are read again.
        BLOCK_B=64 if bottleneck > 128 else block_size(bottleneck),
        BLOCK_K=block_size(growth),
        num_warps=8 if pixels > 64 else 4,
        num_stages=3,
    )


_OPERATORS: dict[Callable[..., None], Any] = {}


def _register(function: Callable[..., None], name: str, mutated: str) -> None:
    operator = torch.library.custom_op(
        f"densenet_backbones::{name}", function, mutates_args=(mutated,)
    )
    operator.register_fake(lambda *args: None)
    _OPERATORS[function] = operator


_register(_pointwise, "folded_pointwise", "out")
_register(_conv3x3, "folded_conv3x3", "out")
_register(_fused_layer, "folded_layer", "buffer")


def _start(function: Callable[..., None], *arguments: Any) -> None:
    (_OPERATORS[function] if torch.compiler.is_compiling() else function)(*arguments)


def _require_tile(x: Tensor, dilation: int, pixels: int) -> None:
    if best_tile(x.shape[0] * x.shape[2], x.shape[3], dilation, pixels) is None:
        raise ValueError(f"no tile with a halo of {dilation} fits into {pixels} pixels; give more")
