"""The passes over whole maps, each in plain operators or in one of our own kernels.

Shapes: N images, C channels, H and W pixels; vectors are (C,). Maps may be the first channels of a
wider buffer; what comes out is dense, in the memory format of what goes in.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densenet_backbones.dense_block.backends import has_cpp_training, has_triton_training
from densenet_backbones.dense_block.interfaces import is_in_rows
from densenet_backbones.dense_block.native import passes as native_passes
from densenet_backbones.dense_block.norms import Affine, precise

__all__ = ["add_scaled", "masked_sums", "norm_gradient", "scale_shift_relu", "take_back"]


def scale_shift_relu(x: Tensor, affine: Affine) -> Tensor:
    """``relu(scale * x + shift)``: norm and activation once the statistics are known.

    Args:
        x: (N, C, H, W).
        affine: The norm, in at least single precision.

    Returns:
        (N, C, H, W) in the precision of ``x``.
    """
    if passes := _passes([x], vectors=[affine.scale, affine.shift]):
        return passes.scale_shift_relu(x, affine.scale, affine.shift)
    return _scaled_sum(affine.shift, x, affine.scale).relu_().to(x.dtype)


def masked_sums(
    gradient: Tensor,
    active: Tensor,
    x: Tensor,
    into: tuple[Tensor, Tensor] | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The activation's gradient, and the two sums that a norm's gradient is made of.

    Args:
        gradient: Of the activation's output, (N, C, H, W).
        active: That output.
        x: What was normed, (N, C, H, W).
        into: A map, (N, C, H, W), and a scale, (C,): the activation's gradient is not returned, but
            multiplied by the scale and added to the map.
        overwrite: Whether ``gradient`` is needed no longer, so that its memory may be used.

    Returns:
        The gradient where the activation is positive and 0 elsewhere, (N, C, H, W), or None, in at
        least its own precision; its sum, (C,), and its sum weighted by ``x``, (C,), in at least
        single precision; or sums over parts of the map, (R, C) each, which `NormForm.run_back`
        adds up.
    """
    maps, vectors = ([x], []) if into is None else ([x, into[0]], [into[1]])
    if passes := _passes(maps, [gradient, active], vectors):
        return passes.masked_sums(gradient, active, x, into, overwrite)
    masked = precise(torch.ops.aten.threshold_backward(gradient, active, 0))
    sums = masked.sum((0, 2, 3)), (masked * x).sum((0, 2, 3))
    if into is None:
        return masked, *sums
    add_scaled(into[0], masked, into[1])
    return None, *sums


def norm_gradient(
    masked: Tensor, x: Tensor, scale: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    """``scale * masked - constant - slope * x``, (N, C, H, W), in the precision of ``x``."""
    if passes := _passes([masked, x], vectors=[scale, constant, slope]):
        return passes.affine_difference(masked, x, scale, constant, slope)
    gradient = _scaled_sum(-constant, masked, scale)
    add_scaled(gradient, x, -slope)
    return gradient.to(x.dtype)


def add_scaled(total: Tensor, x: Tensor, scale: Tensor) -> None:
    """Adds ``scale * x`` to ``total``, (N, C, H, W), in place; ``scale`` is (C,)."""
    if passes := _passes([total], [x], [scale]):
        passes.add_scaled(total, x, scale)
    elif _in_one_operator(total):
        total.addcmul_(x, _spread(scale))
    else:
        total.add_(x * _spread(scale))


def take_back(total: Tensor, x: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """``total - constant - slope * x``, (N, C, H, W), in the precision of ``total``.

    What normalising by the statistics of a batch takes from the gradient of what was normed.
    """
    if passes := _passes([total, x], vectors=[constant, slope]):
        return passes.affine_difference(total, x, None, constant, slope)
    rest = precise(total) - _spread(constant)
    add_scaled(rest, precise(x), -slope)
    return rest.to(total.dtype)


def _passes(
    maps: Sequence[Tensor], dense: Sequence[Tensor] = (), vectors: Sequence[Tensor] = ()
) -> Any:
    """The kernels that take these maps, of which ``dense`` must have no gaps; None if none do."""
    if not all(vector.is_contiguous() for vector in vectors):
        return None
    if not all(map(is_in_rows, maps)) or not all(is_in_rows(x, dense=True) for x in dense):
        return None
    if has_cpp_training(*maps, *dense, *vectors):
        return native_passes
    if has_triton_training(*maps, *dense):
        from densenet_backbones.dense_block.triton_training import passes as triton_passes

        return triton_passes
    return None


def _scaled_sum(constant: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """``constant + factor * x``, (N, C, H, W), from vectors and a map, in single precision."""
    if _in_one_operator(x):
        return torch.addcmul(_spread(constant), precise(x), _spread(factor))
    return (precise(x) * _spread(factor)).add_(_spread(constant))


def _in_one_operator(x: Tensor) -> bool:
    # One operator for two is slower on a CPU where a pixel's channels do not lie side by side.
    return x.device.type != "cpu" or x.stride(1) == 1


def _spread(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)
