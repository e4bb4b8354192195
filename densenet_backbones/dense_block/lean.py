"""Memory-efficient norm-ReLU-convolution, norm-ReLU and pools for stems and transitions.

In the memory modes with one buffer, what stands between dense blocks keeps little for the backward
pass too. A norm, its ReLU and a convolution behind it keep the norm's input alone, which is the
block's own output; pools keep sizes, and a byte for each maximum, instead of their input. The idea
is that of Pleiss et al. (1707.06990), applied to a net's other stages. Where the C++ kernels know
all of it, the pool behind included, it is one call each way: see `native.lean_unit`.

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block.derivatives import first_only
from densenet_backbones.dense_block.elementwise import compute_norm_gradient
from densenet_backbones.dense_block.interfaces import (
    calls_children_in_turn,
    find_change,
    has_hooks,
    list_children,
)
from densenet_backbones.dense_block.native import lean_unit
from densenet_backbones.dense_block.norms import Moments, compute_moments, count_values
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm, leave_autocast, read_unit

__all__ = ["join_lean_steps", "run_lean"]

Step = Callable[[Tensor], Tensor]


def join_lean_steps(
    stages: Sequence[tuple[str, nn.Module]], wanted: Collection[str]
) -> Iterator[tuple[str, Step]]:
    """Join named stages into steps that compute what these do one after the other, and keep less.

    A norm is joined with the ReLU behind it, both with a convolution behind them, and all of them
    with a pool behind these. Whatever is not known here, or carries hooks, is a step of its own.

    Args:
        stages: Names and modules, in the order they run.
        wanted: Names of stages whose results are asked for, so that none is skipped.

    Yields:
        The name of the last stage of a step, and the step.
    """
    rest = list(stages)
    while rest:
        if len(rest) > 1 and _is_transition(*rest[0], wanted) and _is_pool(rest[1][1]):
            parts, count = [*list_children(rest[0][1]), rest[1]], 2
            yield rest[1][0], partial(_run_steps, stages=parts)
        else:
            count = _count_joined(rest, wanted)
            yield rest[count - 1][0], _make_step([module for _, module in rest[:count]])
        del rest[:count]


def _make_step(modules: Sequence[nn.Module]) -> Step:
    first = modules[0]
    if len(modules) > 1:
        return partial(run_lean, modules=modules)
    if calls_children_in_turn(first) and not has_hooks(first):
        return partial(_run_steps, stages=list_children(first))
    return partial(_run_pool, pool=first)


def _is_transition(name: str, stage: nn.Module, wanted: Collection[str]) -> bool:
    """Return True if a stage is its parts in turn, and nothing of it is asked for."""
    whole = not any(f"{point}.".startswith(f"{name}.") for point in wanted)
    return whole and calls_children_in_turn(stage) and not has_hooks(stage)


def _count_joined(stages: Sequence[tuple[str, nn.Module]], wanted: Collection[str]) -> int:
    """Count the first stages that one step runs."""
    # Norm and ReLU, unless the norm's own result is asked for.
    if len(stages) < 2 or stages[0][0] in wanted or not isinstance(stages[1][1], nn.ReLU):
        return 1
    # Then what reads their result alone: the convolution, and the pool.
    count = 2
    for follows in (_is_conv, _is_pool):
        if count < len(stages) and stages[count - 1][0] not in wanted:
            count += follows(stages[count][1])
    return count


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _is_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.AvgPool2d | nn.MaxPool2d)


def _run_steps(x: Tensor, stages: Sequence[tuple[str, nn.Module]]) -> Tensor:
    for _, step in join_lean_steps(stages, ()):
        x = step(x)
    return x


def run_lean(x: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Run norm, ReLU and perhaps a convolution as one function that keeps its input.

    Modules that it does not know, or that carry hooks, are called one after the other.

    Args:
        x: (N, C, H, W).
        modules: A norm, an activation and perhaps a convolution; then perhaps a pool.

    Returns:
        What the modules return, (N, O, H', W').
    """
    pool = modules[-1] if _is_pool(modules[-1]) else None
    parts = modules if pool is None else modules[:-1]
    form = read_unit(x.device, *parts)
    if form is None or x.numel() <= x.shape[1] or form.in_channels != x.shape[1]:
        for module in parts:
            x = module(x)
    elif lean_unit.is_known(form, x, pool):
        return lean_unit.run_unit(form, x, pool)
    elif pool is not None:
        x = run_lean(x, parts)
    else:
        return cast(Tensor, _Unit.apply(form, x, *form.parameters()))
    return x if pool is None else _run_pool(x, pool)


class _Unit(torch.autograd.Function):
    """Norm-ReLU or norm-ReLU-convolution; keeps its input, parameters and statistics."""

    @staticmethod
    def forward(ctx: Any, form: UnitForm, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """Run the unit, (N, C, H, W) to (N, O, H', W')."""
        group = form.norm.group
        ctx.form, ctx.count = form, count_values(x, group)
        with leave_autocast(x.device), torch.cuda.device_of(x):
            moments = compute_moments(x, group) if form.norm.of_batch else form.norm.get_running()
            out = form.forward(x, parameters, moments, ctx.count)
        ctx.save_for_backward(x, *parameters, moments.mean, moments.var)
        return out

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        form, (x, *saved) = ctx.form, ctx.saved_tensors
        # Norm and ReLU are made again from the input, by the statistics that were kept.
        parameters, moments = tuple(saved[:PARAMETERS]), Moments(*saved[PARAMETERS:])
        with leave_autocast(x.device), torch.cuda.device_of(x):
            unit = form.backward(
                gradient, x, parameters, moments, ctx.count, ctx.needs_input_grad[2:]
            )
            # Synchronized statistics are of all processes' maps, and so is what they take.
            if form.norm.group is not None:
                dist.all_reduce(unit.linear, group=form.norm.group)
            of_input = None
            if ctx.needs_input_grad[1]:
                assert unit.masked is not None
                of_input = compute_norm_gradient(unit.masked, x, unit.scale, *unit.linear)
        return None, of_input, *unit.parameters


# ------------------------------------------------------------------------------ pools

_LARGEST_WINDOW = 256  # positions in it that a byte can tell apart


def _run_pool(x: Tensor, pool: nn.Module) -> Tensor:
    """Run ``pool(x)``, (N, C, H, W) to (N, C, H', W'), keeping a byte for each maximum at most."""
    if find_change(pool, "pool") is None:
        if isinstance(pool, nn.AvgPool2d):
            return cast(Tensor, _AvgPool.apply(x, pool))
        if isinstance(pool, nn.MaxPool2d) and lean_unit.is_known_pool(x, pool):
            return lean_unit.run_pool(x, pool)
        if isinstance(pool, nn.MaxPool2d) and _has_small_window(pool):
            return cast(Tensor, _MaxPool.apply(x, pool))
    return cast(Tensor, pool(x))


def _has_small_window(pool: nn.MaxPool2d) -> bool:
    height, width = _make_pair(pool.kernel_size)
    plain = not pool.return_indices and _make_pair(pool.dilation) == (1, 1)
    return plain and height * width <= _LARGEST_WINDOW


def _make_pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _allocate_like_input(ctx: Any, gradient: Tensor) -> Tensor:
    # The kernels of backward passes ask for their input, of which they read the sizes.
    empty = gradient.new_empty(ctx.shape)
    return empty.contiguous(memory_format=ctx.memory_format)


def _note_input(ctx: Any, x: Tensor) -> None:
    rows = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    ctx.memory_format = torch.channels_last if rows else torch.contiguous_format
    ctx.shape, ctx.dtype = x.shape, x.dtype


class _AvgPool(torch.autograd.Function):
    """An average pool; its gradient depends on sizes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.AvgPool2d) -> Tensor:
        """Pool, (N, C, H, W) to (N, C, H', W')."""
        _note_input(ctx, x)
        ctx.arguments = (
            _make_pair(pool.kernel_size),
            _make_pair(pool.stride),
            _make_pair(pool.padding),
            pool.ceil_mode,
            pool.count_include_pad,
            pool.divisor_override,
        )
        return F.avg_pool2d(x, *ctx.arguments)

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the input."""
        empty = _allocate_like_input(ctx, gradient)
        of_input = torch.ops.aten.avg_pool2d_backward(gradient, empty, *ctx.arguments)
        return of_input.to(ctx.dtype), None


class _MaxPool(torch.autograd.Function):
    """A max pool; keeps where in its window each maximum is, in a byte instead of eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        """Pool, (N, C, H, W) to (N, C, H', W')."""
        _note_input(ctx, x)
        ctx.arguments = (
            _make_pair(pool.kernel_size),
            _make_pair(pool.stride),
            _make_pair(pool.padding),
            (1, 1),
        )
        ctx.arguments += (pool.ceil_mode,)
        out, indices = torch.ops.aten.max_pool2d_with_indices(x, *ctx.arguments)
        # From an index in the map, y * W + x, to one in the window: rows become as long as the
        # window, then the window's first position is taken off.
        width, (_, window) = x.shape[3], ctx.arguments[0]
        rows = indices.div(width, rounding_mode="floor")
        indices -= rows.mul_(width - window)
        indices -= _compute_corners(ctx, indices, window)
        ctx.save_for_backward(indices.to(torch.uint8))
        return cast(Tensor, out)

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the input."""
        # The way back: rows of the window become W apart again, and its first position is added.
        (places,) = ctx.saved_tensors
        width, (_, window) = ctx.shape[3], ctx.arguments[0]
        indices = places.div(window, rounding_mode="floor").long().mul_(width - window)
        indices += places
        indices += _compute_corners(ctx, indices, width)
        empty = _allocate_like_input(ctx, gradient)
        of_input = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, empty, *ctx.arguments, indices
        )
        return of_input.to(ctx.dtype), None


def _compute_corners(ctx: Any, indices: Tensor, width: int) -> Tensor:
    """Return the index of each window's first position in rows of ``width`` values, (H', W')."""
    (stride_y, stride_x), (pad_y, pad_x) = ctx.arguments[1:3]
    height, length = indices.shape[2:]
    y = torch.arange(height, device=indices.device) * stride_y - pad_y
    x = torch.arange(length, device=indices.device) * stride_x - pad_x
    corners: Tensor = y[:, None] * width + x
    return corners
