"""The 3x3 convolution of a dense layer as an implicit matrix product over its nine taps, in Triton.

Shapes: M pixels, B bottleneck channels, k new channels.
"""

import triton
import triton.language as tl
from triton import knobs

from densenet_backbones.dense_block.kernels.arithmetic import product

__all__ = ["conv_kernel"]


def _config(pixels: int, depth: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": pixels, "BLOCK_B": depth}, num_warps=warps, num_stages=stages)


_CONFIGS = [
    _config(16, 128, warps=4, stages=4),
    _config(32, 128, warps=4, stages=4),
    _config(64, 64, warps=4, stages=4),
    _config(128, 64, warps=4, stages=4),
    _config(128, 128, warps=8, stages=3),
]


def _worth_trying(
    configs: list[triton.Config], arguments: dict[str, int], **_: object
) -> list[triton.Config]:
    rows = arguments["rows"]
    fitting = [c for c in configs if rows // 4096 <= c.kwargs["BLOCK_M"] <= max(rows, 16)]
    return fitting or configs[-1:]


@triton.autotune(
    configs=[_config(32, 32, 4, 2)] if knobs.runtime.interpret else _CONFIGS,
    key=["rows_key", "bottleneck", "growth"],
    prune_configs_by={"early_config_prune": _worth_trying},
)
@triton.jit
def conv_kernel(
    x_ptr,
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
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """``out[m, j] = sum over taps and b of x[m + tap, b] weight[j, b, tap] + bias[j]``.

    A program makes BLOCK_M pixels of all k outputs. Taps and slices of the bottleneck are one loop,
    so that the loads of the next tap are under way while this one is multiplied.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_K)
    y = m // width % height
    x = m % width
    slices = tl.cdiv(bottleneck, BLOCK_B)
    total = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    for step in range(9 * slices):
        tap = step // slices
        b = step % slices * BLOCK_B + tl.arange(0, BLOCK_B)
        down = (tap // 3 - 1) * dilation
        right = (tap % 3 - 1) * dilation
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        source = (m + down * width + right).to(tl.int64) * x_stride
        values = tl.load(
            x_ptr + source[:, None] + b[None, :],
            mask=(inside & (m < rows))[:, None] & (b < bottleneck)[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr
            + tap // 3 * weight_stride_y
            + tap % 3 * weight_stride_x
            + b[:, None] * weight_stride_b
            + j[None, :] * weight_stride_k,
            mask=(b < bottleneck)[:, None] & (j < growth)[None, :],
            other=0.0,
        )
        total += product(values, weight, PRECISION)
    total += tl.load(bias_ptr + j, mask=j < growth, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + m.to(tl.int64)[:, None] * out_stride + j[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[:, None] & (j < growth)[None, :],
    )
