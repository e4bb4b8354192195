"""Backward passes that are computed by hand, and so cannot be differentiated themselves."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["first_only"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def first_only(backward: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a ``backward`` refuse to be recorded, before it computes anything.

    torch's `once_differentiable` alone lets it pass where the incoming gradient is a constant, and
    the second derivatives lack what was kept from the forward pass.

    Raises:
        RuntimeError: The pass is to be differentiated again (``create_graph=True``).
    """

    @wraps(backward)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "memory='shared' and 'shared_lean', and use_compiled_convolutions, give no second "
                "derivatives, which create_graph=True asks for; use memory='none'"
            )
        return backward(*args, **kwargs)

    return run
