"""The gradient of a convolution's weight, with norm and ReLU computed on the way in, in Triton.

An implicit matrix product over pixels, as in cuDNN (Chetlur et al., 1410.0759), in parts that are
added up afterwards.

Shapes: M pixels, C channels read, O outputs; J pairs of a tap and an output.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.arithmetic import multiply, normalize_activate
from densenet_backbones.dense_block.triton.tuning import make_autotune_arguments

__all__ = ["weight_gradient_kernel"]


def _make_config(
    outputs: int, channels: int, pixels: int, warps: int, stages: int
) -> triton.Config:
    constants = {"BLOCK_J": outputs, "BLOCK_C": channels, "BLOCK_M": pixels}
    return triton.Config(constants, num_warps=warps, num_stages=stages)


_CONFIGS = [
    _make_config(64, 64, 64, warps=4, stages=3),
    _make_config(128, 64, 64, warps=4, stages=3),
    _make_config(64, 128, 64, warps=4, stages=3),
    _make_config(128, 128, 64, warps=8, stages=3),
]


@triton.autotune(
    **make_autotune_arguments(_CONFIGS, "BLOCK_M", interpreted=_make_config(32, 32, 32, 4, 2)),
    key=["rows_key", "outputs", "channels_key", "SIDE"],
)
@triton.jit
def weight_gradient_kernel(
    gradient_ptr,
    x_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    rows,
    part_rows,
    height,
    width,
    outputs,
    channels,
    dilation,
    gradient_stride,
    x_stride,
    rows_key,
    channels_key,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute the weight's gradient in parts, a sum over pixels each.

    ``out[part, (tap, o), c] = sum over m of gradient[m - tap, o] relu(scale x + shift)[m, c]``

    It is the gradient that is shifted, not what it is multiplied with: so all taps of an output are
    columns of one product, and a pixel is normed once for BLOCK_J of them. Programs of the same
    pixels are neighbors. Pixels are cut into parts of ``part_rows``, a multiple of BLOCK_M, whose
    sums are added up afterwards, in one order.
    """
    column_tiles = tl.cdiv(channels, BLOCK_C)
    j = tl.program_id(0) // column_tiles * BLOCK_J + tl.arange(0, BLOCK_J)
    c = tl.program_id(0) % column_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    # Each column is a tap and an output: where its gradient lies, from the pixel it belongs to.
    tap = j // outputs
    down = (tap // SIDE - SIDE // 2) * dilation
    right = (tap % SIDE - SIDE // 2) * dilation
    offset = j % outputs - (down * width + right) * gradient_stride
    scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(shift_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_J, BLOCK_C), dtype=tl.float32)
    # Sum over this part's pixels, a block at a time.
    first = tl.program_id(1) * part_rows
    for start in range(first, tl.minimum(first + part_rows, rows), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        x = tl.load(
            x_ptr + m.to(tl.int64)[:, None] * x_stride + c[None, :],
            mask=(m < rows)[:, None] & (c < channels)[None, :],
            other=0.0,
        )
        inside = (m < rows)[:, None] & (j < SIDE * SIDE * outputs)[None, :]
        if SIDE > 1:
            # A bit for each tap whose output lies in the image, so that a pair of a pixel and a
            # column costs one look at it.
            bits = tl.zeros((BLOCK_M,), dtype=tl.int32)
            for t in tl.static_range(SIDE * SIDE):
                y = m // width % height - (t // SIDE - SIDE // 2) * dilation
                across = m % width - (t % SIDE - SIDE // 2) * dilation
                exists = (y >= 0) & (y < height) & (across >= 0) & (across < width)
                bits |= exists.to(tl.int32) << t
            inside = inside & (((bits[:, None] >> tap[None, :]) & 1) != 0)
        gradient = tl.load(
            gradient_ptr + m.to(tl.int64)[:, None] * gradient_stride + offset[None, :],
            mask=inside,
            other=0.0,
        )
        # Norm and ReLU of the input, made again, and the product over the block's pixels.
        active = normalize_activate(x, scale, shift, float("inf")).to(gradient.dtype)
        total += multiply(tl.trans(gradient), active, PRECISION)
    out = out_ptr + tl.program_id(1).to(tl.int64) * SIDE * SIDE * outputs * channels
    tl.store(
        out + j[:, None] * channels + c[None, :],
        total,
        mask=(j < SIDE * SIDE * outputs)[:, None] & (c < channels)[None, :],
    )
