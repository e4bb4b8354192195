"""Batch norms as the C++ kernels of training take them: in their present mode, by addresses.

Vectors are (C,) for C channels, float32 without gaps.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densenet_backbones.dense_block.norms import NormForm

__all__ = [
    "Kernel",
    "Norm",
    "TrainedNorm",
    "describe_norm",
    "get_address",
    "get_running",
    "is_dense",
    "is_known_norm",
    "list_vectors",
    "note_changes",
]


@dataclass(frozen=True)
class TrainedNorm:
    """A norm in its present mode.

    Attributes:
        eps: Added to variances.
        constants: Mean and variance that it goes by, (C,) each; None for those of the batch.
        running: Mean and variance, (C,) each, that the batch's are mixed into; None if they are
            not, as in a backward pass.
        batches: Number of batches mixed, which is counted, if there is one.
        momentum: Weight of the batch's statistics in the mix; None for the average of all batches.
    """

    eps: float
    constants: tuple[Tensor, Tensor] | None
    running: tuple[Tensor, Tensor] | None = None
    batches: Tensor | None = None
    momentum: float | None = None


class Norm(ctypes.Structure):
    """``struct Norm`` of ``norms.h``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "constant_mean", "constant_var")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_var", "batches")),
        *((name, ctypes.c_void_p) for name in ("of_weight", "of_bias")),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
    ]

    def fill(self, norm: TrainedNorm, weight: Tensor | None, bias: Tensor | None) -> None:
        """Note the addresses of a norm's tensors; gradients are asked for by setting theirs."""
        self.weight, self.bias = get_address(weight), get_address(bias)
        self.eps, self.momentum = norm.eps, -1.0 if norm.momentum is None else norm.momentum
        self.batches = get_address(norm.batches)
        if norm.constants is not None:
            self.constant_mean, self.constant_var = map(get_address, norm.constants)
        if norm.running is not None:
            self.running_mean, self.running_var = map(get_address, norm.running)


class Kernel(ctypes.Structure):
    """``struct Kernel`` of ``weights.h``: a convolution's weight, (O, C, h, w)."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4)]

    def fill(self, weight: Tensor) -> None:
        """Note the address and the strides of a weight."""
        self.data, self.strides = weight.data_ptr(), weight.stride()


def is_dense(kernel: Tensor) -> bool:
    """Return True if a convolution's weight, (O, C, h, w), lies in memory without gaps."""
    return kernel.is_contiguous() or kernel.is_contiguous(memory_format=torch.channels_last)


def is_known_norm(norm: NormForm) -> bool:
    """Return True if the kernels have this mode of a norm."""
    # An average over all batches needs their number.
    module = norm.module
    counts = not norm.tracks or module.momentum is not None
    return norm.group is None and (counts or module.num_batches_tracked is not None)


def list_vectors(norm: NormForm) -> Iterator[Tensor]:
    """Yield the running statistics that a norm goes by, or mixes the batch's into."""
    if norm.tracks or not norm.of_batch:
        module = norm.module
        yield from (v for v in (module.running_mean, module.running_var) if v is not None)


def describe_norm(norm: NormForm) -> TrainedNorm:
    """Return a norm as a forward pass takes it."""
    module = norm.module
    if not norm.tracks:
        return TrainedNorm(module.eps, None if norm.of_batch else get_running(norm))
    return TrainedNorm(
        module.eps, None, get_running(norm), module.num_batches_tracked, module.momentum
    )


def get_running(norm: NormForm) -> tuple[Tensor, Tensor]:
    """Return running mean and variance, (C,) each."""
    moments = norm.get_running()
    return moments.mean, moments.var


def note_changes(norms: Sequence[TrainedNorm]) -> None:
    """Tell autograd what a forward pass has mixed and counted, behind its back."""
    changed = [v for norm in norms for v in (*(norm.running or ()), norm.batches) if v is not None]
    torch.autograd.graph.increment_version(changed)


def get_address(x: Tensor | None) -> int | None:
    """Return where a tensor's values lie; None if there is none."""
    return None if x is None else x.data_ptr()
