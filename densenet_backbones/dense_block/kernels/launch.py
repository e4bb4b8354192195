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
    _require((out.shape[0], *out.shape[2:]) == shape, "out", f"{shape} pixels", out)
    _require(x.shape[1] >= channels, "x", f"at least {channels} channels", x)
    _require(out.shape[1] >= outputs, "out", f"at least {outputs} channels", out)
    _start(_pointwise, x, low, high, weight, bias, out, out_low, out_high, pool)


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
    rows = out.shape[0] * out.shape[2] * out.shape[3]
    if rows == 0:
        return
    kernel: Any = pointwise_kernel
    kernel[lambda c: (-(-rows // c["BLOCK_M"]) * -(-outputs // c["BLOCK_B"]),)](
        x,
        low,
        high,
        _lines(weight),
        bias,
        out,
        rows,
        channels,
        outputs,
        height,
        width,
        _pixel_stride(x, "x"),
        weight.stride(0),
        _pixel_stride(out, "out"),
        out_low,
        out_high,
        _size_class(rows),
        _size_class(channels),
        BOUND_OUT=out_low != float("-inf") or out_high != float("inf"),
        POOL=pool,
        PRECISION=_precision(x),
    )


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, dilation: int = 1
) -> None:
    """3x3 convolution with ``padding = dilation`` into a slice of a buffer.

    Args:
        x: Bottleneck, (N, B, H, W).
        weight: (k, B, 3, 3).
        bias: (k,), or None.
        out: (N, k, H, W), commonly ``buffer[:, C : C + k]``; nothing else of the buffer is written.
        dilation: Distance of the taps.

    Raises:
        ValueError: A tensor has another shape or memory format.
    """
    growth, bottleneck = weight.shape[:2]
    _require(x.shape[1] == bottleneck, "x", f"{bottleneck} channels", x)
    shape = (x.shape[0], growth, *x.shape[2:])
    _require(out.shape == shape, "out", f"shape {shape}", out)
    _start(_conv3x3, x, weight, bias, out, dilation)


def _conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, dilation: int) -> None:
    from densenet_backbones.dense_block.kernels.conv_kernel import conv_kernel

    images, bottleneck, height, width = x.shape
    rows = images * height * width
    if rows == 0:
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
        _pixel_stride(x, "x"),
        *weight.stride(),
        _pixel_stride(out, "out"),
        _size_class(rows),
        HAS_BIAS=bias is not None,
        PRECISION=_precision(x),
        BLOCK_K=_power_of_two(weight.shape[0]),
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
    _require(buffer.shape[1] >= needed, "buffer", f"at least {needed} channels", buffer)
    images, _, height, width = buffer.shape
    if best_tile(images * height, width, dilation, pixels) is None:
        raise ValueError(f"no tile with a halo of {dilation} fits into {pixels} pixels; give more")
    tensors = (buffer, low, high, weight1, bias1, weight2, bias2)
    _start(_fused_layer, *tensors, dilation, mid_low, mid_high, pixels)


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
    from densenet_backbones.dense_block.kernels.layer_kernel import layer_kernel

    images, _, height, width = buffer.shape
    if buffer.numel() == 0:
        return
    bottleneck, channels = weight1.shape
    tile = best_tile(images * height, width, dilation, pixels)
    assert tile is not None
    stride = _pixel_stride(buffer, "buffer")
    kernel: Any = layer_kernel
    kernel[(tile.count,)](
        buffer,
        low,
        high,
        _lines(weight1),
        bias1,
        weight2,
        bias2,
        buffer[:, channels:],
        images * height,
        channels,
        bottleneck,
        weight2.shape[0],
        stride,
        weight1.stride(0),
        *weight2.stride(),
        stride,
        mid_low,
        mid_high,
        HEIGHT=height,
        WIDTH=width,
        TILE_HEIGHT=tile.height,
        TILE_WIDTH=tile.width,
        DILATION=dilation,
        HAS_BIAS2=bias2 is not None,
        PRECISION=_precision(buffer),
        PIXELS=pixels,
        BLOCK_C=32 if pixels > 128 or buffer.dtype == torch.float32 else 64,
        # 192 bottleneck channels (k = 48) are three slices, for which the inputs are read again.
        BLOCK_B=64 if bottleneck > 128 else _power_of_two(bottleneck),
        BLOCK_K=_power_of_two(weight2.shape[0]),
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


def _require(fits: bool, name: str, legal: str, tensor: Tensor) -> None:
    if not fits:
        raise ValueError(f"{name} must have {legal}, not shape {tuple(tensor.shape)}")


def _pixel_stride(x: Tensor, name: str) -> int:
    """Elements from one pixel to the next, in the order of rows, columns and images.

    Raises:
        ValueError: Pixels do not lie at equal distances, or channels not side by side.
    """
    images, channels, height, width = x.shape
    # Where there is one pixel only, its stride says nothing and is not used.
    steps = [(width, x.stride(3), 1), (height, x.stride(2), width)]
    steps.append((images, x.stride(0), width * height))
    counted = [(stride, pixels) for size, stride, pixels in steps if size > 1]
    stride = counted[0][0] // counted[0][1] if counted else channels
    regular = all(step == stride * pixels for step, pixels in counted)
    if not regular or (channels > 1 and x.stride(1) != 1):
        raise ValueError(
            f"{name} must be channels-last, or a slice of the channels of such a tensor; its shape "
            f"is {tuple(x.shape)} and its strides are {x.stride()}"
        )
    return stride


def _lines(weight: Tensor) -> Tensor:
    """(B, C), with the inputs of an output side by side."""
    assert weight.stride(1) == 1 or weight.shape[1] == 1, "the kernels read whole lines"
    return weight


def _precision(x: Tensor) -> str:
    """What float32 products may be rounded to; other types are not concerned."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _size_class(size: int) -> int:
    """Sizes that share a choice of tiles."""
    return int(size).bit_length()


def _power_of_two(size: int) -> int:
    """The block that holds ``size``; products of fewer than 16 columns have no instruction."""
    return max(16, 1 << (size - 1).bit_length())
