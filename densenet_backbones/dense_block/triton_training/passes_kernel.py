"""Passes over whole maps, one where PyTorch takes several, in Triton: what `elementwise` asks for.

Batch norm and ReLU (Ioffe and Szegedy, 1502.03167, section 3) once statistics are known.

Shapes: M pixels, C channels. A program takes BLOCK_M pixels of BLOCK_C channels.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.arithmetic import normalize_activate
from densenet_backbones.dense_block.triton_training.input_gradient_kernel import (
    store_gradient_and_sums,
)

__all__ = [
    "add_scaled_kernel",
    "affine_difference_kernel",
    "masked_sums_kernel",
    "scale_shift_relu_kernel",
]


@triton.jit
def _locate(rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return a program's row of tiles, pixels, channels, and a mask of those that exist."""
    # Programs of the same pixels are neighbors, which share the L2 cache.
    column_tiles = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0) // column_tiles
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) % column_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    return tile, m, c, (m < rows)[:, None] & (c < channels)[None, :]


@triton.jit
def _read(x_ptr, m, c, inside, stride):
    at = x_ptr + m.to(tl.int64)[:, None] * stride + c[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _read_vector(vector_ptr, c, channels):
    return tl.load(vector_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _write(out_ptr, m, c, inside, stride, values):
    at = out_ptr + m.to(tl.int64)[:, None] * stride + c[None, :]
    tl.store(at, values.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scale_shift_relu_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    rows,
    channels,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute ``out = relu(scale * x + shift)``, dense."""
    _, m, c, inside = _locate(rows, channels, BLOCK_M, BLOCK_C)
    scale = _read_vector(scale_ptr, c, channels)
    shift = _read_vector(shift_ptr, c, channels)
    x = normalize_activate(_read(x_ptr, m, c, inside, x_stride), scale, shift, float("inf"))
    _write(out_ptr, m, c, inside, channels, x)


@triton.jit
def affine_difference_kernel(
    y_ptr,
    x_ptr,
    scale_ptr,
    constant_ptr,
    slope_ptr,
    out_ptr,
    rows,
    channels,
    y_stride,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute ``out = scale * y - constant - slope * x``, dense; without a scale it is 1."""
    _, m, c, inside = _locate(rows, channels, BLOCK_M, BLOCK_C)
    y = _read(y_ptr, m, c, inside, y_stride)
    # Without a scale `y` is the finished sum of gradients; see `subtract_linear`.
    if scale_ptr is not None:
        y *= _read_vector(scale_ptr, c, channels)
    taken = _read(x_ptr, m, c, inside, x_stride) * _read_vector(slope_ptr, c, channels)
    _write(out_ptr, m, c, inside, channels, y - _read_vector(constant_ptr, c, channels) - taken)


@triton.jit
def add_scaled_kernel(
    total_ptr,
    x_ptr,
    scale_ptr,
    rows,
    channels,
    total_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute ``total += scale * x``, of which x is dense."""
    _, m, c, inside = _locate(rows, channels, BLOCK_M, BLOCK_C)
    total = _read(total_ptr, m, c, inside, total_stride)
    total += _read(x_ptr, m, c, inside, channels) * _read_vector(scale_ptr, c, channels)
    _write(total_ptr, m, c, inside, total_stride, total)


@triton.jit
def masked_sums_kernel(
    gradient_ptr,
    active_ptr,
    x_ptr,
    scale_ptr,
    target_ptr,
    sums_ptr,
    rows,
    channels,
    x_stride,
    target_stride,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mask a dense gradient by the dense output, and sum it: see `store_gradient_and_sums`."""
    tile, m, c, inside = _locate(rows, channels, BLOCK_M, BLOCK_C)
    active = _read(active_ptr, m, c, inside, channels)
    gradient = _read(gradient_ptr, m, c, inside, channels)
    x = _read(x_ptr, m, c, inside, x_stride)
    # As PyTorch's: NaN counts as active.
    masked = tl.where(active <= 0.0, 0.0, gradient)
    scale = 1.0
    if ADD:
        scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    store_gradient_and_sums(
        masked, x, scale, target_ptr, sums_ptr, tile, m, c, inside, channels, target_stride, ADD
    )
