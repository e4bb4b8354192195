"""Runs a dense block of training, forward and back, in one call to the C++ kernels each.

A dense block is that of Huang et al. (1608.06993, section 3); what is kept and what is computed
again is said in ``shared.py``, whose plain form these kernels stand for.

Shapes: N images, C channels of the block's output, B of a bottleneck, k new maps, H and W pixels.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from densenet_backbones.dense_block.native.library import load_library
from densenet_backbones.dense_block.native.packing import choose_tile
from densenet_backbones.dense_block.native.trained_norms import (
    Kernel,
    Norm,
    TrainedNorm,
    get_address,
    note_changes,
)

__all__ = ["BlockResult", "TrainedLayer", "TrainedUnit", "run_backward", "run_forward"]

_Optional = Tensor | None


class TrainedUnit(NamedTuple):
    """Norm, ReLU and convolution.

    Attributes:
        norm: The norm.
        weight: Weight of the norm, if it has one.
        bias: Bias of the norm, likewise.
        kernel: Weight of the convolution, (O, C, h, w).
        kernel_bias: Its bias, (O,), if it has one.
    """

    norm: TrainedNorm
    weight: _Optional
    bias: _Optional
    kernel: Tensor
    kernel_bias: _Optional


@dataclass(frozen=True)
class TrainedLayer:
    """A dense layer.

    Attributes:
        units: A 1x1 without bias, then a 3x3; the latter alone without bottleneck.
        stays: 1 for new values that are not dropped, 0 for others, (N, k, H, W), bool, channels
            last; None if none are dropped.
        factor: Factor of those that stay.
    """

    units: tuple[TrainedUnit, ...]
    stays: _Optional = None
    factor: float = 1.0

    @property
    def bottleneck(self) -> int:
        """Channels between its convolutions, B; 0 without bottleneck."""
        return len(self.units[0].kernel) if len(self.units) > 1 else 0

    @property
    def width(self) -> int:
        """New maps that it makes, k."""
        return len(self.units[-1].kernel)


class BlockResult(NamedTuple):
    """A block's output, and what its backward pass needs besides.

    Attributes:
        out: (N, C, H, W), channels last.
        moments: Means and variances of the output's channels, (2, C).
        narrow_moments: Those of all bottlenecks, one layer's behind another's.
        narrow: Bottleneck maps of all layers, one behind another; None if they are made again.
    """

    out: Tensor
    moments: Tensor
    narrow_moments: Tensor
    narrow: _Optional


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in ("norm1", "norm2")),
        *((name, Kernel) for name in ("kernel1", "kernel2")),
        *((name, ctypes.c_void_p) for name in ("of_kernel1", "of_kernel2")),
        *((name, ctypes.c_int64) for name in ("bottleneck", "growth")),
        *((name, ctypes.c_void_p) for name in ("moments", "narrow", "bias", "of_bias", "stays")),
        ("factor", ctypes.c_double),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        ("buffer", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "total", "channels")),
        ("layers", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("moments", "x")),
        ("x_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gradient", "of_x")),
        ("tile", ctypes.c_int64),
    ]


def run_forward(x: Tensor, layers: Sequence[TrainedLayer], keep: bool) -> BlockResult:
    """Run a block.

    Args:
        x: Its input, (N, C, H, W), float32 or bfloat16, in rows: see `interfaces.is_in_rows`.
        layers: Its layers, at least one.
        keep: Keep bottleneck maps.
    """
    images, channels, height, width = x.shape
    total = channels + sum(layer.width for layer in layers)
    out = x.new_empty(images, height, width, total).permute(0, 3, 1, 2)
    moments = x.new_empty(2, total, dtype=torch.float32)
    narrow_moments = moments.new_empty(2 * sum(layer.bottleneck for layer in layers))
    cells = images * height * width
    rows = sum(_get_row(layer) for layer in layers)
    narrow = x.new_empty(rows * cells) if keep else None
    result = BlockResult(out, moments, narrow_moments, narrow)
    block, described = _describe(result, channels, layers)
    block.x, block.x_stride = x.data_ptr(), x.stride(3)
    _run(block, described, out, back=False)
    note_changes([unit.norm for layer in layers for unit in layer.units])
    return result


def run_backward(
    gradient: Tensor, result: BlockResult, layers: Sequence[TrainedLayer], needs: Sequence[bool]
) -> list[_Optional]:
    """Compute the gradients of a block's input and parameters.

    Args:
        gradient: Gradient of its output, (N, C, H, W), in the precision of its maps, dense and
            channels last. It is overwritten.
        result: What `run_forward` returned.
        layers: Its layers.
        needs: True for each gradient that is asked for: of the input, then of the parameters,
            layer by layer.

    Returns:
        The gradients, in the order of ``needs``; None where not asked for.
    """
    images, total, height, width = gradient.shape
    channels = total - sum(layer.width for layer in layers)
    block, described = _describe(result, channels, layers)
    units = [unit for layer in layers for unit in layer.units]
    parameters = [parameter for _, *own in units for parameter in own]
    gradients = [
        torch.empty_like(parameter) if parameter is not None and needed else None
        for parameter, needed in zip(parameters, needs[1:], strict=True)
    ]
    rest = iter(map(get_address, gradients))
    for layer, to in zip(layers, described, strict=True):
        if layer.bottleneck:
            to.norm1.of_weight, to.norm1.of_bias, to.of_kernel1, _ = islice(rest, 4)
        last = to.norm2 if layer.bottleneck else to.norm1
        last.of_weight, last.of_bias, to.of_kernel2, to.of_bias = islice(rest, 4)
    of_x = None
    if needs[0]:
        of_x = gradient.new_empty(images, height, width, channels).permute(0, 3, 1, 2)
    block.gradient, block.of_x = gradient.data_ptr(), get_address(of_x)
    _run(block, described, result.out, back=True)
    return [of_x, *gradients]


def _run(block: _Block, layers: "ctypes.Array[_Layer]", out: Tensor, back: bool) -> None:
    kernels, threads = load_library(), torch.get_num_threads()
    described = ctypes.byref(block), layers, out.element_size(), back
    floats = kernels.train_block_floats(*described, threads)
    memory = out.new_empty(floats, dtype=torch.float32)  # where they are, whatever the default
    kernels.train_block(*described, memory.data_ptr(), threads)


def _describe(
    result: BlockResult, channels: int, layers: Sequence[TrainedLayer]
) -> "tuple[_Block, ctypes.Array[_Layer]]":
    """Return the structures that the kernels read: a block, and its layers."""
    images, total, height, width = result.out.shape
    block = _Block(
        buffer=result.out.data_ptr(),
        images=images,
        height=height,
        width=width,
        total=total,
        channels=channels,
        layers=len(layers),
        moments=result.moments.data_ptr(),
        tile=choose_tile(height, width, result.out.dtype),
    )
    described = (_Layer * len(layers))()
    moments, narrow = result.narrow_moments.data_ptr(), get_address(result.narrow)
    cells = images * height * width
    for layer, to in zip(layers, described, strict=True):
        *squeeze, (norm, weight, bias, kernel, kernel_bias) = layer.units
        for unit in squeeze:
            to.norm1.fill(unit.norm, unit.weight, unit.bias)
            to.kernel1.fill(unit.kernel)
        (to.norm2 if squeeze else to.norm1).fill(norm, weight, bias)
        to.kernel2.fill(kernel)
        to.bias = get_address(kernel_bias)
        to.stays, to.factor = get_address(layer.stays), layer.factor
        to.bottleneck, to.growth = layer.bottleneck, layer.width
        to.moments, to.narrow = moments, narrow
        moments += 2 * layer.bottleneck * result.moments.element_size()
        narrow = narrow and narrow + cells * _get_row(layer) * result.out.element_size()
    return block, described


def _get_row(layer: TrainedLayer) -> int:
    """Return the values of a cell of bottleneck maps: whole vectors."""
    lanes: int = load_library().lanes()
    return -(-layer.bottleneck // lanes) * lanes
