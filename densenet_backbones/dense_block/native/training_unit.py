"""Runs norm, ReLU and what follows them in training, in one call to the C++ kernels each way.

What follows is a 1x1 convolution, which may have a 2x2 average pool behind it, or a max pool, or
nothing. Means run before the convolution, which they commute with: it then reads a quarter of the
cells. A max pool runs by itself as well.

Shapes: N images, C channels in, O channels out, H and W pixels, H' and W' behind a pool.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block.native.library import load_library
from densenet_backbones.dense_block.native.trained_norms import (
    Kernel,
    Norm,
    TrainedNorm,
    get_address,
    note_changes,
)

__all__ = [
    "TrainedUnit",
    "UnitResult",
    "run_backward",
    "run_forward",
    "run_pool_backward",
    "run_pool_forward",
]


@dataclass(frozen=True)
class TrainedUnit:
    """Norm, ReLU and what follows them.

    Attributes:
        norm: The norm.
        parameters: Weight and bias of the norm, weight, (O, C, 1, 1), and bias of the convolution;
            None where there is none.
        pool: An average pool of 2x2 cells behind the convolution, or a max pool in its place.
    """

    norm: TrainedNorm
    parameters: tuple[Tensor | None, ...]
    pool: nn.AvgPool2d | nn.MaxPool2d | None


class UnitResult(NamedTuple):
    """A unit's output, and what its backward pass needs besides.

    Attributes:
        out: (N, O or C, H', W'), channels last.
        moments: Means and variances of the input's channels, (2, C).
        places: Places of a max pool's largest values in its windows, (N, H', W', C), in a byte
            each.
    """

    out: Tensor
    moments: Tensor
    places: Tensor | None


class _Window(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("side", "step", "border")]


class _Unit(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_stride", "images", "height", "width", "channels")),
        ("norm", Norm),
        ("moments", ctypes.c_void_p),
        ("kernel", Kernel),
        *((name, ctypes.c_void_p) for name in ("of_kernel", "bias")),
        ("outputs", ctypes.c_int64),
        ("window", _Window),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width")),
        *((name, ctypes.c_void_p) for name in ("places", "gradient", "of_x")),
    ]


def run_forward(x: Tensor, unit: TrainedUnit) -> UnitResult:
    """Run a unit.

    Args:
        x: (N, C, H, W), float32 or bfloat16, in rows: see `interfaces.is_in_rows`.
        unit: The unit.
    """
    images, channels = x.shape[:2]
    described = _describe(x, unit)
    height, width = _measure(x, unit.pool)
    kernel, bias = unit.parameters[2:]
    columns = channels if kernel is None else _round_up(len(kernel))
    out = x.new_empty(images, height, width, columns)
    moments, places = x.new_empty(2, channels, dtype=torch.float32), None
    if kernel is not None:  # a vector at a time, and whole ones
        padded = moments.new_zeros(columns)
        if bias is not None:
            padded[: len(bias)] = bias
        described.bias = padded.data_ptr()
    elif unit.pool is not None:
        places = x.new_empty(images, height, width, channels, dtype=torch.uint8)
    described.out, described.moments = out.data_ptr(), moments.data_ptr()
    described.places = get_address(places)
    described.out_height, described.out_width = height, width
    _run(described, x, back=False)
    note_changes([unit.norm])
    maps = out[..., : channels if kernel is None else len(kernel)].permute(0, 3, 1, 2)
    return UnitResult(maps.contiguous(memory_format=torch.channels_last), moments, places)


def run_backward(
    gradient: Tensor, x: Tensor, unit: TrainedUnit, result: UnitResult, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Compute the gradients of a unit's input and parameters.

    Args:
        gradient: Gradient of its output, (N, O or C, H', W'), in the precision of the maps, dense
            and channels last.
        x: What `run_forward` got.
        unit: The unit.
        result: What `run_forward` returned; its output is not read.
        needs: True for each gradient that is asked for: of the input, then of the parameters.

    Returns:
        The gradients, in the order of ``needs``; None where not asked for.
    """
    images, channels, height, width = x.shape
    described = _describe(x, unit)
    described.moments = result.moments.data_ptr()
    described.places = get_address(result.places)
    described.out_height, described.out_width = gradient.shape[2:]
    gradients = [
        torch.empty_like(parameter) if parameter is not None and needed else None
        for parameter, needed in zip(unit.parameters, needs[1:], strict=True)
    ]
    of_weight, of_bias, of_kernel, of_kernel_bias = gradients
    described.norm.of_weight, described.norm.of_bias = map(get_address, (of_weight, of_bias))
    described.of_kernel = get_address(of_kernel)
    of_x = None
    if needs[0]:
        of_x = x.new_empty(images, height, width, channels).permute(0, 3, 1, 2)
    described.gradient, described.of_x = gradient.data_ptr(), get_address(of_x)
    _run(described, x, back=True)
    if of_kernel_bias is not None:
        torch.sum(gradient, (0, 2, 3), dtype=torch.float32, out=of_kernel_bias)
    return [of_x, *gradients]


def run_pool_forward(x: Tensor, pool: nn.MaxPool2d) -> tuple[Tensor, Tensor]:
    """Run a max pool alone.

    Args:
        x: (N, C, H, W), float32 or bfloat16, in rows.
        pool: The pool.

    Returns:
        What it gives, (N, C, H', W'), channels last, and the places of `UnitResult`.
    """
    images, channels = x.shape[:2]
    described = _describe_maps(x, pool)
    described.out_height, described.out_width = height, width = _measure(x, pool)
    out = x.new_empty(images, height, width, channels)
    places = torch.empty_like(out, dtype=torch.uint8)
    described.out, described.places = out.data_ptr(), places.data_ptr()
    _run_pool(described, x, back=False)
    return out.permute(0, 3, 1, 2), places


def run_pool_backward(
    gradient: Tensor, places: Tensor, pool: nn.MaxPool2d, size: tuple[int, int]
) -> Tensor:
    """Compute the gradient of a max pool's input.

    Args:
        gradient: Gradient of its output, (N, C, H', W'), dense and channels last.
        places: What `run_pool_forward` returned.
        pool: The pool.
        size: H and W of its input.

    Returns:
        (N, C, H, W), channels last.
    """
    images, channels = gradient.shape[:2]
    of_x = gradient.new_empty(images, *size, channels).permute(0, 3, 1, 2)
    described = _describe_maps(of_x, pool)  # the input itself is not read
    described.out_height, described.out_width = gradient.shape[2:]
    described.gradient, described.places = gradient.data_ptr(), places.data_ptr()
    described.of_x = of_x.data_ptr()
    _run_pool(described, of_x, back=True)
    return of_x


def _run_pool(described: _Unit, x: Tensor, back: bool) -> None:
    kernels, threads = load_library(), torch.get_num_threads()
    kernels.train_pool(ctypes.byref(described), x.element_size(), back, threads)


def _run(unit: _Unit, x: Tensor, back: bool) -> None:
    kernels, threads = load_library(), torch.get_num_threads()
    described = ctypes.byref(unit), x.element_size(), back
    floats = kernels.train_unit_floats(*described, threads)
    memory = x.new_empty(floats, dtype=torch.float32)  # where they are, whatever the default
    kernels.train_unit(*described, memory.data_ptr(), threads)


def _describe(x: Tensor, unit: TrainedUnit) -> _Unit:
    """Return the structure that the kernels read, without what a pass writes."""
    described = _describe_maps(x, unit.pool)
    weight, bias, kernel, _ = unit.parameters
    described.norm.fill(unit.norm, weight, bias)
    if kernel is not None:
        described.kernel.fill(kernel)
        described.outputs = len(kernel)
    return described


def _describe_maps(x: Tensor, pool: nn.AvgPool2d | nn.MaxPool2d | None) -> _Unit:
    images, channels, height, width = x.shape
    described = _Unit(
        x=x.data_ptr(),
        x_stride=x.stride(3),
        images=images,
        height=height,
        width=width,
        channels=channels,
    )
    if pool is not None:
        described.window = _Window(*_read_window(pool))
    return described


def _read_window(pool: nn.AvgPool2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Return side, step and border of a pool's square windows."""
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    side, step, border = (s[0] if isinstance(s, tuple) else s for s in sizes)
    return side, step, border


def _measure(x: Tensor, pool: nn.AvgPool2d | nn.MaxPool2d | None) -> tuple[int, int]:
    """Return height and width of what a pool gives, as torch's `pooling_output_shape` does.

    (Asking the pool itself, on the meta device, takes longer than some pools take.)
    """
    height, width = x.shape[2:]
    if pool is None:
        return height, width
    side, step, border = _read_window(pool)

    def measure(length: int) -> int:
        rest = length + 2 * border - side
        count = (rest + (step - 1 if pool.ceil_mode else 0)) // step + 1
        # A last window that begins behind the map and its border is left out.
        outside = pool.ceil_mode and (count - 1) * step >= length + border
        return count - outside

    return measure(height), measure(width)


def _round_up(columns: int) -> int:
    """Return the values of a cell of packed columns: whole vectors."""
    lanes: int = load_library().lanes()
    return -(-columns // lanes) * lanes
