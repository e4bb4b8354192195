"""What stands between dense blocks, run so that it keeps little for the backward pass.

A norm, its ReLU and a convolution behind it keep the norm's input alone, which is the block's own
output; pools keep what they need to know of their input instead of the input.

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from densenet_backbones.dense_block.elementwise import norm_gradient
from densenet_backbones.dense_block.interfaces import has_hooks
from densenet_backbones.dense_block.norms import Moments, batch_moments, value_count
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm, read_unit

__all__ = ["lean_steps", "run_lean"]

Step = Callable[[Tensor], Tensor]


def lean_steps(
    stages: Sequence[tuple[str, nn.Module]], wanted: Collection[str]
) -> Iterator[tuple[str, Step]]:
    """Steps that compute what named stages do one after the other, and keep less.

    A norm is joined with the ReLU behind it, and both with a convolution behind them. Whatever is
    not known here, or carries hooks, is a step of its own.

    Args:
        stages: Names and modules, in the order they run.
        wanted: Names of stages whose results are asked for, so that none is skipped.

    Yields:
        The name of the last stage of a step, and the step.
    """
    rest = list(stages)
    while rest:
        count = _joined(rest, wanted)
        name, last = rest[count - 1]
        if count > 1:
            yield name, partial(run_lean, modules=[module for _, module in rest[:count]])
        elif _is_chain(last):
            yield name, partial(_run_steps, stages=list(last.named_children()))
        else:
            yield name, partial(_run_pool, pool=last)
        del rest[:count]


def _joined(stages: Sequence[tuple[str, nn.Module]], wanted: Collection[str]) -> int:
    """How many of the first stages one step runs."""
    if len(stages) < 2 or stages[0][0] in wanted or not isinstance(stages[1][1], nn.ReLU):
        return 1
    if len(stages) < 3 or stages[1][0] in wanted or not isinstance(stages[2][1], nn.Conv2d):
        return 2
    return 3


def _is_chain(module: nn.Module) -> bool:
    own = type(module).forward is nn.Sequential.forward
    return isinstance(module, nn.Sequential) and own and _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling ``module`` is what its class says, with no hooks around it."""
    return not has_hooks(module) and "forward" not in vars(module)


def _run_steps(x: Tensor, stages: Sequence[tuple[str, nn.Module]]) -> Tensor:
    for _, step in lean_steps(stages, ()):
        x = step(x)
    return x


def run_lean(x: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Runs norm, ReLU and perhaps a convolution as one function that keeps its input.

    Modules that it does not know, or that carry hooks, are called one after the other.

    Args:
        x: (N, C, H, W).
        modules: Two or three.
    """
    form = read_unit(x.device, *modules)
    if form is None or x.numel() <= x.shape[1]:
        for module in modules:
            x = module(x)
        return x
    return _Unit.apply(form, x, *form.parameters())


class _Unit(torch.autograd.Function):
    """Norm-ReLU or norm-ReLU-convolution; keeps its input, parameters and statistics."""

    @staticmethod
    def forward(ctx: Any, form: UnitForm, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        group = form.norm.group
        ctx.form, ctx.count = form, value_count(x, group)
        with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
            moments = batch_moments(x, group) if form.norm.of_batch else form.norm.running()
            out = form.run(x, parameters, moments, ctx.count)
        ctx.save_for_backward(x, *parameters, moments.mean, moments.var)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the parameters."""
        form, (x, *saved) = ctx.form, ctx.saved_tensors
        parameters, moments = tuple(saved[:PARAMETERS]), Moments(*saved[PARAMETERS:])
        with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
            found = form.run_back(
                gradient, x, parameters, moments, ctx.count, ctx.needs_input_grad[2:]
            )
            if form.norm.group is not None:
                dist.all_reduce(found.linear, group=form.norm.group)
            own = None
            if ctx.needs_input_grad[1]:
                assert found.masked is not None
                own = norm_gradient(found.masked, x, found.scale, *found.linear)
        return None, own, *found.parameters


# ------------------------------------------------------------------------------ pools

_LARGEST_WINDOW = 256  # positions in it that a byte can tell apart


def _run_pool(x: Tensor, pool: nn.Module) -> Tensor:
    """``pool(x)``, (N, C, H, W) to (N, C, H', W'), keeping no map but a byte for each maximum."""
    if _is_plain(pool):
        if type(pool) is nn.AvgPool2d:
            return cast(Tensor, _AvgPool.apply(x, pool))
        if type(pool) is nn.MaxPool2d and _has_small_window(pool):
            return cast(Tensor, _MaxPool.apply(x, pool))
    return cast(Tensor, pool(x))


def _has_small_window(pool: nn.MaxPool2d) -> bool:
    height, width = _pair(pool.kernel_size)
    plain = not pool.return_indices and _pair(pool.dilation) == (1, 1)
    return plain and height * width <= _LARGEST_WINDOW


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _empty_like_input(ctx: Any, gradient: Tensor) -> Tensor:
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
        """(N, C, H, W) to (N, C, H', W')."""
        _note_input(ctx, x)
        ctx.arguments = (
            _pair(pool.kernel_size),
            _pair(pool.stride),
            _pair(pool.padding),
            pool.ceil_mode,
            pool.count_include_pad,
            pool.divisor_override,
        )
        return F.avg_pool2d(x, *ctx.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient of the input."""
        empty = _empty_like_input(ctx, gradient)
        found = torch.ops.aten.avg_pool2d_backward(gradient, empty, *ctx.arguments)
        return found.to(ctx.dtype), None


class _MaxPool(torch.autograd.Function):
    """A max pool; keeps where in its window each maximum is, in a byte instead of eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        _note_input(ctx, x)
        ctx.arguments = (_pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding), (1, 1))
        ctx.arguments += (pool.ceil_mode,)
        out, indices = torch.ops.aten.max_pool2d_with_indices(x, *ctx.arguments)
        width, (_, window) = x.shape[3], ctx.arguments[0]
        rows = indices.div(width, rounding_mode="floor")
        indices -= rows.mul_(width - window)
        indices -= _corners(ctx, indices, window)
        ctx.save_for_backward(indices.to(torch.uint8))
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient of the input."""
        (places,) = ctx.saved_tensors
        width, (_, window) = ctx.shape[3], ctx.arguments[0]
        indices = places.div(window, rounding_mode="floor").long().mul_(width - window)
        indices += places
        indices += _corners(ctx, indices, width)
        empty = _empty_like_input(ctx, gradient)
        found = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, empty, *ctx.arguments, indices
        )
        return found.to(ctx.dtype), None


def _corners(ctx: Any, indices: Tensor, width: int) -> Tensor:
    """Index of each window's first position in rows of ``width`` values, (H', W')."""
    (stride_y, stride_x), (pad_y, pad_x) = ctx.arguments[1:3]
    height, length = indices.shape[2:]
    y = torch.arange(height, device=indices.device) * stride_y - pad_y
    x = torch.arange(length, device=indices.device) * stride_x - pad_x
    return y[:, None] * width + x
