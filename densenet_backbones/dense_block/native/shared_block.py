"""The function of ``shared.py`` in the C++ kernels: a whole block in one call each way.

Its plain form runs a block that these kernels do not have: in another precision or layout, with
dropped values, synchronized norms, biases, or other convolutions than a 1x1 and a 3x3.

Shapes: N images, C channels, H and W pixels, k a layer's new maps.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from densenet_backbones.dense_block.backends import has_cpp_training
from densenet_backbones.dense_block.block_form import BlockForm, LayerForm
from densenet_backbones.dense_block.interfaces import is_in_rows
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
    run_backward,
    run_forward,
)
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm

__all__ = ["is_known", "run_block"]

_SIDES = (1, 3)  # of a layer's two kernels
_PARAMETERS = 6  # of a layer without biases
_T = TypeVar("_T")


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
    if not all(map(_is_known_layer, form.layers)):
        return False
    vectors, kernels = [], []
    units = [unit for layer in form.layers for unit in layer.units]
    for unit, own in zip(units, _split(parameters, PARAMETERS), strict=True):
        weight, bias, kernel, kernel_bias = own
        if kernel is None or kernel_bias is not None or not is_dense(kernel):
            return False
        kernels.append(kernel)
        vectors += [v for v in (weight, bias) if v is not None]
        vectors += list_vectors(unit.norm)
    return all(v.is_contiguous() for v in vectors) and has_cpp_training(x, *vectors, *kernels)


def _is_known_layer(layer: LayerForm) -> bool:
    if not layer.bottleneck or layer.drop_rate > 0 or layer.drop_path_rate > 0:
        return False
    return all(map(_is_known_unit, layer.units, _SIDES))


def _is_known_unit(unit: UnitForm, side: int) -> bool:
    conv = unit.conv
    if conv is None or unit.dtype is not None or not convolution.is_known(conv):
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
        layers = _list_layers([describe_norm(norm) for norm in norms], parameters)
        result = run_forward(x, layers, keep=not form.lean)
        constants = [v for norm in norms if not norm.of_batch for v in get_running(norm)]
        ctx.save_for_backward(*result, *parameters, *constants)
        ctx.norms, ctx.count = norms, len(parameters)
        return result.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input and of the parameters."""
        rest = iter(ctx.saved_tensors)
        result = BlockResult(*islice(rest, len(BlockResult._fields)))
        parameters = list(islice(rest, ctx.count))
        norms = [
            TrainedNorm(norm.module.eps, None if norm.of_batch else (next(rest), next(rest)))
            for norm in ctx.norms
        ]
        wanted = _split(ctx.needs_input_grad[2:], PARAMETERS)
        needs = [ctx.needs_input_grad[1], *(need for own in wanted for need in own[:3])]
        own_gradient = torch.empty_like(result.out).copy_(gradient)
        of_x, *found = run_backward(own_gradient, result, _list_layers(norms, parameters), needs)
        by_unit = ((*own, None) for own in _split(found, 3))
        return None, of_x, *(g for own in by_unit for g in own)


def _split(values: Sequence[_T], length: int) -> list[Sequence[_T]]:
    """Split ``values`` into pieces of this length."""
    return [values[start : start + length] for start in range(0, len(values), length)]


def _list_layers(
    norms: Sequence[TrainedNorm], parameters: Sequence[Tensor | None]
) -> list[TrainedLayer]:
    kept = [p for own in _split(parameters, PARAMETERS) for p in own[:3]]
    pairs = zip(_split(norms, 2), _split(kept, _PARAMETERS), strict=True)
    return [TrainedLayer(cast(Any, two), cast(Any, own)) for two, own in pairs]
