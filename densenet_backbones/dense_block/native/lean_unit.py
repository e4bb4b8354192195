"""Norm, ReLU and what follows them as one differentiable function in the C++ kernels.

It is what ``lean.py`` computes step by step: which units and pools the kernels know is asked here.
Maps are float32, or bfloat16 under autocast, of which products are made as well.

Shapes: N images, C channels in, O channels out, H and W pixels.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block.backends import has_cpp_training
from densenet_backbones.dense_block.derivatives import first_only
from densenet_backbones.dense_block.interfaces import find_change, is_in_rows
from densenet_backbones.dense_block.native import convolution
from densenet_backbones.dense_block.native.trained_norms import (
    TrainedNorm,
    describe_norm,
    get_running,
    is_dense,
    is_known_norm,
    list_vectors,
)
from densenet_backbones.dense_block.native.training_unit import (
    TrainedUnit,
    UnitResult,
    run_backward,
    run_forward,
    run_pool_backward,
    run_pool_forward,
)
from densenet_backbones.dense_block.units import UnitForm

__all__ = ["is_known", "is_known_pool", "run_pool", "run_unit"]

_MOST_PLACES = 256  # in a window, which a byte tells apart


def is_known(form: UnitForm, x: Tensor, pool: nn.Module | None) -> bool:
    """Return True if the kernels run a unit and the pool behind it.

    Args:
        form: The unit in its present mode.
        x: Its input, (N, C, H, W).
        pool: What pools its output, if anything does.
    """
    # What runs in rows gives rows; a map that is both, as of one pixel, stays what it was.
    if not is_in_rows(x) or x.is_contiguous() or not is_known_norm(form.norm):
        return False
    conv, parameters = form.conv, form.parameters()
    if conv is not None:
        if not form.computes_in(x.dtype):
            return False
        known = convolution.is_known(conv) and conv.kernel_size == (1, 1)
        if not known or not is_dense(cast(Tensor, parameters[2])):
            return False
    if pool is not None and not _is_known_pool(pool, behind_conv=conv is not None):
        return False
    vectors = [p for i, p in enumerate(parameters) if p is not None and i != 2]
    vectors += list_vectors(form.norm)
    kernels = [] if conv is None else [cast(Tensor, parameters[2])]
    if not all(v.is_contiguous() for v in vectors):
        return False
    return has_cpp_training(x, *vectors, *kernels, halves=True)


def _is_known_pool(pool: nn.Module, behind_conv: bool) -> bool:
    if find_change(pool, "pool") is not None:
        return False
    if isinstance(pool, nn.AvgPool2d):
        # Only means of what is convolved, as they can run before it.
        whole = not pool.ceil_mode and pool.divisor_override is None
        sizes = (pool.kernel_size, pool.stride, pool.padding)
        return behind_conv and whole and [*map(_get_side, sizes)] == [2, 2, 0]
    return not behind_conv and _has_known_window(pool)


def _has_known_window(pool: nn.Module) -> bool:
    assert isinstance(pool, nn.MaxPool2d)
    sides = [_get_side(size) for size in (pool.kernel_size, pool.stride, pool.padding)]
    plain = not pool.return_indices and _get_side(pool.dilation) == 1
    return plain and None not in sides and sides[0] ** 2 <= _MOST_PLACES


def is_known_pool(x: Tensor, pool: nn.MaxPool2d) -> bool:
    """Return True if the kernels run a max pool, unchanged, of maps, (N, C, H, W), by itself."""
    in_rows = is_in_rows(x) and not x.is_contiguous()
    return in_rows and _has_known_window(pool) and has_cpp_training(x, halves=True)


def _get_side(size: Any) -> Any:
    """Return the side of a square size; None of another."""
    if not isinstance(size, tuple):
        return size
    return size[0] if size[0] == size[1] else None


def run_unit(form: UnitForm, x: Tensor, pool: nn.Module | None) -> Tensor:
    """Run a unit that `is_known`, (N, C, H, W) to (N, O, H', W'), channels last."""
    return cast(Tensor, _CompiledUnit.apply(form, pool, x, *form.parameters()))


def run_pool(x: Tensor, pool: nn.MaxPool2d) -> Tensor:
    """Run a max pool that `is_known_pool`, (N, C, H, W) to (N, C, H', W'), channels last."""
    return cast(Tensor, _CompiledPool.apply(x, pool))


class _CompiledUnit(torch.autograd.Function):
    """The unit; keeps its input, parameters, statistics, and a byte for each maximum."""

    @staticmethod
    def forward(
        ctx: Any, form: UnitForm, pool: Any, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        """Run the unit."""
        norm = form.norm
        result = run_forward(x, TrainedUnit(describe_norm(norm), parameters, pool))
        constants = () if norm.of_batch else get_running(norm)
        ctx.save_for_backward(x, *result[1:], *parameters, *constants)
        ctx.eps, ctx.pool, ctx.count = norm.module.eps, pool, len(parameters)
        return result.out

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        x, moments, places, *rest = ctx.saved_tensors
        parameters, constants = tuple(rest[: ctx.count]), tuple(rest[ctx.count :])
        unit = TrainedUnit(TrainedNorm(ctx.eps, constants or None), parameters, ctx.pool)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        result = UnitResult(gradient, moments, places)
        needs: Sequence[bool] = ctx.needs_input_grad[2:]
        return None, None, *run_backward(gradient, x, unit, result, needs)


class _CompiledPool(torch.autograd.Function):
    """A max pool; keeps a byte for each maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        """Run the pool."""
        out, places = run_pool_forward(x, pool)
        ctx.save_for_backward(places)
        ctx.pool, ctx.size = pool, x.shape[2:]
        return out

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the input."""
        (places,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return run_pool_backward(gradient, places, ctx.pool, ctx.size), None
