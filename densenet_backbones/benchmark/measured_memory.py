"""Bytes of a training step: what is kept for the backward pass, and what there is at most."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["peak_bytes", "saved_bytes"]


def saved_bytes(net: nn.Module, step: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes of all storages that autograd keeps for the backward pass of ``step()``.

    A storage that several tensors share counts once, and parameters do not count. It is what is
    held between the passes: the peak within a pass is higher.

    Args:
        net: Whose parameters are left out.
        step: A forward pass.

    Returns:
        Bytes, and what ``step`` returned.
    """
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), result


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors that there are at most during ``step()``, beyond those there before it.

    On a CPU the allocations of PyTorch's profiler are added up; what libraries take for themselves
    (oneDNN's scratch memory) is not among them.

    Args:
        step: Is called twice, since a first step also chooses algorithms.
        device: Whose memory.
    """
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    results: Any = profiler.profiler
    changes = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))
