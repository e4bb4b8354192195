"""The function of ``shared.py`` in the C++ kernels: a whole block in one call each way.

Maps and their gradients are float32, or bfloat16 under autocast, of which products are made as
well; sums and parameters are float32 in either case.

Its plain form runs a block that these kernels do not have: in another precision or layout, with
dropped paths, synchronized norms, a biased 1x1, or other convolutions than a 3x3, perhaps behind a
1x1.

Shapes: N images, C channels, H and W pixels, k a layer's new maps.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.dense_block.backends import has_cpp_training
from densenet_backbones.dense_block.block_form import BlockForm, LayerForm
from densenet_backbones.dense_block.derivatives import first_only
from densenet_backbones.dense_block.interfaces import allocate_channels_last, is_in_rows
from densenet_backbones.dense_block.native import convolution
from densenet_backbones.dense_block.native.trained_norms import (
    TrainedNorm,
    describe_norm,
    get_running,
    is_dense,
    is_known_norm,
    list_vectors,
)
from densenet_backbones.dense_block.native.training_block import (
    BlockResult,
    TrainedLayer,
    TrainedUnit,
    run_backward,
    run_forward,
)
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm

__all__ = ["is_known", "run_block"]

_SIDES = (1, 3)  # of a layer's two kernels; without bottleneck the last one alone


def is_known(form: BlockForm, x: Tensor, parameters: Sequence[Tensor | None]) -> bool:
    """Return True if the kernels run a block.

    Args:
        form: The block in its present mode.
        x: Its input, (N, C, H, W).
        parameters: Parameters of its units, in order.
    """
    # What runs in rows gives rows; a map that is both, as of one pixel, stays what it was.
    if not is_in_rows(x) or x.is_contiguous():
        return False
    if not all(_is_known_layer(layer, x.dtype) for layer in form.layers):
        return False
    vectors, kernels = [], []
    rest = iter(parameters)
    for layer in form.layers:
        for unit in layer.units:
            weight, bias, kernel, kernel_bias = islice(rest, PARAMETERS)
            if kernel is None or not is_dense(kernel):
                return False
            if kernel_bias is not None and unit is not layer.units[-1]:
                return False
            kernels.append(kernel)
            vectors += [v for v in (weight, bias, kernel_bias) if v is not None]
            vectors += list_vectors(unit.norm)
    if not all(v.is_contiguous() for v in vectors):
        return False
    return has_cpp_training(x, *vectors, *kernels, halves=True)


def _is_known_layer(layer: LayerForm, dtype: torch.dtype) -> bool:
    if layer.drop_path_rate > 0 or layer.drop_rate == 1:
        return False
    sides = _SIDES[-len(layer.units) :]
    return all(_is_known_unit(*both, dtype) for both in zip(layer.units, sides, strict=True))


def _is_known_unit(unit: UnitForm, side: int, dtype: torch.dtype) -> bool:
    conv = unit.conv
    if conv is None or not unit.computes_in(dtype) or not convolution.is_known(conv):
        return False
    return conv.kernel_size == (side, side) and is_known_norm(unit.norm)


def run_block(form: BlockForm, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
    """Run a block that `is_known`, (N, C, H, W) to (N, C + sum of k, H, W), channels last."""
    return cast(Tensor, _CompiledBlock.apply(form, x, *parameters))


class _CompiledBlock(torch.autograd.Function):
    """The block; keeps its output, parameters, statistics, and bottlenecks unless lean."""

    @staticmethod
    def forward(ctx: Any, form: BlockForm, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """Run the block."""
        norms = [unit.norm for layer in form.layers for unit in layer.units]
        drops = [_draw_drops(x, layer) for layer in form.layers]
        layers = _list_layers(form, [describe_norm(norm) for norm in norms], parameters, drops)
        result = run_forward(x, layers, keep=not form.lean)
        constants = [v for norm in norms if not norm.of_batch for v in get_running(norm)]
        ctx.save_for_backward(*result, *parameters, *drops, *constants)
        ctx.form, ctx.count = form, len(parameters)
        return result.out

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        rest, form = iter(ctx.saved_tensors), ctx.form
        result = BlockResult(*islice(rest, len(BlockResult._fields)))
        parameters = list(islice(rest, ctx.count))
        drops = list(islice(rest, len(form.layers)))
        norms = [
            TrainedNorm(norm.module.eps, None if norm.of_batch else (next(rest), next(rest)))
            for norm in (unit.norm for layer in form.layers for unit in layer.units)
        ]
        layers = _list_layers(form, norms, parameters, drops)
        own_gradient = torch.empty_like(result.out).copy_(gradient)
        return None, *run_backward(own_gradient, result, layers, ctx.needs_input_grad[1:])


def _draw_drops(x: Tensor, layer: LayerForm) -> Tensor | None:
    """Draw which new values stay, as the plain execution draws them: one seed means one result."""
    if layer.drop_rate == 0:
        return None
    maps = allocate_channels_last(x, layer.width).fill_(1.0)
    return F.dropout(maps, layer.drop_rate, training=True) != 0


def _list_layers(
    form: BlockForm,
    norms: Sequence[TrainedNorm],
    parameters: Sequence[Tensor | None],
    drops: Sequence[Tensor | None],
) -> list[TrainedLayer]:
    every_norm, rest, layers = iter(norms), iter(parameters), []
    for layer, stays in zip(form.layers, drops, strict=True):
        own = zip(layer.units, every_norm, strict=False)  # as many norms as it has units
        units = tuple(TrainedUnit(norm, *cast(Any, islice(rest, PARAMETERS))) for _, norm in own)
        layers.append(TrainedLayer(units, stays, 1 / (1 - layer.drop_rate)))
    return layers
