"""Starts the kernels: checks tensors, reads their strides, sizes the grid.

The layer and the transition are those of Huang et al. (1608.06993, section 3).

Nothing here is an operator of PyTorch: those of a whole block and of a transition are (see
`dense_block.folded` and `dense_block.folded.transition`), and they call this. So does training,
in `unit`, which has the gradients.

Triton is imported by the first call, not with this module.

Shapes: N images, C channels read, B bottleneck channels, k new channels. Maps are channels-last.
"""

from math import inf
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.interfaces import LayerWeights
from densenet_backbones.dense_block.triton.layout import (
    choose_block_size,
    get_product_precision,
    get_size_class,
    read_pixel_stride,
    require,
    require_dtype,
)
from densenet_backbones.dense_block.triton.tiles import find_best_tile

__all__ = ["convolve_1x1", "convolve_3x3", "run_fused_layer"]


def convolve_1x1(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    ceiling: float = inf,
    activate: bool = False,
    pool: bool = False,
    precision: str | None = None,
) -> None:
    """Convolve normed inputs 1x1, from a buffer's first channels into those of another.

    ``out[:, :B] = weight.T @ act(scale * x[:, :C] + shift) + bias`` with ``act(v) = min(max(v, 0),
    ceiling)``. The inputs of the product are rounded to the weight's type, nothing before them.

    Args:
        x: Buffer, (N, at least C, H, W).
        scale: Scale of the norm, (C,), of the maps' type or of a longer one.
        shift: Shift of the norm, (C,), likewise.
        weight: (C, B), in any layout. Kernels get both strides: Triton compiles a stride of 1 as a
            constant, and loads along it, so that outputs side by side (as a folded layer stores
            them) and inputs side by side (as a convolution does) both load in wide pieces. Tensor
            cores take 16-bit types either way; for TF32 the former load element by element.
        bias: (B,), if there is one.
        out: Buffer, (N, at least B, H, W), of the weight's type, of which the first B channels are
            written. It must not share memory with ``x``, which may be of another type.
        ceiling: Value at which activations cut off, beside 0: infinity for ReLU, 6 for ReLU6.
        activate: True if the output is activated too.
        pool: Average 2x2 activated inputs first, which is what averaging the outputs of a
            transition would give; ``out`` is then (N, B, H // 2, W // 2).
        precision: ``ieee`` or ``tf32``, for float32 products; None for `get_product_precision`.

    Raises:
        ValueError: A tensor has another shape, type or memory format.
    """
    height, width = x.shape[2:]
    channels, outputs = weight.shape
    shape = (x.shape[0], height // 2, width // 2) if pool else (x.shape[0], height, width)
    require((out.shape[0], *out.shape[2:]) == shape, "out", f"{shape} pixels", out)
    require(x.shape[1] >= channels, "x", f"at least {channels} channels", x)
    require(out.shape[1] >= outputs, "out", f"at least {outputs} channels", out)
    require_dtype(out, weight)
    rows = out.shape[0] * out.shape[2] * out.shape[3]
    if rows == 0:
        return
    from densenet_backbones.dense_block.triton.pointwise_kernel import pointwise_kernel

    kernel: Any = pointwise_kernel
    kernel[lambda c: (-(-rows // c["BLOCK_M"]) * -(-outputs // c["BLOCK_B"]),)](
        x,
        scale,
        shift,
        weight,
        bias,
        out,
        rows,
        channels,
        outputs,
        height,
        width,
        read_pixel_stride(x, "x"),
        *weight.stride(),
        read_pixel_stride(out, "out"),
        float(ceiling),
        get_size_class(rows),
        get_size_class(channels),
        ACTIVATE=activate,
        POOL=pool,
        PRECISION=precision or get_product_precision(),
    )


def convolve_3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    dilation: int = 1,
    pixels: int | None = None,
    precision: str | None = None,
) -> None:
    """Convolve 3x3 with ``padding = dilation`` into a slice of a buffer.

    Args:
        x: Bottleneck, (N, B, H, W).
        weight: (k, B, 3, 3); read fastest when it is channels-last.
        bias: (k,), if there is one.
        out: (N, k, H, W), commonly ``buffer[:, C : C + k]``, of the weight's type; nothing else of
            the buffer is written.
        norm: Scale and shift, (B,) each, for the convolution of ``relu(scale * x + shift)``, whose
            border is zero; ``pixels`` must be None then.
        dilation: Distance of the taps.
        pixels: None to read the input once for each tap; else the places of a program that reads
            it once, halo included, and shifts partial sums: a power of two; see `layer_kernel`.
        precision: ``ieee`` or ``tf32``, for float32 products; None for `get_product_precision`,
            as with ``pixels``.

    Raises:
        ValueError: A tensor has another shape, type or memory format, or ``pixels`` holds no tile.
    """
    growth, bottleneck = weight.shape[:2]
    require(x.shape[1] == bottleneck, "x", f"{bottleneck} channels", x)
    shape = (x.shape[0], growth, *x.shape[2:])
    require(out.shape == shape, "out", f"shape {shape}", out)
    require_dtype(out, weight)
    if pixels is not None:
        assert norm is None and bias is not None
        require_dtype(x, weight)
        _require_tile(x, dilation, pixels)
        # Without a first convolution the kernel reads none of its pointers and sizes.
        unread = LayerWeights(x, x, weight[:, :, 0, 0], x, weight, bias)
        _launch_layer_kernel(x, unread, out, dilation, inf, pixels, squeeze=False)
        return
    images, _, height, width = x.shape
    rows = images * height * width
    if rows == 0:
        return
    from densenet_backbones.dense_block.triton.conv_kernel import conv_kernel

    scale, shift = norm or (None, None)
    # 128 columns at most: a tile's sums stay in registers.
    columns = min(choose_block_size(growth), 128)
    kernel: Any = conv_kernel
    kernel[lambda c: (-(-rows // c["BLOCK_M"]) * -(-growth // columns),)](
        x,
        scale,
        shift,
        weight,
        bias,
        out,
        rows,
        height,
        width,
        bottleneck,
        growth,
        dilation,
        read_pixel_stride(x, "x"),
        *weight.stride(),
        read_pixel_stride(out, "out"),
        get_size_class(rows),
        # Layers without a bottleneck read ever more channels, and share a choice.
        get_size_class(bottleneck),
        PRECISION=precision or get_product_precision(),
        BLOCK_K=columns,
    )


def run_fused_layer(
    buffer: Tensor,
    weights: LayerWeights,
    *,
    dilation: int = 1,
    ceiling: float = inf,
    pixels: int = 256,
) -> None:
    """Run a dense layer in one kernel, from ``buffer[:, :C]`` into ``buffer[:, C : C + k]``.

    Args:
        buffer: (N, at least C + k, H, W).
        weights: Weights of the layer.
        dilation: Distance of the taps of the 3x3.
        ceiling: Value at which both activations cut off, beside 0: infinity for ReLU, 6 for ReLU6.
        pixels: Places of a program, halo included: a power of two; see `find_best_tile`.

    Raises:
        ValueError: A tensor has another shape or memory format, or ``pixels`` holds no tile.
    """
    channels = weights.weight1.shape[0]
    needed = channels + weights.weight2.shape[0]
    require(buffer.shape[1] >= needed, "buffer", f"at least {needed} channels", buffer)
    require_dtype(buffer, weights.weight1)
    require_dtype(buffer, weights.weight2)
    _require_tile(buffer, dilation, pixels)
    _launch_layer_kernel(
        buffer, weights, buffer[:, channels:], dilation, ceiling, pixels, squeeze=True
    )


def _launch_layer_kernel(
    x: Tensor,
    weights: LayerWeights,
    out: Tensor,
    dilation: int,
    ceiling: float,
    pixels: int,
    squeeze: bool,
) -> None:
    """Start `layer_kernel`; without ``squeeze``, for its 3x3 alone."""
    if x.numel() == 0:
        return
    from densenet_backbones.dense_block.triton.layer_kernel import layer_kernel

    images, _, height, width = x.shape
    growth, bottleneck = weights.weight2.shape[:2]
    tile = find_best_tile(images * height, width, dilation, pixels)
    assert tile is not None
    kernel: Any = layer_kernel
    kernel[(tile.count,)](
        x,
        *weights,
        out,
        images * height,
        weights.weight1.shape[0],
        bottleneck,
        growth,
        read_pixel_stride(x, "x"),
        *weights.weight1.stride(),
        *weights.weight2.stride(),
        read_pixel_stride(out, "out"),
        float(ceiling),
        HEIGHT=height,
        WIDTH=width,
        TILE_HEIGHT=tile.height,
        TILE_WIDTH=tile.width,
        DILATION=dilation,
        SQUEEZE=squeeze,
        PRECISION=get_product_precision(),
        PIXELS=pixels,
        BLOCK_C=32 if pixels > 128 or x.dtype == torch.float32 else 64,
        # 192 bottleneck channels (k = 48) are three slices, for which the inputs are read again.
        BLOCK_B=64 if bottleneck > 128 else choose_block_size(bottleneck),
        BLOCK_K=choose_block_size(growth),
        num_warps=8 if pixels > 64 else 4,
        num_stages=3,
    )


def _require_tile(x: Tensor, dilation: int, pixels: int) -> None:
    if find_best_tile(x.shape[0] * x.shape[2], x.shape[3], dilation, pixels) is None:
        raise ValueError(f"no tile with a halo of {dilation} fits into {pixels} pixels; give more")
