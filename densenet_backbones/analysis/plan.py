"""Count parameters and multiply-adds of a model, stage by stage, without computing anything."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Plan", "PlanRow", "plan", "plan_inputs"]

_REST = "(itself)"


@dataclass(frozen=True)
class PlanRow:
    """Costs of one top-level child.

    Attributes:
        name: Name of the child; ``(itself)`` for what belongs to no child.
        parameters: Number of learnable values.
        macs: Multiply-adds of convolutions and matrix products for the whole batch. Biases,
            norms, activations and pools are not counted, as in published tables.
    """

    name: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Plan:
    """Costs of a model at one input size.

    Attributes:
        model: Class of the model.
        inputs: Input shapes in words.
        rows: Top-level children in their order; children with no cost are left out.
    """

    model: str
    inputs: str
    rows: tuple[PlanRow, ...]

    @property
    def parameters(self) -> int:
        """Learnable values of the whole model; shared ones count once."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model for the whole batch."""
        return sum(row.macs for row in self.rows)

    def table(self) -> str:
        """Return a table for people, one line a row."""
        total = PlanRow("total", self.parameters, self.macs)
        width = max(len(row.name) for row in (*self.rows, total))
        lines = [f"{self.model} at {self.inputs}", f"{'':{width}}  {'parameters':>12}  {'GMAC':>9}"]
        lines += [
            f"{row.name:{width}}  {row.parameters:12,}  {row.macs / 1e9:9.3f}"
            for row in (*self.rows, total)
        ]
        return "\n".join(lines)


def plan(model: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224)) -> Plan:
    """Plan a model that takes one image tensor; nothing is computed or allocated.

    Args:
        model: Any module whose forward runs on meta tensors; it is left as it is.
        input_size: (N, C, H, W).

    Raises:
        ValueError: ``input_size`` is not made of positive integers.
    """
    size = tuple(input_size)
    if not size or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"input_size must hold integers >= 1, such as (1, 3, 224, 224): {size}")
    # On the meta device the forward pass only computes shapes, from which FLOPs are counted.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    image = torch.empty(size, device="meta", dtype=dtype)
    with _evaluate_temporarily(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, meta, (image,))
    return _collect(model, counter, " x ".join(map(str, size)))


def plan_inputs(model: nn.Module, *inputs: object) -> Plan:
    """Plan a model by running it once in eval mode, for models that meta tensors cannot pass.

    Detectors are such models: their number of boxes depends on the values.

    Args:
        model: Any module; its training flags are put back.
        *inputs: Arguments of its forward, on its device.
    """
    with _evaluate_temporarily(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return _collect(model, counter, ", ".join(_describe_shapes(inputs)))


@contextmanager
def _evaluate_temporarily(model: nn.Module) -> Iterator[None]:
    """Set eval mode for a while; every module's own flag is restored."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _collect(model: nn.Module, counter: FlopCounterMode, inputs: str) -> Plan:
    name = type(model).__name__
    macs = {
        path.removeprefix(f"{name}."): sum(by_operator.values()) // 2
        for path, by_operator in counter.get_flop_counts().items()
        if path.startswith(f"{name}.")
    }
    seen: set[int] = set()
    rows = [
        PlanRow(child, _count_parameters(module.parameters(), seen), _sum_macs(child, macs))
        for child, module in model.named_children()
    ]
    rest = counter.get_total_flops() // 2 - sum(row.macs for row in rows)
    rows.append(PlanRow(_REST, _count_parameters(model.parameters(), seen), rest))
    return Plan(name, inputs, tuple(row for row in rows if row.parameters or row.macs))


def _count_parameters(parameters: Iterator[nn.Parameter], seen: set[int]) -> int:
    total = 0
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            total += parameter.numel()
    return total


def _sum_macs(path: str, macs: dict[str, int]) -> int:
    """Sum multiply-adds of a module, or of its outermost descendants if it was not called."""
    if path in macs:
        return macs[path]
    below = [name for name in macs if name.startswith(f"{path}.")]
    outermost = [n for n in below if not any(n.startswith(f"{other}.") for other in below)]
    return sum(macs[name] for name in outermost)


def _describe_shapes(value: object) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield " x ".join(map(str, value.shape))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _describe_shapes(item)
