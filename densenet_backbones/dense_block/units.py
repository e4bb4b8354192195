"""Norm, ReLU and convolution as one step that keeps its input alone: the unit of lean executions.

It runs in the kernels that take its maps: Triton's, which norm on the way in of a convolution and
of both its gradients; C++, which do so forth; or the plain operators.

Shapes: N images, C channels in, O channels out, H and W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block.backends import has_cpp_training, has_triton_training
from densenet_backbones.dense_block.elementwise import masked_sums, scale_shift_relu
from densenet_backbones.dense_block.interfaces import has_hooks, is_in_rows
from densenet_backbones.dense_block.native import convolution
from densenet_backbones.dense_block.norms import Affine, Moments, NormForm, read_norm

__all__ = ["PARAMETERS", "UnitForm", "UnitGradient", "read_unit"]

# Norm's weight and bias, convolution's weight and bias; None where there is none.
PARAMETERS = 4
Parameters = tuple[Tensor | None, ...]
_MaskedSums = tuple[Tensor | None, Tensor, Tensor]  # what `masked_sums` returns


@dataclass(frozen=True)
class UnitGradient:
    """What a unit's backward pass finds.

    Attributes:
        masked: Gradient of the norm's output, (N, C, H, W); None if it was added to a map.
        scale: What it is multiplied by on its way to the input, (C,).
        linear: What the batch's statistics take from the input's gradient, (2, C): a constant, and
            a multiple of the input.
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
        dtype: What autocast has convolutions compute in; None for the precision of the maps.
    """

    norm: NormForm
    conv: nn.Conv2d | None
    dtype: torch.dtype | None

    def parameters(self) -> Parameters:
        """The unit's parameters as they are now."""
        weight, bias = self.norm.module.weight, self.norm.module.bias
        if self.conv is None:
            return weight, bias, None, None
        return weight, bias, self.conv.weight, self.conv.bias

    def run(
        self, x: Tensor, parameters: Parameters, moments: Moments, count: float | None = None
    ) -> Tensor:
        """(N, C, H, W) to (N, O, H, W), by the statistics ``moments``.

        With a ``count`` these are tracked, as statistics of that many values a channel.
        """
        kernel, bias = parameters[2:]
        affine = self.norm.affine(parameters[:2], moments, count)
        norm = affine.scale, affine.shift
        if kernel is not None and self._in_triton(x, kernel):
            from densenet_backbones.dense_block.triton_training.unit import run_unit

            return run_unit(x, norm, self._cast(kernel), self._cast(bias), self._dilation())
        if kernel is not None and self._in_cpp(x, kernel, *norm):
            return convolution.convolve(x, kernel, bias, norm)
        return self._convolve(scale_shift_relu(x, affine), parameters)

    def run_again(
        self, x: Tensor, parameters: Parameters, moments: Moments
    ) -> tuple[Tensor, Tensor | None]:
        """What `run` returned, and norm and ReLU of ``x`` if that was made on the way."""
        if parameters[2] is not None and self._in_triton(x, parameters[2]):
            return self.run(x, parameters, moments), None
        active = scale_shift_relu(x, self.norm.affine(parameters[:2], moments))
        return self._convolve(active, parameters), active

    def _in_triton(self, x: Tensor, kernel: Tensor) -> bool:
        """Whether the Triton kernels convolve ``x``."""
        if not is_in_rows(x) or not has_triton_training(x, kernel):
            return False
        from densenet_backbones.dense_block.triton_training.unit import is_known

        assert self.conv is not None
        return is_known(self.conv) and self._computes_in(x) == self._computes_in(kernel)

    def _in_cpp(self, x: Tensor, *others: Tensor) -> bool:
        """Whether the C++ kernels convolve ``x``."""
        if self.conv is None or self.dtype is not None or not convolution.is_known(self.conv):
            return False
        return has_cpp_training(x, *others) and is_in_rows(x)

    def _convolve(self, active: Tensor, parameters: Parameters) -> Tensor:
        """The other half of `run` in plain operators, (N, C, H, W) to (N, O, H, W)."""
        if self.conv is None:
            return active
        kernel, bias = map(self._cast, parameters[2:])
        stride, padding, dilation, groups = self._geometry()
        return F.conv2d(self._cast(active), kernel, bias, stride, padding, dilation, groups)

    def run_back(
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
        """Gradients, with norm and ReLU computed again.

        Args:
            gradient: Of what `run` returned, (N, O, H, W).
            x: What it was given, (N, C, H, W).
            parameters: Likewise.
            moments: Likewise.
            count: Values of each channel that the statistics are of.
            needs: Which of the parameters' gradients are asked for.
            active: What `run_again` returned beside that, if it is still there.
            into: A map, (N, C, H, W), to which ``masked`` is to be added, multiplied by ``scale``.
        """
        affine, kernel = self.norm.affine(parameters[:2], moments), parameters[2]
        if kernel is not None and self._in_triton(x, kernel):
            found = self._run_back_in_triton(gradient, x, affine, parameters, needs, into)
        else:
            found = self._run_back(gradient, x, affine, parameters, needs, active, into)
        (masked, summed, weighted), kernel_gradients = found
        asked = [p if needed else None for p, needed in zip(parameters, needs[:2], strict=False)]
        sums = summed, weighted
        linear, *norm_gradients = self.norm.run_back(sums, affine, moments, count, asked)
        parameter_gradients = (*norm_gradients, *kernel_gradients)
        return UnitGradient(masked, affine.scale, linear, parameter_gradients)

    def _run_back_in_triton(
        self,
        gradient: Tensor,
        x: Tensor,
        affine: Affine,
        parameters: Parameters,
        needs: tuple[bool, ...],
        into: Tensor | None,
    ) -> tuple[_MaskedSums, Parameters]:
        from densenet_backbones.dense_block.triton_training.unit import run_unit_back

        kernel, bias = parameters[2:]
        assert kernel is not None
        norm, weight = (affine.scale, affine.shift), self._cast(kernel)
        gradient = self._cast(gradient)
        sums, found = run_unit_back(gradient, x, norm, weight, self._dilation(), needs[2], into)
        if found is not None:
            found = torch.empty_like(kernel).copy_(found)  # in the layout of the parameter
        of_bias = None
        if bias is not None and needs[3]:
            of_bias = gradient.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
        return sums, (found, of_bias)

    def _run_back(
        self,
        gradient: Tensor,
        x: Tensor,
        affine: Affine,
        parameters: Parameters,
        needs: tuple[bool, ...],
        active: Tensor | None,
        into: Tensor | None,
    ) -> tuple[_MaskedSums, Parameters]:
        if active is None:
            active = scale_shift_relu(x, affine)
        kernel_gradients: Parameters = (None, None)
        if self.conv is not None:
            gradient, *kernel_gradients = self._convolve_back(gradient, active, parameters, needs)
        sums = masked_sums(
            gradient.to(x.dtype),
            active,
            x,
            None if into is None else (into, affine.scale),
            overwrite=self.conv is not None,  # which has made the gradient
        )
        return sums, kernel_gradients

    def _cast(self, x: Any) -> Any:
        return None if x is None else x.to(self._computes_in(x))

    def _computes_in(self, x: Tensor) -> torch.dtype:
        # Autocast leaves double precision as it is.
        return x.dtype if self.dtype is None or x.dtype == torch.float64 else self.dtype

    def _dilation(self) -> int:
        assert self.conv is not None
        return int(self.conv.dilation[0])

    def _geometry(self) -> tuple[Any, Any, Any, int]:
        assert self.conv is not None
        return self.conv.stride, self.conv.padding, self.conv.dilation, self.conv.groups

    def _convolve_back(
        self, gradient: Tensor, active: Tensor, parameters: Parameters, needs: tuple[bool, ...]
    ) -> Any:
        kernel, bias = parameters[2:]
        assert kernel is not None
        stride, padding, dilation, groups = self._geometry()
        if bias is None and self._is_product(gradient, active):
            return _multiply_back(gradient, active, kernel, needs[2])
        first = None
        if self._in_cpp(gradient, kernel) and kernel.shape[2] == 3:
            first = convolution.convolve(gradient, kernel, transposed=True)
        # Not in `torch`'s list of functions, but stable: autograd's own formula calls it.
        found = torch.ops.aten.convolution_backward(
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
            (first is None, needs[2], bias is not None and needs[3]),
        )
        first = found[0] if first is None else first
        return (first, *(None if g is None else g.to(kernel.dtype) for g in found[1:]))

    def _is_product(self, gradient: Tensor, active: Tensor) -> bool:
        """Whether the convolution is a product of dense matrices, which a CPU does faster."""
        conv = self.conv
        assert conv is not None
        pointwise = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
        dense = all(x.is_contiguous(memory_format=torch.channels_last) for x in (gradient, active))
        same = self.dtype is None and gradient.device.type == "cpu"
        return pointwise and conv.groups == 1 and dense and same


def _multiply_back(
    gradient: Tensor, active: Tensor, kernel: Tensor, needed: bool
) -> tuple[Tensor, Tensor | None, None]:
    """Gradients of a 1x1 convolution's input and weight, over channels-last maps."""
    images, outputs, height, width = gradient.shape
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)  # (N * H * W, O)
    found = (rows @ kernel.flatten(1)).view(images, height, width, -1).permute(0, 3, 1, 2)
    if not needed:
        return found, None, None
    product = rows.t() @ active.permute(0, 2, 3, 1).reshape(-1, active.shape[1])
    return found, product.view_as(kernel), None


def read_unit(
    device: torch.device, norm: nn.Module, relu: nn.Module, conv: nn.Module | None = None
) -> UnitForm | None:
    """The unit of these modules in their present mode; None if they are not all known.

    Modules that carry hooks, parametrizations or a ``forward`` of their own are not.
    """
    modules = [module for module in (norm, relu, conv) if module is not None]
    if any(has_hooks(module) or "forward" in vars(module) for module in modules):
        return None
    form = read_norm(norm)
    if form is None or type(relu) is not nn.ReLU:
        return None
    if conv is not None:
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            return None
        if isinstance(conv.padding, str):
            return None
    cast = torch.is_autocast_enabled(device.type)
    return UnitForm(form, conv, torch.get_autocast_dtype(device.type) if cast else None)
