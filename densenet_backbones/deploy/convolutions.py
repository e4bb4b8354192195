"""Convolutions and norms of the deployed form: what stands behind a convolution is part of it.

Norms become a scale and a shift, or part of a convolution, by the formula of Ioffe and Szegedy
(1502.03167, section 3.1).

Shapes: C channels.
"""

from typing import cast

from torch import Tensor, nn

from densenet_backbones.dense_block import FoldedConv2d, ScaleShift, find_change
from densenet_backbones.dense_block.interfaces import read_relu_ceiling
from densenet_backbones.dense_block.norms import read_norm

__all__ = [
    "UnfoldableError",
    "compute_affine",
    "fold_activation",
    "fold_conv",
    "fuse",
    "make_scale_shift",
]


class UnfoldableError(Exception):
    """A part that stays as it is, with the reason: the part's name, and what is the matter."""


def fold_conv(conv: nn.Conv2d) -> FoldedConv2d:
    """Return a convolution as it is, in the form that does not learn."""
    weight, bias = conv.weight.detach().clone(), conv.bias
    return FoldedConv2d(conv, weight, weight.new_zeros(len(weight)) if bias is None else bias.data)


def fuse(conv: nn.Conv2d, norm: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Fuse a convolution with the norm behind it, of that name: weight and bias.

    Raises:
        UnfoldableError: As `compute_affine`.
    """
    scale, shift = compute_affine(norm, name)
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)


def make_scale_shift(norm: nn.Module, name: str) -> ScaleShift:
    """Return the norm of that name as a scale and a shift.

    Raises:
        UnfoldableError: As `compute_affine`.
    """
    scale, shift = compute_affine(norm, name)
    dtype = cast(Tensor, norm.running_mean).dtype
    return ScaleShift(scale.to(dtype), shift.to(dtype))


def compute_affine(norm: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Compute a norm's scale and shift in evaluation, (C,), float64.

    Raises:
        UnfoldableError: Its statistics are not fixed, or it is no norm that is known.
    """
    change = find_change(norm, "norm")
    if change is not None:
        raise UnfoldableError(f"{name} {change}")
    form = read_norm(norm)
    if form is None or form.of_batch:
        raise UnfoldableError(f"{name} has no fixed statistics")
    module = form.module
    mean, variance = cast(Tensor, module.running_mean).double(), cast(Tensor, module.running_var)
    scale = (variance.double() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    shift = -mean * scale
    return scale, shift if module.bias is None else shift + module.bias.detach().double()


def fold_activation(before: FoldedConv2d | ScaleShift, parent: nn.Module, name: str) -> None:
    """Let a convolution or norm cut off as the activation behind it does, a part of ``parent``."""
    before.ceiling = read_relu_ceiling(parent.get_submodule(name))
    if before.ceiling is not None:
        parent.register_module(name, nn.Identity())
