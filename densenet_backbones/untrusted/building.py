"""Bound what building a network from a file's description may take."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densenet_backbones.untrusted.limits import (
    BUILDING_BYTES,
    BUILDING_BYTES_PER_WEIGHT_BYTE,
    BUILDING_STEPS,
    BUILDING_STEPS_PER_WEIGHT,
)

_FILLED = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "empty_strided", "new_zeros"}
_RANGES = {"arange", "linspace"}


class BoundedBuilding(TorchDispatchMode):
    """Context in which a network is built that must not be much larger than its weights.

    A description of a hundred bytes can ask for terabytes, or for millions of layers. Tensors are
    counted before they exist, and each step of torch.

    Args:
        weights: Weights that the network will be given.

    Raises:
        ValueError: In the context, where building takes more than weights of such a size explain.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        size = sum(value.numel() * value.element_size() for value in weights.values())
        self.bytes_left = BUILDING_BYTES + BUILDING_BYTES_PER_WEIGHT_BYTE * size
        self.steps_left = BUILDING_STEPS + BUILDING_STEPS_PER_WEIGHT * len(weights)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count a step, then take it."""
        name = func._schema.name.partition("::")[2]
        self.steps_left -= 1
        if name in _FILLED and args and isinstance(args[0], Sequence):
            self.bytes_left -= 4 * math.prod(args[0])
        elif name in _RANGES:
            self.bytes_left -= 4 * _count_range(name, args)
        if self.bytes_left < 0 or self.steps_left < 0:
            raise ValueError(
                "building what it describes takes far more than the weights in the file explain"
            )
        return func(*args, **(kwargs or {}))


def _count_range(name: str, args: tuple[Any, ...]) -> int:
    numbers = [value for value in args if isinstance(value, int | float)]
    if name == "linspace":
        return int(numbers[-1])
    start, end, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    return int(abs((end - start) / (step or 1)))
