"""Convolutions of training in the C++ kernels, from weights as they are.

Those of 3x3 are Winograd's, as Lavin and Gray (1509.09308, section 4.1) have them.

Shapes: N images, C channels in, O channels out, H and W pixels.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block.native.library import load_library
from densenet_backbones.dense_block.native.packing import choose_layout, choose_tile

__all__ = ["compute_weight_gradient", "convolve", "is_known", "is_weight_gradient_known"]

_AVX_LANES = 8  # floats of a vector
_MOST_KERNELS = 2**17  # of a weight: products of its numbers of channels


def is_known(conv: nn.Conv2d) -> bool:
    """Return True if the kernels have this geometry: 1x1, or 3x3 with a border of one zero."""
    geometry = (conv.kernel_size, conv.padding)
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    return plain and geometry in (((1, 1), (0, 0)), ((3, 3), (1, 1)))


def is_weight_gradient_known(weight: Tensor) -> bool:
    """Return True if the kernels make the gradient of such a weight, and faster than oneDNN.

    With AVX-512 oneDNN has code for maps in rows, and it was not compared; without, it takes 2 to 8
    times as long as for the convolution itself. Winograd's sums are as large as 36 places of all
    kernels, and are read for every few tiles.

    Args:
        weight: (O, C, H, W), of a geometry that `is_known`.
    """
    kernels = load_library()
    small = weight.shape[0] * weight.shape[1] <= _MOST_KERNELS
    return weight.shape[2] == 3 and small and kernels.lanes() == _AVX_LANES


def compute_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of a 3x3 convolution's weight.

    Args:
        gradient: Gradient of what it gave, (N, O, H, W), float32, in rows.
        x: What it read, (N, C, H, W), likewise.
        weight: (O, C, 3, 3), which the result is laid out like.
    """
    images, channels, height, width = x.shape
    of_weight, outputs = torch.empty_like(weight), len(weight)
    kernels, threads = load_library(), torch.get_num_threads()
    tile = choose_tile(height, width, x.dtype)
    own = kernels.convolve_back_floats(channels, outputs, tile)
    memory = x.new_empty(threads * own)
    kernels.convolve_back(
        *(x.data_ptr(), images, height, width, x.stride(3), channels),
        *(gradient.data_ptr(), gradient.stride(3), outputs),
        *(of_weight.data_ptr(), (ctypes.c_int64 * 4)(*of_weight.stride())),
        *(tile, memory.data_ptr(), own, threads),
    )
    return of_weight


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
    transposed: bool = False,
) -> Tensor:
    """Convolve a map, or ``relu(scale * x + shift)``.

    Args:
        x: (N, C, H, W), float32, in rows: see `interfaces.is_in_rows`.
        weight: (O, C, 1, 1), or (O, C, 3, 3) for a border of one zero; float32.
        bias: (O,), if there is one.
        norm: Scale and shift, of C values each. A 1x1 convolution must have them.
        transposed: True if ``weight`` is one of (C, O, 3, 3) whose transposed convolution is meant:
            the gradient of its input.

    Returns:
        (N, O, H, W), dense, channels last.
    """
    images, channels, height, width = x.shape
    *strides, start = *weight.stride(), weight.data_ptr()
    outputs = len(weight)
    tile = choose_tile(height, width, x.dtype) if weight.shape[2] == 3 else 0
    if transposed:  # the kernel flipped, its two kinds of channels exchanged
        out, into, down, right = strides
        start += 2 * (down + right) * weight.element_size()
        strides, outputs = [into, out, -down, -right], weight.shape[1]
    panels, vectors = choose_layout(outputs)
    kernels, threads = load_library(), torch.get_num_threads()
    columns = panels * vectors * kernels.lanes()
    added = x.new_zeros(columns) if bias is None else F.pad(bias, (0, columns - outputs))
    stride = outputs if tile else columns
    # Not a view, which what follows may not change in place.
    size, rows = (images, stride, height, width), torch.channels_last
    result = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=rows)
    packed = x.new_empty(((tile + 2) ** 2 if tile else 1) * columns * channels)
    own = (
        kernels.convolution_floats(channels, columns, tile)
        if tile
        else kernels.scratch_floats(columns, 0, tile)
    )
    scratch = x.new_empty(threads * own)
    scale, shift = (0, 0) if norm is None else (norm[0].data_ptr(), norm[1].data_ptr())
    kernels.convolve(
        *(x.data_ptr(), images, height, width, x.stride(3), channels, scale, shift),
        *(start, (ctypes.c_int64 * 4)(*strides), tile, added.data_ptr(), outputs),
        *(panels, vectors, result.data_ptr(), stride, packed.data_ptr()),
        *(scratch.data_ptr(), own, threads),
    )
    return result if stride == outputs else result[:, :outputs].contiguous(memory_format=rows)
