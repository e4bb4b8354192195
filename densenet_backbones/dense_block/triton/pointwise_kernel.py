"""The 1x1 convolution on normed and activated inputs, in Triton, of a layer or a transition.

Both are those of Huang et al. (1608.06993, section 3).

Shapes: M pixels of the output, C channels read, B channels written. Names in capitals are constants
of a compiled kernel.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.arithmetic import activate, multiply, normalize_activate
from densenet_backbones.dense_block.triton.tuning import make_autotune_arguments

__all__ = ["pointwise_kernel"]


def _make_config(pixels: int, outputs: int, depth: int, warps: int, stages: int) -> triton.Config:
    constants = {"BLOCK_M": pixels, "BLOCK_B": outputs, "BLOCK_C": depth}
    return triton.Config(constants, num_warps=warps, num_stages=stages)


# Small tiles for few pixels (batch 1, 7x7 maps), where a large one would leave multiprocessors
# idle; large tiles, whose operands are read less often, for many.
_CONFIGS = [
    _make_config(16, 32, 128, warps=4, stages=4),
    _make_config(32, 64, 128, warps=4, stages=3),
    _make_config(64, 64, 64, warps=4, stages=4),
    _make_config(64, 128, 64, warps=4, stages=4),
    _make_config(128, 128, 64, warps=8, stages=3),
    _make_config(256, 128, 32, warps=8, stages=4),
]


@triton.autotune(
    **make_autotune_arguments(_CONFIGS, "BLOCK_M", interpreted=_make_config(32, 32, 32, 4, 2)),
    key=["rows_key", "channels_key", "outputs", "POOL"],
)
@triton.jit
def pointwise_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    channels,
    outputs,
    height,
    width,
    x_stride,
    weight_stride_c,
    weight_stride_b,
    out_stride,
    ceiling,
    rows_key,
    channels_key,
    ACTIVATE: tl.constexpr,
    POOL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute a 1x1 convolution of normed and activated inputs.

    ``out[m, b] = sum over c of act(scale[c] x[m, c] + shift[c]) weight[c, b] + bias[b]``

    The bias may be None. A program makes BLOCK_M pixels of BLOCK_B outputs. Those that share pixels
    are neighbors, so that the second finds the inputs in the L2 cache. With ACTIVATE, the output
    is activated as the input is. With POOL, x is (N, height, width) pixels and an output pixel
    reads the average of its 2x2 activated ones, which is rounded once.
    """
    column_tiles = tl.cdiv(outputs, BLOCK_B)
    m = (tl.program_id(0) // column_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = (tl.program_id(0) % column_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    # Where each pixel of the output reads: the pixel itself, or the corner of its 2x2.
    if POOL:
        pooled_width = width // 2
        # Maps with an odd height lose their last row: pixels are counted image by image.
        image_pixels = pooled_width * (height // 2)
        y = (m % image_pixels) // pooled_width * 2
        pixel = ((m // image_pixels) * height + y) * width + m % pooled_width * 2
    else:
        pixel = m
    offset = pixel.to(tl.int64) * x_stride
    total = tl.zeros((BLOCK_M, BLOCK_B), dtype=tl.float32)
    for start in range(0, channels, BLOCK_C):
        # A slice of channels, normed and activated on the way in; pooled before the product.
        c = start + tl.arange(0, BLOCK_C)
        scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        shift = tl.load(shift_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        mask = (m < rows)[:, None] & (c < channels)[None, :]
        at = x_ptr + offset[:, None] + c[None, :]
        x = normalize_activate(tl.load(at, mask=mask, other=0.0), scale, shift, ceiling)
        if POOL:
            below = at + width.to(tl.int64) * x_stride
            x += normalize_activate(
                tl.load(at + x_stride, mask=mask, other=0.0), scale, shift, ceiling
            )
            x += normalize_activate(tl.load(below, mask=mask, other=0.0), scale, shift, ceiling)
            x += normalize_activate(
                tl.load(below + x_stride, mask=mask, other=0.0), scale, shift, ceiling
            )
            x *= 0.25
        # Times the slice's weights; sums stay in float32.
        weight = tl.load(
            weight_ptr + c[:, None] * weight_stride_c + b[None, :] * weight_stride_b,
            mask=(c < channels)[:, None] & (b < outputs)[None, :],
            other=0.0,
        )
        total += multiply(x.to(weight.dtype), weight, PRECISION)
    # Bias, activation, and one rounding to the type of the output.
    if bias_ptr is not None:
        total += tl.load(bias_ptr + b, mask=b < outputs, other=0.0).to(tl.float32)[None, :]
    if ACTIVATE:
        total = activate(total, ceiling)
    tl.store(
        out_ptr + m.to(tl.int64)[:, None] * out_stride + b[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(m < rows)[:, None] & (b < outputs)[None, :],
    )
