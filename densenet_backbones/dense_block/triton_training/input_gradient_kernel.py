"""The gradient of a convolution's input, masked by the ReLU before it, in Triton.

It is a convolution by the flipped kernel (as in cuDNN: Chetlur et al., 1410.0759); mask and
sums are those of batch norm's gradient (Ioffe and Szegedy, 1502.03167, section 3).

Shapes: M pixels, C channels of what was normed, O outputs of the convolution.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.conv_kernel import sum_taps

__all__ = ["input_gradient_kernel", "store_gradient_and_sums"]


@triton.jit
def store_gradient_and_sums(
    masked,
    x,
    scale,
    target_ptr,
    sums_ptr,
    tile,
    m,
    c,
    inside,
    channels,
    target_stride,
    ADD: tl.constexpr,
):
    """Write a tile of the activation's gradient, and its two sums over the pixels of the tile.

    With ADD it is multiplied by the scale and added to what is there.
    """
    # A row of sums for each tile, to be added up in one order whatever ran first.
    sums_ptr += tile.to(tl.int64) * 2 * channels
    tl.store(sums_ptr + c, tl.sum(masked, 0), mask=c < channels)
    tl.store(sums_ptr + channels + c, tl.sum(masked * x, 0), mask=c < channels)
    target = target_ptr + m.to(tl.int64)[:, None] * target_stride + c[None, :]
    if ADD:
        before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
        masked = before + scale[None, :] * masked
    tl.store(target, masked.to(target_ptr.dtype.element_ty), mask=inside)


# Not tuned by the clock: that would run it again and again on what it adds to.
@triton.jit
def input_gradient_kernel(
    gradient_ptr,
    weight_ptr,
    x_ptr,
    scale_ptr,
    shift_ptr,
    target_ptr,
    sums_ptr,
    rows,
    height,
    width,
    outputs,
    channels,
    dilation,
    gradient_stride,
    weight_stride_o,
    weight_stride_c,
    weight_stride_y,
    weight_stride_x,
    x_stride,
    target_stride,
    ADD: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Compute the gradient of the input where it was activated, and its sums.

    ``sum over taps and o of gradient[m - tap, o] weight[o, c, tap]``

    Strides of the weight's taps are negative: a transposed convolution is one by the flipped
    kernel. The sign of ``scale[c] x[m, c] + shift[c]`` is computed again. A program makes BLOCK_M
    pixels of BLOCK_C channels, and the sums over them.
    """
    # This program's pixels and channels; neighbors share pixels.
    column_tiles = tl.cdiv(channels, BLOCK_C)
    tile = tl.program_id(0) // column_tiles
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) % column_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    # The gradient of the activation: a sum over taps and outputs.
    gradient = sum_taps(
        gradient_ptr,
        None,
        None,
        weight_ptr,
        m,
        c,
        rows,
        height,
        width,
        outputs,
        channels,
        dilation,
        gradient_stride,
        weight_stride_c,
        weight_stride_o,
        weight_stride_y,
        weight_stride_x,
        SIDE=SIDE,
        PRECISION=PRECISION,
        BLOCK_M=BLOCK_M,
        BLOCK_J=BLOCK_C,
        BLOCK_B=BLOCK_O,
    )
    # The norm's output again, to know where it was cut off.
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + m.to(tl.int64)[:, None] * x_stride + c[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    # As PyTorch's: NaN counts as active.
    masked = tl.where(x * scale[None, :] + shift[None, :] <= 0.0, 0.0, gradient)
    masked = tl.where(inside, masked, 0.0)
    store_gradient_and_sums(
        masked, x, scale, target_ptr, sums_ptr, tile, m, c, inside, channels, target_stride, ADD
    )
