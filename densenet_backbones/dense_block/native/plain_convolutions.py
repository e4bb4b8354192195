"""3x3 convolutions of a training step in the C++ kernels, whoever calls them.

Heads and decoders convolve outside of dense blocks, in torch's modules or other libraries'. On
processors with vectors of 8 floats (AVX2) oneDNN takes 2 to 8 times as long for the gradient of a
weight as for the convolution itself, if maps are channels last.

Shapes: N images, C channels in, O channels out, H and W pixels.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from densenet_backbones.dense_block.backends import has_cpp_training
from densenet_backbones.dense_block.derivatives import first_only
from densenet_backbones.dense_block.interfaces import is_in_rows
from densenet_backbones.dense_block.native import convolution

__all__ = ["use_compiled_convolutions"]

_FEWEST_CELLS = 512  # of maps; transforming the weight takes longer than so few are worth
_FEWEST_CHANNELS = 8  # a vector
_KERNEL = (3, 3)
_GEOMETRY = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


def use_compiled_convolutions(enabled: bool = True) -> AbstractContextManager[object]:
    """Return a context in which calls of `torch.nn.functional.conv2d` run in the kernels.

    They do so where gradients are asked for, where the kernels know them (3x3, with a border of one
    zero, float32, channels last, on a CPU), and where they are faster. Outputs and gradients are
    those of plain operators within rounding; second derivatives are not there.

    Args:
        enabled: False for a context that changes nothing.
    """
    return _CompiledConvolutions() if enabled else nullcontext()


class _CompiledConvolutions(TorchFunctionMode):
    """Takes the place of the functions that convolve, by torch's own protocol for that."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function, a convolution perhaps in the kernels."""
        kwargs = kwargs or {}
        if func is torch.conv2d:
            call = _read_call(*args, **kwargs)
            if call is not None:
                return _CompiledConvolution.apply(*call)
        return func(*args, **kwargs)


def _read_call(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return input, weight and bias of a call that the kernels are to run; None of others."""
    if not _is_eager():
        return None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    plain = all(value in (_GEOMETRY[name], (1, 1), [1, 1]) for name, value in geometry.items())
    if not plain or weight.shape[2:] != _KERNEL or not weight.requires_grad:
        return None
    if type(input) not in (Tensor, nn.Parameter) or input.dim() != 4:
        return None
    images, channels, height, width = input.shape
    # Of one column, the strides of gradients need not tell how far its cells are apart.
    large = images * height * width >= _FEWEST_CELLS and width > 1
    if not large or min(channels, len(weight)) < _FEWEST_CHANNELS:
        return None
    if not is_in_rows(input) or input.is_contiguous():
        return None
    # What does not fit together gets torch's own error.
    if weight.shape[1] != channels or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    others = (weight,) if bias is None else (weight, bias)
    if not has_cpp_training(input, *others) or not convolution.is_weight_gradient_known(weight):
        return None
    return input, weight, bias


def _is_eager() -> bool:
    """Return True while gradients are recorded, in float32, and nothing records the calls."""
    recorded = torch.compiler.is_compiling() or is_tracing()
    return torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not recorded


class _CompiledConvolution(torch.autograd.Function):
    """The convolution; keeps its input and its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve, (N, C, H, W) to (N, O, H, W)."""
        ctx.save_for_backward(x, weight)
        return convolution.convolve(x, weight, bias)

    @staticmethod
    @first_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the input, the weight and the bias."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = convolution.convolve(gradient, weight, transposed=True)
        if ctx.needs_input_grad[1]:
            of_weight = convolution.compute_weight_gradient(gradient, x, weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias
