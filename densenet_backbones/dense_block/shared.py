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
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.drop import drop_path
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from densenet_backbones.dense_block.elementwise import compute_norm_gradient, subtract_linear
from densenet_backbones.dense_block.interfaces import (
    DenseLayerLike,
    find_change,
    find_layer_change,
)
from densenet_backbones.dense_block.norms import Moments, compute_moments, count_values, widen_half
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm, read_unit

__all__ = ["BlockForm", "read_block", "run_shared"]

_T = TypeVar("_T")
_SAVED = PARAMETERS + 2  # a unit's parameters and the statistics it went by


@dataclass(frozen=True)
class _LayerForm:
    """A dense layer in its present mode.

    Attributes:
        units: Norm-ReLU-convolution, once, or twice with a bottleneck.
        start: Channels it reads, C.
        width: New maps it makes, k.
        drop_rate: Probability of a new value to be dropped.
        drop_path_rate: Probability of a sample to go without the new maps.
    """

    units: tuple[UnitForm, ...]
    start: int
    width: int
    drop_rate: float
    drop_path_rate: float

    @property
    def end(self) -> int:
        """Channels of the concatenation with its new maps."""
        return self.start + self.width

    @property
    def bottleneck(self) -> bool:
        """True if there are bottleneck maps between two units."""
        return len(self.units) > 1

    @property
    def saved(self) -> int:
        """Number of tensors kept: parameters and statistics of each unit, bottleneck, two drops."""
        return _SAVED * len(self.units) + 3


@dataclass(frozen=True)
class BlockForm:
    """A dense block in its present mode.

    Attributes:
        layers: Its layers, in order.
        group: Processes whose batches are normed as one; None for this process alone.
        lean: True if bottlenecks are computed again in the backward pass.
    """

    layers: tuple[_LayerForm, ...]
    group: dist.ProcessGroup | None
    lean: bool

    @property
    def channels(self) -> int:
        """Channels of the block's output."""
        return self.layers[-1].end

    @property
    def of_batch(self) -> bool:
        """True if any layer norms its concatenation by the batch's statistics."""
        return any(layer.units[0].norm.of_batch for layer in self.layers)


def read_block(x: Tensor, layers: Sequence[DenseLayerLike], lean: bool) -> BlockForm | str:
    """Return the form of a block in its present mode, or why `run_shared` cannot run it.

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Dense layers in order, at least one.
        lean: Compute bottlenecks again in the backward pass instead of keeping them.

    Returns:
        The form; or the end of a sentence about the block, if a layer or a module in it is not
        known to `find_change`: a subclass, with hooks or parametrizations, an activation other than
        ReLU, a norm other than batch norm (its frozen and synchronized forms included).
    """
    forms = []
    for number, layer in enumerate(layers, start=1):
        form = _read_layer(x, layer)
        if form is None:
            name = f"denselayer{number}"
            change = find_layer_change(cast(nn.Module, layer), name, conv="masked_conv")
            return (
                "with other layers than (frozen, synchronized) batch norm, ReLU and unchanged "
                f"convolutions ({change})"
            )
        forms.append(form)
    norms = [unit.norm for form in forms for unit in form.units if unit.norm.of_batch]
    groups = {id(norm.group): norm.group for norm in norms}
    if len(groups) > 1:
        return "whose norms are synchronized over different processes"
    return BlockForm(tuple(forms), next(iter(groups.values()), None), lean)


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
    return cast(Tensor, _SharedBlock.apply(form, x, *parameters))


def _read_layer(x: Tensor, layer: DenseLayerLike) -> _LayerForm | None:
    if find_change(cast(nn.Module, layer), "layer") is not None:
        return None
    units = [read_unit(x.device, layer.norm1, layer.relu1, layer.conv1)]
    last = layer.conv1
    if layer.bottleneck:
        units.append(read_unit(x.device, layer.norm2, layer.relu2, layer.conv2))
        last = layer.conv2
    known = tuple(unit for unit in units if unit is not None)
    if len(known) < len(units):
        return None
    rates = (layer.drop_rate, layer.drop_path_rate) if layer.training else (0.0, 0.0)
    return _LayerForm(known, layer.conv1.in_channels, last.out_channels, *rates)


# ------------------------------------------------------------------------------ the function


class _SharedBlock(torch.autograd.Function):
    """The block; keeps its output, parameters, statistics, drops, and bottlenecks unless lean."""

    @staticmethod
    def forward(ctx: Any, form: BlockForm, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """Run the block, (N, C, H, W) to (N, C + sum of k, H, W)."""
        ctx.form, ctx.count = form, count_values(x, form.group)
        # Our own kernels start on the current device. In a backward pass that is the maps' own.
        with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
            out, saved_by_layer = _run_forward(form, x, parameters, ctx.count)
        ctx.save_for_backward(out, *(tensor for layer in saved_by_layer for tensor in layer))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        with torch.autocast(gradient.device.type, enabled=False):
            gradients = _run_backward(
                ctx.form, ctx.saved_tensors, ctx.count, ctx.needs_input_grad[1:], gradient
            )
        return None, *gradients


def _run_forward(
    form: BlockForm, x: Tensor, parameters: Sequence[Tensor | None], count: float
) -> tuple[Tensor, list[list[Tensor | None]]]:
    """Return the output, and what each layer's backward pass needs besides: `_LayerForm.saved`."""
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


def _drop(maps: Tensor, layer: _LayerForm) -> tuple[Tensor, Tensor | None, Tensor | None]:
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
    gradient: Tensor, layer: _LayerForm, stays: Tensor | None, factor: Tensor | None
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
        saved_by_unit = _split(of_units, [_SAVED] * len(layer.units))
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
