"""Picks the kernels of our own that run a block: Triton's on an NVIDIA GPU, C++ on a CPU, or none.

The Triton kernels are off unless asked for, by ``DENSENET_BACKBONES_TRITON=1`` in the environment
or by `use_triton`: plain operators run on a GPU without being asked. Once asked for, they are
checked against plain operators before their first use: see `triton.self_check`.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block import native
from densenet_backbones.dense_block.interfaces import LayerWeights

__all__ = [
    "TRITON_SWITCH",
    "fill_in_kernels",
    "has_cpp",
    "has_cpp_passes",
    "has_cpp_training",
    "has_kernels",
    "has_triton",
    "has_triton_training",
    "is_on_gpu",
    "is_triton_asked_for",
    "use_triton",
]

TRITON_SWITCH = "DENSENET_BACKBONES_TRITON"

# What `use_triton` says, over the environment. For the process, as backward passes have threads.
_triton_override: bool | None = None


def is_triton_asked_for() -> bool:
    """Return True if the Triton kernels are switched on; read anew at each use."""
    if _triton_override is not None:
        return _triton_override
    return os.environ.get(TRITON_SWITCH) == "1"


@contextmanager
def use_triton(enabled: bool = True) -> Iterator[None]:
    """Switch the Triton kernels on or off for a while, whatever the environment says.

    It holds for all threads of the process. What was compiled before keeps what it has.
    """
    global _triton_override
    before, _triton_override = _triton_override, enabled
    try:
        yield
    finally:
        _triton_override = before


# Triton's kernels are imported where they are used, as few processes need them. Where kernels
# cannot run, a warning says why, once.


def has_kernels(x: Tensor) -> bool:
    """Return True if any kernels run on maps like ``x``; while torch compiles, if they may."""
    if torch.compiler.is_compiling():
        return (is_on_gpu(x) and is_triton_asked_for()) or _is_for_cpp(x)
    return has_cpp(x) or has_triton(x)


def has_triton(x: Tensor) -> bool:
    """Return True if the Triton kernels of inference run on maps like ``x``."""
    if not (is_on_gpu(x) and is_triton_asked_for() and _is_real(x)):
        return False
    from densenet_backbones.dense_block.triton import is_usable
    from densenet_backbones.dense_block.triton.self_check import compare_inference, has_passed_check

    if not is_usable(x.device, x.dtype):
        return False
    return has_passed_check("inference", compare_inference, x.device, x.dtype)


def has_triton_training(*tensors: Tensor) -> bool:
    """Return True if the Triton kernels of training run on these tensors as they are."""
    if not (is_on_gpu(tensors[0]) and is_triton_asked_for() and all(map(_is_real, tensors))):
        return False
    from densenet_backbones.dense_block.triton import is_usable
    from densenet_backbones.dense_block.triton.self_check import has_passed_check
    from densenet_backbones.dense_block.triton_training.self_check import compare_training

    kinds = {(x.device, x.dtype) for x in tensors}  # asking takes time: once for each
    return all(is_usable(*kind) for kind in kinds) and all(
        has_passed_check("training", compare_training, *kind) for kind in kinds
    )


def is_on_gpu(x: Tensor) -> bool:
    """Return True if maps like ``x`` are where the Triton kernels run."""
    return x.is_cuda


def has_cpp(x: Tensor) -> bool:
    """Return True if the C++ kernels of inference run on maps like ``x``; compiled at first use."""
    if not _is_for_cpp(x):
        return False
    return native.is_usable() if x.dtype == torch.float32 else native.has_bfloat16()


def has_cpp_training(x: Tensor, *parameters: Tensor, halves: bool = False) -> bool:
    """Return True if the C++ kernels of training run on maps and parameters as they are.

    Args:
        x: Maps, float32.
        *parameters: Float32.
        halves: Maps may be bfloat16 instead.
    """
    single = all(_is_real(p) and p.is_cpu and p.dtype == torch.float32 for p in parameters)
    return single and (halves or x.dtype == torch.float32) and has_cpp(x)


def has_cpp_passes(maps: Sequence[Tensor], vectors: Sequence[Tensor] = ()) -> bool:
    """Return True if the C++ passes over whole maps run on these tensors as they are.

    Args:
        maps: All float32, or all bfloat16.
        vectors: Float32.
    """
    same = all(_is_real(x) and x.is_cpu and x.dtype == maps[0].dtype for x in maps)
    single = all(_is_real(x) and x.is_cpu and x.dtype == torch.float32 for x in vectors)
    return same and single and _is_for_cpp(maps[0]) and native.is_usable()


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
    """Run a block in place, if there are kernels for it.

    Args:
        buffer: (N, C, H, W), channels last; its first ``channels`` are the block's input.
        channels: Number of input channels.
        layers: Tensors of each layer, as `FoldedLayer.list_tensors` returns them.
        dilation: Dilation of the 3x3 convolutions.
        ceiling: Value at which activations cut off, beside 0.

    Returns:
        True if it was run.
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
