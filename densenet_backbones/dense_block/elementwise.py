"""Passes over whole maps, each in plain operators or in one of our own kernels.

They are the parts of batch norm and ReLU, forward and backward, once statistics are known; one pass
each, as maps are too large for caches and reading them is what takes the time (the reason for which
in-place activated batch norm, Rota Bulo et al., 1712.02616, fuses the two).

Shapes: N images, C channels, H and W pixels; vectors are (C,). Maps may be the first channels of a
wider buffer; what comes out is dense, in the memory format of what goes in.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from densenet_backbones.dense_block.backends import has_cpp_passes, has_triton_training
from densenet_backbones.dense_block.interfaces import is_in_rows
from densenet_backbones.dense_block.native import passes as native_passes
from densenet_backbones.dense_block.norms import Affine, widen_half

__all__ = [
    "add_scaled",
    "compute_norm_gradient",
    "mask_and_sum",
    "scale_shift_relu",
    "subtract_linear",
]


def scale_shift_relu(x: Tensor, affine: Affine) -> Tensor:
    """Compute ``relu(scale * x + shift)``: norm and activation once the statistics are known.

    Args:
        x: (N, C, H, W).
        affine: The norm, in at least single precision.

    Returns:
        (N, C, H, W) in the precision of ``x``.
    """
    if kernels := _find_kernels([x], vectors=[affine.scale, affine.shift]):
        return kernels.scale_shift_relu(x, affine.scale, affine.shift)
    return _compute_scaled_sum(affine.shift, x, affine.scale).relu_().to(x.dtype)


def mask_and_sum(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Mask a gradient by its activation, and sum it up as a norm's gradient needs it.

    Args:
        gradient: Gradient of the activation's output, (N, C, H, W).
        active: The activation's output, (N, C, H, W).
        x: Input of the norm before it, (N, C, H, W).
        into: A map, (N, C, H, W), and a scale, (C,): the masked gradient is not returned, but
            multiplied by the scale and added to the map.
        overwrite: True if ``gradient`` is needed no longer, so that its memory may be used.

    Returns:
        The gradient where the activation is positive and 0 elsewhere, (N, C, H, W), or None, in at
        least its own precision; its sum, (C,), and its sum weighted by ``x``, (C,), in at least
        single precision; or sums over parts of the map, (R, C) each, which
        `NormForm.backward` adds up.
    """
    maps, vectors = ([x], []) if into is None else ([x, into[0]], [into[1]])
    if kernels := _find_kernels(maps, [gradient, active], vectors):
        return kernels.mask_and_sum(gradient, active, x, into, overwrite)
    masked = widen_half(torch.ops.aten.threshold_backward(gradient, active, 0))
    sums = masked.sum((0, 2, 3)), (masked * x).sum((0, 2, 3))
    if into is None:
        return masked, *sums
    add_scaled(into[0], masked, into[1])
    return None, *sums


def compute_norm_gradient(
    masked: Tensor, x: Tensor, scale: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    """Compute ``scale * masked - constant - slope * x``, (N, C, H, W), in the precision of ``x``.

    It is the gradient of a norm's input, if no other reads it; else see `subtract_linear`.
    """
    if kernels := _find_kernels([masked, x], vectors=[scale, constant, slope]):
        return kernels.compute_affine_difference(masked, x, scale, constant, slope)
    gradient = _compute_scaled_sum(-constant, masked, scale)
    add_scaled(gradient, x, -slope)
    return gradient.to(x.dtype)


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Add ``scale * x`` to ``total``, (N, C, H, W), in place; ``scale`` is (C,)."""
    if kernels := _find_kernels([total], [x], [scale]):
        kernels.add_scaled(total, x, scale)
    elif _is_faster_in_one_operator(total):
        total.addcmul_(x, _spread(scale))
    else:
        total.add_(x * _spread(scale))


def subtract_linear(total: Tensor, x: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """Compute ``total - constant - slope * x``, (N, C, H, W), in the precision of ``total``.

    The linear function is what the statistics of a batch take from the gradient of a norm's input.
    """
    if kernels := _find_kernels([total, x], vectors=[constant, slope]):
        return kernels.compute_affine_difference(total, x, None, constant, slope)
    rest = widen_half(total) - _spread(constant)
    add_scaled(rest, widen_half(x), -slope)
    return rest.to(total.dtype)


class _PassKernels(Protocol):
    """Kernels of these passes: `native.passes` and `triton_training.passes`."""

    def scale_shift_relu(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Compute `scale_shift_relu`."""

    def mask_and_sum(
        self,
        gradient: Tensor,
        active: Tensor,
        x: Tensor,
        into: tuple[Tensor, Tensor] | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Compute `mask_and_sum`."""

    def compute_affine_difference(
        self, y: Tensor, x: Tensor, scale: Tensor | None, constant: Tensor, slope: Tensor
    ) -> Tensor:
        """Compute `compute_norm_gradient`, and without a scale `subtract_linear`."""

    def add_scaled(self, total: Tensor, x: Tensor, scale: Tensor) -> None:
        """Compute `add_scaled`."""


def _find_kernels(
    maps: Sequence[Tensor], dense: Sequence[Tensor] = (), vectors: Sequence[Tensor] = ()
) -> _PassKernels | None:
    """Return kernels that take these maps, of which ``dense`` must have no gaps; None without."""
    if not all(vector.is_contiguous() for vector in vectors):
        return None
    if not all(map(is_in_rows, maps)) or not all(is_in_rows(x, dense=True) for x in dense):
        return None
    if has_cpp_passes([*maps, *dense], vectors):
        return native_passes
    if has_triton_training(*maps, *dense):
        from densenet_backbones.dense_block.triton_training import passes as triton_passes

        return triton_passes
    return None


def _compute_scaled_sum(constant: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Compute ``constant + factor * x``, (N, C, H, W), in single precision; vectors and a map."""
    if _is_faster_in_one_operator(x):
        return torch.addcmul(_spread(constant), widen_half(x), _spread(factor))
    return (widen_half(x) * _spread(factor)).add_(_spread(constant))


def _is_faster_in_one_operator(x: Tensor) -> bool:
    # One operator for two is slower on a CPU where a pixel's channels do not lie side by side.
    return x.device.type != "cpu" or x.stride(1) == 1


def _spread(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)
