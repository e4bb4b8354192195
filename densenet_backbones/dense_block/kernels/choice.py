"""Chooses how a layer is run on a GPU by measuring the ways there are, once for each size."""

from collections.abc import Callable, Hashable, Mapping

import torch

__all__ = ["CHOICES", "fastest"]

# Key of a layer to the name of the way that was fastest; there to be read, and emptied.
CHOICES: dict[Hashable, str] = {}
_RUNS = 10


def fastest(key: Hashable, ways: Mapping[str, Callable[[], None]], device: torch.device) -> str:
    """The name of the fastest of ``ways``, all of which do the same and may be run again.

    Where nothing can be measured (no GPU; a CUDA graph is being captured) it is the first, and
    nothing is remembered. A way that fails to compile or asks for more than the GPU has is left
    out, unless all do.

    Args:
        key: What the choice is remembered under.
        ways: Name to a run.
        device: Where they run.
    """
    if key in CHOICES:
        return CHOICES[key]
    first = next(iter(ways))
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing() or len(ways) == 1:
        return first
    times = {name: _milliseconds(way) for name, way in ways.items() if name == first or _runs(way)}
    CHOICES[key] = min(times, key=lambda name: times[name])
    return CHOICES[key]


def _runs(way: Callable[[], None]) -> bool:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        way()
    except (CompilationError, OutOfResources, PTXASError):
        return False
    return True


def _milliseconds(way: Callable[[], None]) -> float:
    """Of a run in a graph: when kernels are started one by one, small ones measure the CPU."""
    way()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_RUNS):
            way()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times) / _RUNS
