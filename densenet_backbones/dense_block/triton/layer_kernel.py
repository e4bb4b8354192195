"""A whole dense layer in one Triton kernel; the bottleneck stays on the chip.

A program computes the bottleneck of P pixels: a tile of the outputs and, around it, a halo as wide
as the dilation. Triton cannot address shared memory, so the 3x3 cannot read the bottleneck shifted.
The order is reversed instead: the bottleneck of all P pixels, in place, times a tap's (B, k)
weights gives P partial sums, and those are shifted, with `tl.gather`, and added up. Partial sums
are k wide and not B, a quarter of the values, and they stay in float32; the bottleneck never leaves
registers.

The halo has its cost: tiles come from `tiles.find_best_tile`, full rows of neighboring images where
maps are narrow. With P = 256 and dilation 1 the bottleneck is computed 1.14 times for many 14x14
and 7x7 maps and 1.31 times for 28x28 and larger ones, with P = 128 about 1.3 and 1.5 times. Beyond
the edge of an image there is zero and no halo.

On paper, for B = 4k = 128 and two bytes a value, with everything recomputed R times:

====================  =============================  ================  =======================
a pixel               two kernels                    3x3 shifted here  this kernel
====================  =============================  ================  =======================
memory, bytes         2 (C + 128) + 2 (128 + 32)     the same          2 (C + 32)
read from L2, bytes   2 C + 9 * 256: each tap anew   2 C + R * 256     R * 2 C
products, FLOP        256 C + 73728                  256 C + R 73728   R (256 C + 73728)
shared memory, bytes  tiles of the products          + R * 9 * 256     + R * 9 * 256
====================  =============================  ================  =======================

So it wins where memory or L2 is what two kernels wait for and programs are many: large maps, large
batches. It loses where pixels are few (a 14x14 image is one program) and where C is so large that
products rule. The middle column is this kernel with a bottleneck that is there already. Nothing of
this table is measured; `choice.py` measures all three where they run.
"""

import triton
import triton.language as tl

from densenet_backbones.dense_block.triton.arithmetic import activate, multiply, normalize_activate

__all__ = ["layer_kernel"]


@triton.jit
def layer_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    out_ptr,
    rows,
    channels,
    bottleneck,
    growth,
    x_stride,
    weight1_stride_c,
    weight1_stride_b,
    weight2_stride_k,
    weight2_stride_b,
    weight2_stride_y,
    weight2_stride_x,
    out_stride,
    ceiling,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    DILATION: tl.constexpr,
    SQUEEZE: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute new maps of TILE_HEIGHT rows and TILE_WIDTH columns.

    Rows are counted over all images, N * HEIGHT of them, so that a tile may span several. Without
    SQUEEZE, x is the bottleneck, and the first convolution's pointers and sizes are not read.
    """
    # The pixels of this program: its tile, and the halo that the 3x3 reads around it.
    SIDE: tl.constexpr = 0 if TILE_WIDTH == WIDTH else DILATION
    PITCH: tl.constexpr = TILE_WIDTH + 2 * SIDE
    COLUMN_TILES: tl.constexpr = (WIDTH + TILE_WIDTH - 1) // TILE_WIDTH
    cell = tl.arange(0, PIXELS)
    tile_row = cell // PITCH - DILATION
    tile_column = cell % PITCH - SIDE
    row = tl.program_id(0) // COLUMN_TILES * TILE_HEIGHT + tile_row
    column = tl.program_id(0) % COLUMN_TILES * TILE_WIDTH + tile_column
    exists = (row >= 0) & (row < rows) & (column >= 0) & (column < WIDTH)
    exists = exists & (tile_row < TILE_HEIGHT + DILATION)
    pixel = row.to(tl.int64) * WIDTH + column
    y = row % HEIGHT
    j = tl.arange(0, BLOCK_K)
    # Eight channels of all pixels side by side: then neither writing partial sums to shared memory
    # in the order of a product's registers nor reading them shifted meets a bank twice.
    total = tl.zeros((BLOCK_K // 8, PIXELS, 8), dtype=tl.float32)
    group = (tl.arange(0, BLOCK_K // 8) * PIXELS * 8)[:, None, None]
    group = group + tl.arange(0, 8)[None, None, :]
    for start_b in range(0, bottleneck, BLOCK_B):
        b = start_b + tl.arange(0, BLOCK_B)
        # First the bottleneck of all pixels, halo included: norm, ReLU, 1x1, ReLU.
        if SQUEEZE:
            squeezed = tl.zeros((PIXELS, BLOCK_B), dtype=tl.float32)
            for start_c in range(0, channels, BLOCK_C):
                c = start_c + tl.arange(0, BLOCK_C)
                scale = tl.load(scale_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
                shift = tl.load(shift_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
                x = tl.load(
                    x_ptr + (pixel * x_stride)[:, None] + c[None, :],
                    mask=exists[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                weight1 = tl.load(
                    weight1_ptr + c[:, None] * weight1_stride_c + b[None, :] * weight1_stride_b,
                    mask=(c < channels)[:, None] & (b < bottleneck)[None, :],
                    other=0.0,
                )
                x = normalize_activate(x, scale[None, :], shift[None, :], ceiling).to(weight1.dtype)
                squeezed += multiply(x, weight1, PRECISION)
            bias1 = tl.load(bias1_ptr + b, mask=b < bottleneck, other=0.0).to(tl.float32)
            squeezed = activate(squeezed + bias1[None, :], ceiling)
            squeezed = squeezed.to(x_ptr.dtype.element_ty)
        else:
            squeezed = tl.load(
                x_ptr + (pixel * x_stride)[:, None] + b[None, :],
                mask=exists[:, None] & (b < bottleneck)[None, :],
                other=0.0,
            )
        # Then the 3x3 in reverse: each tap's partial sums, then their shift to their pixels.
        for tap in range(9):
            down = (tap // 3 - 1) * DILATION
            right = (tap % 3 - 1) * DILATION
            weight2 = tl.load(
                weight2_ptr
                + tap // 3 * weight2_stride_y
                + tap % 3 * weight2_stride_x
                + b[:, None] * weight2_stride_b
                + j[None, :] * weight2_stride_k,
                mask=(b < bottleneck)[:, None] & (j < growth)[None, :],
                other=0.0,
            )
            part = multiply(squeezed, weight2, PRECISION)
            # One-dimensional, as the compiler turns gathers of more dimensions into shuffles: of
            # P values in a warp, an eighth of a shuffle each and many times as slow.
            part = tl.permute(tl.reshape(part, (PIXELS, BLOCK_K // 8, 8)), (1, 0, 2))
            source = tl.minimum(tl.maximum(cell + down * PITCH + right, 0), PIXELS - 1)
            place = tl.reshape(group + source[None, :, None] * 8, (PIXELS * BLOCK_K,))
            part = tl.gather(tl.reshape(part, (PIXELS * BLOCK_K,)), place, 0)
            # What lies beyond the edge, or in the next image of the tile, is padding.
            inside = (y + down >= 0) & (y + down < HEIGHT)
            inside = inside & (column + right >= 0) & (column + right < WIDTH)
            part = tl.reshape(part, (BLOCK_K // 8, PIXELS, 8))
            total += tl.where(inside[None, :, None], part, 0.0)
    # Back to one row a pixel; only the tile's own pixels are written, the halo is not.
    total = tl.reshape(tl.permute(total, (1, 0, 2)), (PIXELS, BLOCK_K))
    total += tl.load(bias2_ptr + j, mask=j < growth, other=0.0).to(tl.float32)[None, :]
    own = exists & (tile_row >= 0) & (tile_row < TILE_HEIGHT)
    own = own & (tile_column >= 0) & (tile_column < TILE_WIDTH)
    tl.store(
        out_ptr + (pixel * out_stride)[:, None] + j[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=own[:, None] & (j < growth)[None, :],
    )
