"""A dense block as one differentiable function over one shared buffer.

The plain execution keeps, for each layer, its concatenation normed and activated: memory that
grows with the square of the depth. Here every layer reads the first channels of one buffer, which
becomes the block's output, and writes its new maps behind them. A batch's statistics belong to a
map, not to its reader, so they are computed once, when it is made. What scale, shift and ReLU make
of the buffer is computed again in the backward pass, whose gradients meet in one buffer too.

The idea is that of Pleiss et al., "Memory-Efficient Implementation of DenseNets" (1707.06990), and
of their efficient_densenet_pytorch, which share the buffers of concatenation and norm, and compute
each norm again, statistics included. A dense block is that of Huang et al. (1608.06993, section 3).

With g the gradient of a batch norm's output, of n values a channel, that of its input is (Ioffe and
Szegedy, 1502.03167, section 3)
``scale * (g - sum(g) / n - x_hat * sum(g * x_hat) / n)``: the first term, and a linear function of
the input. So the linear functions of all layers that read a channel are added up as two numbers,
and taken from its gradient once, when all of them are known.

Shapes: N images, C channels, H and W pixels, k a layer's new maps. Vectors are (C,).
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.drop import drop_path
from torch import Tensor

from densenet_backbones.dense_block.block_form import SAVED, BlockForm, LayerForm, read_block
from densenet_backbones.dense_block.derivatives import first_only
from densenet_backbones.dense_block.elementwise import compute_norm_gradient, subtract_linear
from densenet_backbones.dense_block.native import shared_block
from densenet_backbones.dense_block.norms import Moments, compute_moments, count_values, widen_half
from densenet_backbones.dense_block.units import PARAMETERS, leave_autocast

__all__ = ["BlockForm", "read_block", "run_shared"]

_T = TypeVar("_T")


@torch.compiler.disable  # type: ignore[untyped-decorator] # it decides itself what it keeps
def run_shared(x: Tensor, form: BlockForm) -> Tensor:
    """Run a dense block as one function that keeps its output instead of every concatenation.

    What is kept, for L layers: the output, whose first channels the layers read, and the bottleneck
    maps, both linear in L; of a lean form the output alone. Norms, ReLUs and dropped values are
    computed again, of a lean form the bottlenecks too.

    Args:
        x: Input of the block, (N, C, H, W), of more than one value a channel.
        form: The block as `read_block` returns it.

    Returns:
        The concatenation of the input and all new maps, as `run_plain` returns it.
    """
    units = (unit for layer in form.layers for unit in layer.units)
    parameters = [parameter for unit in units for parameter in unit.parameters()]
    if shared_block.is_known(form, x, parameters):
        return shared_block.run_block(form, x, parameters)
    return cast(Tensor, _SharedBlock.apply(form, x, *parameters))


# ------------------------------------------------------------------------------ the function


class _SharedBlock(torch.autograd.Function):
    """The block; keeps its output, parameters, statistics, drops, and bottlenecks unless lean."""

    @staticmethod
    def forward(ctx: Any, form: BlockForm, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """Run the block, (N, C, H, W) to (N, C + sum of k, H, W)."""
        ctx.form, ctx.count = form, count_values(x, form.group)
        # Our own kernels start on the current device. In a backward pass that is the maps' own.
        with leave_autocast(x.device), torch.cuda.device_of(x):
            out, saved_by_layer = _run_forward(form, x, parameters, ctx.count)
        ctx.save_for_backward(out, *(tensor for layer in saved_by_layer for tensor in layer))
        return out

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        with leave_autocast(gradient.device):
            gradients = _run_backward(
                ctx.form, ctx.saved_tensors, ctx.count, ctx.needs_input_grad[1:], gradient
            )
        return None, *gradients


def _run_forward(
    form: BlockForm, x: Tensor, parameters: Sequence[Tensor | None], count: float
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """Return the output, and what each layer's backward pass needs besides: `LayerForm.saved`."""
    out = _allocate_buffer(x, form.channels, _choose_dtype(form, x))
    mean, var = widen_half(out.new_empty(2, out.shape[1]))
    read = form.layers[-1].start  # the last layer's maps are read by none here

    def write(maps: Tensor, start: int) -> None:
        """Put maps into the buffer; their statistics are computed here, once for all readers."""
        end = start + maps.shape[1]
        out[:, start:end].copy_(maps)
        if form.of_batch and start < read:
            moments = compute_moments(_make_dense(maps), form.group)
            mean[start:end], var[start:end] = moments.mean, moments.var

    write(x, 0)
    saved_by_layer = []
    rest = iter(parameters)
    for layer in form.layers:
        saved: list[Tensor | None] = []
        maps = squeezed = out[:, : layer.start]
        for unit in layer.units:
            own = tuple(islice(rest, PARAMETERS))
            # Statistics: running ones, those of the buffer's maps, or of a bottleneck just made.
            if not unit.norm.of_batch:
                moments = unit.norm.get_running()
            elif unit is layer.units[0]:
                moments = Moments(mean[: layer.start], var[: layer.start])
            else:
                moments = compute_moments(maps, form.group)
            squeezed, maps = maps, unit.forward(maps, own, moments, count)
            saved += (*own, moments.mean, moments.var)
        maps, *drops = _drop(maps, layer)
        write(maps, layer.start)
        bottleneck = squeezed if layer.bottleneck and not form.lean else None
        saved_by_layer.append([*saved, bottleneck, *drops])
    return out, saved_by_layer


def _drop(maps: Tensor, layer: LayerForm) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Drop new maps; return them, a mask of the values that stay, and each sample's factor.

    Random numbers are drawn as the plain execution draws them, so that one seed means one result.
    """
    stays = factor = None
    if layer.drop_rate > 0:  # dropout
        noise = F.dropout(torch.ones_like(maps), layer.drop_rate, training=True)
        maps, stays = maps * noise, noise != 0
    if layer.drop_path_rate > 0:  # stochastic depth
        factor = drop_path(maps.new_ones(len(maps), 1, 1, 1), layer.drop_path_rate, training=True)
        maps = maps * factor
    return maps, stays, factor


def _drop_backward(
    gradient: Tensor, layer: LayerForm, stays: Tensor | None, factor: Tensor | None
) -> Tensor:
    """Return the gradient of new maps before `_drop`."""
    if factor is not None:
        gradient = gradient * factor
    if stays is not None:
        gradient = (gradient * stays).div_(1 - layer.drop_rate)
    return gradient


def _run_backward(
    form: BlockForm,
    saved: Sequence[Tensor | None],
    count: float,
    needs: Sequence[bool],
    gradient: Tensor,
) -> list[Tensor | None]:
    """Return gradients of the input and of all parameters, in the order of `_run_forward`'s own.

    Layers go backward from the last one. All of them add to one buffer of gradients, ``total``, and
    the linear functions that their norms' statistics take from it to two vectors, ``linear``.
    """
    rest = iter(saved)
    out = next(rest)
    assert out is not None
    saved_by_layer = [list(islice(rest, layer.saved)) for layer in form.layers]
    total = _allocate_buffer(out, out.shape[1], out.dtype).copy_(gradient)
    linear = widen_half(out.new_zeros(2, out.shape[1]))

    def finish_gradient(start: int, end: int) -> Tensor:
        """Return the gradient of channels, once all layers that read them have added theirs."""
        if not form.of_batch:
            return _make_dense(total[:, start:end])
        coefficients = _sum_over_group(linear[:, start:end], form.group)
        return subtract_linear(total[:, start:end], out[:, start:end], *coefficients)

    needs_by_layer = _split(needs[1:], [PARAMETERS * len(layer.units) for layer in form.layers])
    gradients: list[Tensor | None] = []
    for layer, own, needed in zip(
        reversed(form.layers), reversed(saved_by_layer), reversed(needs_by_layer), strict=True
    ):
        *of_units, squeezed, stays, factor = own
        maps = out[:, : layer.start]
        saved_by_unit = _split(of_units, [SAVED] * len(layer.units))
        # The new maps' gradient: later layers, which read them, have all been passed.
        new = _drop_backward(finish_gradient(layer.start, layer.end), layer, stays, factor)
        last_gradients: tuple[Tensor | None, ...] = ()
        active = None
        if layer.bottleneck:
            first, second = layer.units
            # A lean block makes the bottleneck again, and on the way the normed concatenation.
            if squeezed is None:
                squeezed, active = first.recompute(maps, *_read_saved(saved_by_unit[0]))
            # Back through the 3x3 to the bottleneck, which no other layer reads: its gradient is
            # finished at once.
            step = second.backward(
                *(new, squeezed, *_read_saved(saved_by_unit[1]), count, needed[PARAMETERS:])
            )
            coefficients = _sum_over_group(
                step.linear, form.group if second.norm.of_batch else None
            )
            assert step.masked is not None
            new = compute_norm_gradient(step.masked, squeezed, step.scale, *coefficients)
            last_gradients = step.parameters
        # Back through the first unit, into the gradients of all maps that the layer reads.
        step = layer.units[0].backward(
            *(new, maps, *_read_saved(saved_by_unit[0]), count, needed[:PARAMETERS], active),
            into=total[:, : layer.start],
        )
        linear[:, : layer.start] += step.linear
        gradients = [*step.parameters, *last_gradients, *gradients]
    return [finish_gradient(0, form.layers[0].start) if needs[0] else None, *gradients]


def _read_saved(saved: Sequence[Tensor | None]) -> tuple[tuple[Tensor | None, ...], Moments]:
    """Return a unit's parameters, and the statistics it went by."""
    mean, var = saved[PARAMETERS:]
    assert mean is not None and var is not None
    return tuple(saved[:PARAMETERS]), Moments(mean, var)


def _split(values: Sequence[_T], lengths: Sequence[int]) -> list[tuple[_T, ...]]:
    """Split ``values`` into pieces of these lengths."""
    rest = iter(values)
    return [tuple(islice(rest, length)) for length in lengths]


def _sum_over_group(linear: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the sum over a process group, (2, C)."""
    if group is not None:
        linear = linear.contiguous()
        dist.all_reduce(linear, group=group)
    return linear


# ------------------------------------------------------------------------------ buffers


def _choose_dtype(form: BlockForm, x: Tensor) -> torch.dtype:
    """Return the type of input and new maps, joined: these may be in half precision by autocast."""
    dtype = form.layers[0].units[0].dtype
    return x.dtype if dtype is None else torch.promote_types(x.dtype, dtype)


def _allocate_buffer(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Allocate a map of ``channels`` channels, in the memory format of ``x``."""
    images, _, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return x.new_empty((images, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)
    return x.new_empty((images, channels, height, width), dtype=dtype)


def _make_dense(x: Tensor) -> Tensor:
    """Return ``x`` without gaps, in its own memory format."""
    rows = x.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last if rows else torch.contiguous_format)
