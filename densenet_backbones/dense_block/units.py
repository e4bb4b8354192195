"""Norm, ReLU and convolution as one step that keeps its input alone: the unit of lean executions.

The normed map is made again in the backward pass instead of being kept, as in Pleiss et al.
(1707.06990) and, for norm and activation alone, in-place activated batch norm (Rota Bulo
et al., 1712.02616); unlike the latter it keeps the norm's input and not its output, so nothing has
to be inverted.

A unit runs in the kernels that take its maps: Triton's, which norm on the way into a convolution
and into both its gradients; C++, which do so in the forward pass; or the plain operators.

Shapes: N images, C channels in, O channels out, H and W pixels.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block.backends import has_cpp_training, has_triton_training
from densenet_backbones.dense_block.elementwise import mask_and_sum, scale_shift_relu
from densenet_backbones.dense_block.interfaces import (
    count_norm_channels,
    find_change,
    is_in_rows,
    read_weight,
)
from densenet_backbones.dense_block.native import convolution
from densenet_backbones.dense_block.norms import Affine, Moments, NormForm, read_norm

__all__ = ["PARAMETERS", "UnitForm", "UnitGradient", "leave_autocast", "read_unit"]

# Norm's weight and bias, convolution's weight and bias; None where there is none.
PARAMETERS = 4
Parameters = tuple[Tensor | None, ...]
_MaskedSums = tuple[Tensor | None, Tensor, Tensor]  # what `mask_and_sum` returns
_Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True)
class UnitGradient:
    """Gradients from a unit's backward pass.

    The input's gradient is ``scale * masked - linear[0] - linear[1] * x``.

    Attributes:
        masked: Gradient of the norm's output, (N, C, H, W); None if it was added to a map.
        scale: Factor of ``masked`` on its way to the input, (C,).
        linear: Coefficients of the linear function of the input that the batch's statistics take
            from its gradient, (2, C): a constant, and a multiple of the input.
        parameters: Gradients of the unit's parameters, in their order.
    """

    masked: Tensor | None
    scale: Tensor
    linear: Tensor
    parameters: Parameters


@dataclass(frozen=True)
class UnitForm:
    """Norm-ReLU-convolution, or norm-ReLU where ``conv`` is None, in its present mode.

    Attributes:
        norm: The norm.
        conv: The convolution.
        dtype: Type that autocast has convolutions compute in; None for the precision of the maps.
    """

    norm: NormForm
    conv: nn.Conv2d | None
    dtype: torch.dtype | None

    @property
    def in_channels(self) -> int:
        """Channels it reads, C."""
        return count_norm_channels(cast(nn.Module, self.norm.module))

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Return True if maps of a precision are convolved in it, be it by autocast."""
        return dtype == (torch.float32 if self.dtype is None else self.dtype)

    def parameters(self) -> Parameters:
        """Return weight and bias of the norm, then of the convolution, as they are now."""
        weight, bias = self.norm.module.weight, self.norm.module.bias
        if self.conv is None:
            return weight, bias, None, None
        return weight, bias, read_weight(self.conv), self.conv.bias

    def forward(
        self, x: Tensor, parameters: Parameters, moments: Moments, count: float | None = None
    ) -> Tensor:
        """Run the unit.

        Args:
            x: (N, C, H, W).
            parameters: What `parameters` returned.
            moments: Statistics that the norm goes by.
            count: Values of each channel that these are of, to be mixed into the running
                statistics; None if they are not to be.

        Returns:
            (N, O, H, W).
        """
        kernel, bias = parameters[2:]
        # The norm becomes one scale and shift, which kernels apply on the way into the product.
        affine = self.norm.make_affine(parameters[:2], moments, count)
        norm = affine.scale, affine.shift
        if kernel is not None and self._can_use_triton(x, kernel):
            from densenet_backbones.dense_block.triton_training.unit import run_unit

            return run_unit(
                x, norm, self._cast(kernel), self._cast_bias(bias), self._get_dilation()
            )
        if kernel is not None and self._can_use_cpp(x, kernel, *norm):
            return convolution.convolve(x, kernel, bias, norm)
        return self._convolve(scale_shift_relu(x, affine), parameters)

    def recompute(
        self, x: Tensor, parameters: Parameters, moments: Moments
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` returned, and norm and ReLU of ``x`` if made on the way.

        No statistics are mixed. The normed map, which `backward` needs as well, is made once.
        """
        if parameters[2] is not None and self._can_use_triton(x, parameters[2]):
            return self.forward(x, parameters, moments), None
        active = scale_shift_relu(x, self.norm.make_affine(parameters[:2], moments))
        return self._convolve(active, parameters), active

    def _can_use_triton(self, x: Tensor, kernel: Tensor) -> bool:
        """Return True if the Triton kernels convolve ``x``."""
        if not is_in_rows(x) or not has_triton_training(x, kernel):
            return False
        from densenet_backbones.dense_block.triton_training.unit import is_known

        assert self.conv is not None
        return is_known(self.conv) and self._choose_dtype(x) == self._choose_dtype(kernel)

    def _can_use_cpp(self, x: Tensor, *others: Tensor) -> bool:
        """Return True if the C++ kernels convolve ``x``."""
        if self.conv is None or self.dtype is not None or not convolution.is_known(self.conv):
            return False
        return has_cpp_training(x, *others) and is_in_rows(x)

    def _convolve(self, active: Tensor, parameters: Parameters) -> Tensor:
        """Convolve what was normed in plain operators, (N, C, H, W) to (N, O, H, W)."""
        if self.conv is None:
            return active
        kernel, bias = parameters[2:]
        assert kernel is not None
        stride, padding, dilation, groups = self._get_geometry()
        weight, bias = self._cast(kernel), self._cast_bias(bias)
        return F.conv2d(self._cast(active), weight, bias, stride, padding, dilation, groups)

    def backward(
        self,
        gradient: Tensor,
        x: Tensor,
        parameters: Parameters,
        moments: Moments,
        count: float,
        needs: tuple[bool, ...],
        active: Tensor | None = None,
        into: Tensor | None = None,
    ) -> UnitGradient:
        """Compute gradients; norm and ReLU are computed again.

        Args:
            gradient: Gradient of what `forward` returned, (N, O, H, W).
            x: Input of `forward`, (N, C, H, W).
            parameters: Parameters that `forward` got.
            moments: Statistics that `forward` got.
            count: Values of each channel that the statistics are of.
            needs: True for each parameter whose gradient is asked for.
            active: Norm and ReLU of ``x``, if `recompute` returned them.
            into: A map, (N, C, H, W), to which ``masked`` is to be added, multiplied by ``scale``.
        """
        # Back through the convolution and the ReLU, to two sums for each channel.
        affine, kernel = self.norm.make_affine(parameters[:2], moments), parameters[2]
        if kernel is not None and self._can_use_triton(x, kernel):
            result = self._backward_in_triton(gradient, x, affine, parameters, needs, into)
        else:
            result = self._backward_in_operators(
                gradient, x, affine, parameters, needs, active, into
            )
        (masked, summed, weighted), kernel_gradients = result
        # From these follow the norm's own gradients, and what its statistics take from the input's.
        needed = [p if need else None for p, need in zip(parameters, needs[:2], strict=False)]
        sums = summed, weighted
        linear, *norm_gradients = self.norm.backward(sums, affine, moments, count, needed)
        parameter_gradients = (*norm_gradients, *kernel_gradients)
        return UnitGradient(masked, affine.scale, linear, parameter_gradients)

    def _backward_in_triton(
        self,
        gradient: Tensor,
        x: Tensor,
        affine: Affine,
        parameters: Parameters,
        needs: tuple[bool, ...],
        into: Tensor | None,
    ) -> tuple[_MaskedSums, Parameters]:
        """Go back through convolution and ReLU in kernels that norm on the way in."""
        from densenet_backbones.dense_block.triton_training.unit import run_unit_backward

        kernel, bias = parameters[2:]
        assert kernel is not None
        norm, weight = (affine.scale, affine.shift), self._cast(kernel)
        gradient = self._cast(gradient)
        sums, of_kernel = run_unit_backward(
            gradient, x, norm, weight, self._get_dilation(), needs[2], into
        )
        if of_kernel is not None:
            of_kernel = torch.empty_like(kernel).copy_(of_kernel)  # in the parameter's layout
        of_bias = None
        if bias is not None and needs[3]:
            of_bias = gradient.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
        return sums, (of_kernel, of_bias)

    def _backward_in_operators(
        self,
        gradient: Tensor,
        x: Tensor,
        affine: Affine,
        parameters: Parameters,
        needs: tuple[bool, ...],
        active: Tensor | None,
        into: Tensor | None,
    ) -> tuple[_MaskedSums, Parameters]:
        """Go back through convolution and ReLU in plain operators, and in C++ where it can."""
        if active is None:
            active = scale_shift_relu(x, affine)
        kernel_gradients: Parameters = (None, None)
        if self.conv is not None:
            gradient, *of_kernel = self._convolve_backward(gradient, active, parameters, needs)
            kernel_gradients = tuple(of_kernel)
        # One pass masks the gradient where the ReLU cut off, and sums it up for the norm.
        sums = mask_and_sum(
            gradient.to(x.dtype),
            active,
            x,
            None if into is None else (into, affine.scale),
            overwrite=self.conv is not None,  # which has made the gradient
        )
        return sums, kernel_gradients

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self._choose_dtype(x))

    def _cast_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else self._cast(bias)

    def _choose_dtype(self, x: Tensor) -> torch.dtype:
        # Autocast leaves double precision as it is.
        return x.dtype if self.dtype is None or x.dtype == torch.float64 else self.dtype

    def _get_dilation(self) -> int:
        assert self.conv is not None
        return int(self.conv.dilation[0])

    def _get_geometry(self) -> _Geometry:
        """Return stride, padding, dilation and groups of the convolution."""
        conv = self.conv
        assert conv is not None and not isinstance(conv.padding, str)
        return conv.stride, conv.padding, conv.dilation, conv.groups

    def _convolve_backward(
        self, gradient: Tensor, active: Tensor, parameters: Parameters, needs: tuple[bool, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute the gradients of the convolution's input, weight and bias."""
        kernel, bias = parameters[2:]
        assert kernel is not None
        stride, padding, dilation, groups = self._get_geometry()
        if bias is None and self._is_product(gradient, active):
            return _multiply_backward(gradient, active, kernel, needs[2])
        # The input's gradient is a transposed convolution, which C++ has of 3x3 kernels.
        of_input = of_kernel = None
        if self._can_use_cpp(gradient, kernel) and kernel.shape[2] == 3:
            of_input = convolution.convolve(gradient, kernel, transposed=True)
            if needs[2] and is_in_rows(active) and convolution.is_weight_gradient_known(kernel):
                of_kernel = convolution.compute_weight_gradient(gradient, active, kernel)
        # Not in `torch`'s list of functions, but stable: autograd's own formula calls it.
        rest = (of_input is None, needs[2] and of_kernel is None, bias is not None and needs[3])
        made = torch.ops.aten.convolution_backward(
            self._cast(gradient),
            self._cast(active),
            self._cast(kernel),
            None if bias is None else list(bias.shape),
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            rest,
        )
        own, of_bias = (None if g is None else g.to(kernel.dtype) for g in made[1:])
        of_input = made[0] if of_input is None else of_input
        return of_input, own if of_kernel is None else of_kernel, of_bias

    def _is_product(self, gradient: Tensor, active: Tensor) -> bool:
        """Return True if the convolution is a product of dense matrices, faster on a CPU."""
        conv = self.conv
        assert conv is not None
        pointwise = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
        dense = all(x.is_contiguous(memory_format=torch.channels_last) for x in (gradient, active))
        same = self.dtype is None and gradient.device.type == "cpu"
        return pointwise and conv.groups == 1 and dense and same


def _multiply_backward(
    gradient: Tensor, active: Tensor, kernel: Tensor, needed: bool
) -> tuple[Tensor, Tensor | None, None]:
    """Multiply the gradients of a 1x1 convolution's input and weight, over channels-last maps."""
    images, outputs, height, width = gradient.shape
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # (N * H * W, O)
    of_input = (rows @ kernel.flatten(1)).view(images, height, width, -1).permute(0, 3, 1, 2)
    if not needed:
        return of_input, None, None
    of_kernel = rows.t() @ active.permute(0, 2, 3, 1).reshape(-1, active.shape[1])
    return of_input, of_kernel.view_as(kernel), None


def read_unit(
    device: torch.device, norm: nn.Module, relu: nn.Module, conv: nn.Module | None = None
) -> UnitForm | None:
    """Return the unit of these modules in their present mode; None if they are not all known.

    `find_change` says which modules are known; and one takes what the one before it gives.
    """
    form = read_norm(norm)
    if form is None or find_change(relu, "relu") is not None:
        return None
    if conv is not None and find_change(conv, "masked_conv") is not None:
        return None
    assert conv is None or isinstance(conv, nn.Conv2d)
    if conv is not None and conv.in_channels != count_norm_channels(norm):
        return None
    halves = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return UnitForm(form, conv, torch.get_autocast_dtype(device.type) if halves else None)


def leave_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off for a device, unless it has none, as the meta device."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
