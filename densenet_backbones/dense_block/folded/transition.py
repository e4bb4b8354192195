"""A transition in evaluation, in one kernel with its norm and an average pool: see `backends`.

A transition is that of Huang et al. (1608.06993, section 3); pool and convolution are exchanged.

Shapes: N images, C channels read, C' written, H and W pixels.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densenet_backbones.dense_block import native
from densenet_backbones.dense_block.backends import has_cpp, has_kernels, has_triton
from densenet_backbones.dense_block.folded.convolution import FoldedConv2d, activate
from densenet_backbones.dense_block.folded.operators import LIBRARY, calls_operators, is_recorded
from densenet_backbones.dense_block.interfaces import (
    allocate_channels_last,
    has_hooks,
    has_own_methods,
    list_children,
    read_relu_ceiling,
    warn_eagerly,
)

__all__ = ["FoldedMaxPool2d", "FoldedTransition", "ScaleShift"]


# Parts of the transitions that kernels know.
_WHOLE = (("norm", "relu", "conv"), ("norm", "relu", "pool", "conv"))


class ScaleShift(nn.Module):
    """A norm with fixed statistics, with the activation behind it if that is part of it.

    Args:
        scale: Factor of each channel, (C,).
        shift: Summand of each channel, (C,).
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale[:, None, None], requires_grad=False)
        self.shift = nn.Parameter(shift[:, None, None], requires_grad=False)
        self.ceiling: float | None = None  # as that of `FoldedConv2d`

    def forward(self, x: Tensor) -> Tensor:
        """Scale, shift and activate, (N, C, H, W) to (N, C, H, W)."""
        if calls_operators(x):
            call = torch.ops.densenet_backbones.scale_shift
            out: Tensor = call(x, self.scale, self.shift, self.ceiling)
            return out
        return _scale_shift(x, self.scale, self.shift, self.ceiling)


class FoldedMaxPool2d(nn.MaxPool2d):
    """A maximum pool, which is one operator for compilers."""

    def __init__(self, like: nn.MaxPool2d) -> None:
        super().__init__(
            *(like.kernel_size, like.stride, like.padding, like.dilation),
            ceil_mode=like.ceil_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps, (N, C, H, W) to (N, C, H', W')."""
        if not calls_operators(x):
            return cast(Tensor, super().forward(x))
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation)
        pairs = [[size, size] if isinstance(size, int) else list(size) for size in sizes]
        out: Tensor = torch.ops.densenet_backbones.max_pool(x, *pairs, self.ceil_mode)
        return out


class FoldedTransition(nn.Sequential):
    """A folded transition: ``norm``, ``relu``, and where there are, ``pool`` and ``conv``.

    Its children compute what it does, so whatever looks behind one of them calls them in turn, and
    so does the transition itself once a hook is registered on one.

    Args:
        parts: Modules by these names and in this order.
        name: Name for warnings.
    """

    calls_children_in_turn = True

    def __init__(self, parts: OrderedDict[str, nn.Module], name: str = "a transition") -> None:
        super().__init__(parts)
        self.name = name
        # Kernels know these parts; others run in turn, without a word.
        self._parts = tuple(parts)
        self._is_whole = self._parts in _WHOLE and _read_ceiling(parts) is not None
        self._is_whole &= "pool" not in parts or _is_halving(parts["pool"])

    def forward(self, x: Tensor) -> Tensor:
        """Run the transition, (N, C, H, W) to (N, C', H', W')."""
        ceiling = None
        if self._is_whole and not is_recorded(x, self.parameters()) and has_kernels(x):
            change = self._find_change()
            if change is not None:
                warn_eagerly(f"{self.name} runs in parts, as {change}")
            elif self._fits(x):
                ceiling = _read_ceiling(self._modules)
        if ceiling is None:
            for part in self:
                x = part(x)
            return x
        # One operation for compilers, which cannot see into kernels.
        run = _call_operator if torch.compiler.is_compiling() else _run_transition
        norm, conv = cast(ScaleShift, self.norm), cast(FoldedConv2d, self.conv)
        tensors = [norm.scale, norm.shift, *conv.list_tensors()]
        return run(x, tensors, ceiling, "pool" in self._parts)

    def _fits(self, x: Tensor) -> bool:
        """Return True if the parts take as many channels as ``x`` has; else one of them refuses."""
        norm, conv = cast(ScaleShift, self.norm), self.conv
        assert isinstance(conv, nn.Conv2d)
        channels = {x.shape[1], len(norm.scale), len(norm.shift), conv.weight.shape[1]}
        return x.dim() == 4 and len(channels) == 1

    def _find_change(self) -> str | None:
        """Return which part was changed since the transition was folded; None if none was."""
        parts = dict(list_children(self))
        if tuple(parts) != self._parts:
            return f"its parts are {', '.join(parts)}"
        kinds = {"norm": ScaleShift, "conv": FoldedConv2d}
        for name, part in parts.items():
            if name in kinds and type(part) is not kinds[name]:
                return f"{name} is a {type(part).__name__}"
            if has_hooks(part):
                return f"{name} carries hooks"
            if has_own_methods(part):
                return f"{name} has a forward of its own"
        if _read_ceiling(parts) is None:
            return f"relu is a {type(parts['relu']).__name__}"
        return None if "pool" not in parts or _is_halving(parts["pool"]) else "pool is another one"


def _read_ceiling(parts: Mapping[str, nn.Module | None]) -> float | None:
    """Return the value at which the activation cuts off; None if kernels do not know it."""
    relu = parts.get("relu")
    return None if relu is None or has_own_methods(relu) else read_relu_ceiling(relu)


def _is_halving(pool: nn.Module) -> bool:
    """Return True if a pool averages 2x2 cells without overlap, and drops an odd row or column."""
    if type(pool) is not nn.AvgPool2d:
        return False
    sizes = [pool.kernel_size, pool.stride, pool.padding]
    geometry = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
    odd = pool.ceil_mode or pool.divisor_override is not None
    return geometry == [(2, 2), (2, 2), (0, 0)] and not odd


def _call_operator(x: Tensor, tensors: list[Tensor], ceiling: float, pool: bool) -> Tensor:
    out: Tensor = torch.ops.densenet_backbones.folded_transition(x, tensors, ceiling, pool)
    return out


def _run_transition(x: Tensor, tensors: list[Tensor], ceiling: float, pool: bool) -> Tensor:
    """Run a transition of scale and shift, (C, 1, 1), weight, (C', C, 1, 1), and bias, (C',)."""
    scale, shift, weight, bias = tensors
    if has_cpp(x):
        return native.run_transition(x, tensors, ceiling, pool=pool)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if not has_triton(x):
        normed = torch.addcmul(shift, x, scale).to(x.dtype).clamp_(min=0.0, max=ceiling)
        return F.conv2d(F.avg_pool2d(normed, 2) if pool else normed, weight, bias)
    from densenet_backbones.dense_block.triton import convolve_1x1

    x = x.contiguous(memory_format=torch.channels_last)
    out = _allocate_output(x, tensors, ceiling, pool)
    narrow = scale.flatten(), shift.flatten(), weight.flatten(1).t(), bias
    convolve_1x1(x, *narrow, out, ceiling=ceiling, pool=pool)
    return out


def _allocate_output(x: Tensor, tensors: list[Tensor], ceiling: float, pool: bool) -> Tensor:
    corner = x[:, :, : x.shape[2] // 2, : x.shape[3] // 2] if pool else x
    return allocate_channels_last(corner, len(tensors[-1]))


LIBRARY.define("folded_transition(Tensor x, Tensor[] tensors, float ceiling, bool pool) -> Tensor")
LIBRARY.impl("folded_transition", _run_transition, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::folded_transition", _allocate_output)


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor, ceiling: float | None) -> Tensor:
    return activate(torch.addcmul(shift, x, scale).to(x.dtype), ceiling)  # autocast leaves it alone


def _allocate_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


LIBRARY.define("scale_shift(Tensor x, Tensor scale, Tensor shift, float? ceiling) -> Tensor")
LIBRARY.impl("scale_shift", _scale_shift, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::scale_shift", _allocate_like)

LIBRARY.define(
    "max_pool(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode)"
    " -> Tensor"
)
LIBRARY.impl("max_pool", F.max_pool2d, "CompositeExplicitAutograd")
torch.library.register_fake("densenet_backbones::max_pool", F.max_pool2d)
