"""Which kernels of our own run a block: Triton's on an NVIDIA GPU, C++ on a CPU, or none.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block import native
from densenet_backbones.dense_block.interfaces import LayerWeights

__all__ = [
    "fill_in_kernels",
    "has_cpp",
    "has_cpp_training",
    "has_kernels",
    "has_triton",
    "has_triton_training",
    "is_on_gpu",
]


# Triton's kernels are imported where they are used, as few processes need them. Where kernels
# cannot run, a warning says why, once.


def has_kernels(x: Tensor) -> bool:
    """Whether any kernels run on maps like ``x``; while torch compiles, whether they may."""
    if torch.compiler.is_compiling():
        return is_on_gpu(x) or _is_for_cpp(x)
    return has_cpp(x) or has_triton(x)


def has_triton(x: Tensor) -> bool:
    """Whether the Triton kernels run on maps like ``x``."""
    if not is_on_gpu(x):
        return False
    from densenet_backbones.dense_block.triton import usable

    return usable(x.device, x.dtype)


def has_triton_training(*tensors: Tensor) -> bool:
    """Whether the Triton kernels of training run on these tensors as they are."""
    if not is_on_gpu(tensors[0]):
        return False
    kinds = {(x.device, x.dtype): x for x in tensors}.values()  # asking takes time: once for each
    return all(map(_is_real, tensors)) and all(map(has_triton, kinds))


def is_on_gpu(x: Tensor) -> bool:
    """Whether the Triton kernels are to be asked for."""
    return x.is_cuda


def has_cpp(x: Tensor) -> bool:
    """Whether the C++ kernels of inference run on maps like ``x``; the first use compiles them."""
    if not _is_for_cpp(x):
        return False
    return native.usable() if x.dtype == torch.float32 else native.has_bfloat16()


def has_cpp_training(*tensors: Tensor) -> bool:
    """Whether the C++ kernels of training run on these tensors as they are."""
    same = all(_is_real(x) and x.is_cpu and x.dtype == torch.float32 for x in tensors)
    return same and has_cpp(tensors[0])


def _is_for_cpp(x: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != x.dtype:
        return False
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return _is_real(x) and known and not is_on_gpu(x)


def _is_real(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter)  # others, as fake ones, may have no memory


def fill_in_kernels(
    buffer: Tensor,
    channels: int,
    layers: Sequence[Sequence[Tensor]],
    dilation: int,
    ceiling: float,
) -> bool:
    """Runs a block in place, if there are kernels for it.

    Args:
        buffer: (N, C, H, W), channels last; its first ``channels`` are the block's input.
        channels: Their number.
        layers: Of each what `FoldedLayer.tensors` returns.
        dilation: Of the 3x3 convolutions.
        ceiling: What activations cut off at, beside 0.

    Returns:
        Whether it was run.
    """
    if dilation == 1 and has_cpp(buffer):
        native.fill_block(buffer, channels, layers, ceiling)
        return True
    if len(layers[0]) == len(LayerWeights._fields) and has_triton(buffer):
        from densenet_backbones.dense_block.triton import run_folded_kernels

        # Scales and shifts may stay longer than the maps: kernels norm in float32 in any case.
        weights = [
            LayerWeights(scale, shift, *(tensor.to(buffer.dtype) for tensor in convs))
            for scale, shift, *convs in layers
        ]
        run_folded_kernels(buffer, weights, dilation=dilation, ceiling=ceiling)
        return True
    return False
