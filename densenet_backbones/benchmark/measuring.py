"""Measure steps side by side: seconds in turns within one run, and bytes of a training step."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from densenet_backbones.messages import check_whole

__all__ = [
    "Timing",
    "get_synchronize",
    "interleave",
    "measure_peak_bytes",
    "measure_saved_bytes",
    "profile_operations",
    "take_turns",
]


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn of one contender, in the order of the turns."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return statistics.median(self.seconds)

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Milliseconds of each turn."""
        return tuple(1e3 * value for value in self.seconds)

    def compute_ratios(self, first: "Timing") -> tuple[float, ...]:
        """Return times in units of another contender's, turn by turn."""
        return tuple(a / b for a, b in zip(self.seconds, first.seconds, strict=True))


def take_turns(
    contenders: Mapping[str, Callable[[], float]], turns: int, uncounted: int = 1
) -> tuple[Timing, ...]:
    """Let contenders time themselves in turns, so that a busy moment meets all of them.

    The order is reversed in every other round.

    Args:
        contenders: Name to what does the work and returns its seconds.
        turns: Counted rounds, at least 1.
        uncounted: Rounds before them.

    Raises:
        ValueError: There is no contender, or ``turns`` is below 1.
    """
    if not contenders or turns < 1:
        raise ValueError(f"give one or more contenders and turns >= 1, got {turns}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(1 - uncounted, turns + 1):
        for name in names if turn % 2 else reversed(names):
            value = contenders[name]()
            if turn > 0:
                seconds[name].append(value)
    return tuple(Timing(name, tuple(values)) for name, values in seconds.items())


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    turns: int,
    synchronize: Callable[[], None] = lambda: None,
    repeats: int = 1,
) -> tuple[Timing, ...]:
    """Time contenders in turns (see `take_turns`), after one round that is not counted.

    Args:
        contenders: Name to a step.
        turns: Counted rounds, at least 1.
        synchronize: Waits for the device; see `get_synchronize`.
        repeats: Steps in a turn, at least 1, whose mean is the turn's time: more than one where a
            step is too short for the clock or for starting the device.

    Raises:
        ValueError: There is no contender, or ``turns`` or ``repeats`` is below 1.
    """
    check_whole("repeats", repeats)
    timed = {
        n: partial(_measure_seconds, step, synchronize, repeats) for n, step in contenders.items()
    }
    return take_turns(timed, turns)


def _measure_seconds(
    step: Callable[[], object], synchronize: Callable[[], None], repeats: int
) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.perf_counter() - start) / repeats


def get_synchronize(device: torch.device) -> Callable[[], None]:
    """Return the function that waits until a device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def measure_saved_bytes(net: nn.Module, step: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Count the bytes of all storages that autograd keeps for the backward pass of ``step()``.

    A storage that several tensors share counts once, and parameters do not count. It is what is
    held between the passes: the peak within a pass is higher.

    Args:
        net: Network; its parameters are left out.
        step: A forward pass.

    Returns:
        Number of bytes, and the result of ``step``.
    """
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    storages: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            storages[address] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = step()
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values()), result


def profile_operations(step: Callable[[], None], *, memory: bool = False) -> torch.profiler.profile:
    """Run ``step()`` under PyTorch's profiler of the CPU; return the profiler.

    Args:
        step: What is profiled.
        memory: Count allocations as well.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines tell nothing of the measurement
    activities = [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities, profile_memory=memory)
    with profiler:
        step()
    return profiler


def measure_peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Measure the most bytes of tensors during ``step()``, beyond those there before it.

    On a CPU the allocations of PyTorch's profiler are added up; what libraries take for themselves
    (oneDNN's scratch memory) is not among them.

    Args:
        step: Training step; called twice, since the first one also chooses algorithms.
        device: Device whose memory is measured.
    """
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device) - before)
    profiler = profile_operations(step, memory=True)
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(max(accumulate((event.nbytes() for event in changes), initial=0)))
