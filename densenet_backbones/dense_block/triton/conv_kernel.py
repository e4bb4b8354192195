"""The 3x3 convolution of a dense layer as an implicit matrix product over its nine taps, in Triton.

Implicit as in cuDNN (Chetlur et al., 1410.0759): pixels shifted by a tap are read where
they are, and no matrix of patches is written. Training uses the sum for gradients as well.

Shapes: M pixels, B channels read, k channels written.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.arithmetic import multiply, normalize_activate
from densenet_backbones.dense_block.triton.tuning import make_autotune_arguments

__all__ = ["conv_kernel", "sum_taps"]


def _make_config(pixels: int, depth: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": pixels, "BLOCK_B": depth}, num_warps=warps, num_stages=stages)


_CONFIGS = [
    _make_config(16, 128, warps=4, stages=4),
    _make_config(32, 128, warps=4, stages=4),
    _make_config(64, 64, warps=4, stages=4),
    _make_config(128, 64, warps=4, stages=4),
    _make_config(128, 128, warps=8, stages=3),
]


@triton.jit
def sum_taps(
    x_ptr,
    scale_ptr,
    shift_ptr,
    weight_ptr,
    m,
    j,
    rows,
    height,
    width,
    inputs,
    outputs,
    dilation,
    x_stride,
    weight_stride_j,
    weight_stride_b,
    weight_stride_y,
    weight_stride_x,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Compute ``sum over taps and b of act(x)[m + tap, b] weight[j, b, tap]`` in float32, (M, J).

    There are SIDE times SIDE taps, 1 or 9. With a scale and a shift, inputs are normed and
    activated, and what lies beyond the edge of an image is zero after that; without, they are taken
    as they are. Taps and slices of the inputs are one loop, so that the loads of the next tap are
    under way while this one is multiplied.
    """
    y = m // width % height
    x = m % width
    slices = tl.cdiv(inputs, BLOCK_B)
    total = tl.zeros((BLOCK_M, BLOCK_J), dtype=tl.float32)
    for step in range(SIDE * SIDE * slices):
        # The tap, the slice of inputs, and where the pixels lie that the tap reads.
        tap = step // slices if SIDE > 1 else 0
        b = step % slices * BLOCK_B + tl.arange(0, BLOCK_B)
        down = (tap // SIDE - SIDE // 2) * dilation
        right = (tap % SIDE - SIDE // 2) * dilation
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        inside = (inside & (m < rows))[:, None] & (b < inputs)[None, :]
        source = (m + down * width + right).to(tl.int64) * x_stride
        values = tl.load(x_ptr + source[:, None] + b[None, :], mask=inside, other=0.0)
        # Norm and ReLU on the way in; the border is zero behind them, not before.
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + b, mask=b < inputs, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + b, mask=b < inputs, other=0.0).to(tl.float32)
            values = normalize_activate(values, scale[None, :], shift[None, :], float("inf"))
            values = tl.where(inside, values, 0.0)
        # Times the weights of this tap and slice.
        weight = tl.load(
            weight_ptr
            + tap // SIDE * weight_stride_y
            + tap % SIDE * weight_stride_x
            + b[:, None] * weight_stride_b
            + j[None, :] * weight_stride_j,
            mask=(b < inputs)[:, None] & (j < outputs)[None, :],
            other=0.0,
        )
        total += multiply(values.to(weight.dtype), weight, PRECISION)
    return total


@triton.autotune(
    **make_autotune_arguments(_CONFIGS, "BLOCK_M", interpreted=_make_config(32, 32, 4, 2)),
    key=["rows_key", "bottleneck_key", "growth"],
)
@triton.jit
def conv_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    height,
    width,
    bottleneck,
    growth,
    dilation,
    x_stride,
    weight_stride_k,
    weight_stride_b,
    weight_stride_y,
    weight_stride_x,
    out_stride,
    rows_key,
    bottleneck_key,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Compute a 3x3 convolution from memory.

    ``out[m, j] = sum over taps and b of act(x)[m + tap, b] weight[j, b, tap] + bias[j]``

    The norm before it (scale and shift) and the bias may be None. A program makes BLOCK_M pixels of
    BLOCK_K outputs; those that share pixels are neighbors.
    """
    # This program's pixels and outputs.
    column_tiles = tl.cdiv(growth, BLOCK_K)
    m = tl.program_id(0) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(0) % column_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    total = sum_taps(
        x_ptr,
        scale_ptr,
        shift_ptr,
        weight_ptr,
        m,
        j,
        rows,
        height,
        width,
        bottleneck,
        growth,
        dilation,
        x_stride,
        weight_stride_k,
        weight_stride_b,
        weight_stride_y,
        weight_stride_x,
        SIDE=3,
        PRECISION=PRECISION,
        BLOCK_M=BLOCK_M,
        BLOCK_J=BLOCK_K,
        BLOCK_B=BLOCK_B,
    )
    if bias_ptr is not None:
        total += tl.load(bias_ptr + j, mask=j < growth, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + m.to(tl.int64)[:, None] * out_stride + j[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[:, None] & (j < growth)[None, :],
    )
