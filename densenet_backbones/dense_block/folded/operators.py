"""Operators of the deployed form that ``torch.compile`` calls as they are.

On a CPU Inductor turns every loop of its own into C++: compilers run for seconds, the first time
also to find out which instructions there are. A graph of operators alone has nothing to compile.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor  # no public name tells
from torch.autograd import forward_ad
from torch.jit import is_tracing  # type: ignore[attr-defined]

__all__ = ["LIBRARY", "calls_operators", "is_recorded"]

# Not torch.library.custom_op, which reads the signature and makes importing slower.
LIBRARY = torch.library.Library("densenet_backbones", "FRAGMENT")


def calls_operators(x: Tensor) -> bool:
    """Return True if compiled code should compute on ``x`` by operators.

    Elsewhere than on a CPU generated code is worth more than what it takes to compile it.
    """
    return torch.compiler.is_compiling() and x.device.type == "cpu" and not is_recorded(x)


def is_recorded(x: Tensor, weights: Iterable[Tensor] = ()) -> bool:
    """Return True if torch records what runs on ``x``: to export, trace or differentiate it.

    Args:
        x: Maps.
        weights: What they are computed with, of which gradients may be asked for as well.
    """
    if isinstance(x, fx.Proxy) or is_tracing() or torch.compiler.is_exporting():
        return True
    if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
        return True
    # Forward-mode derivatives, and torch.func's transforms, whose tensors have no memory.
    if torch.compiler.is_compiling():
        return False
    return is_functorch_wrapped_tensor(x) or forward_ad.unpack_dual(x).tangent is not None
