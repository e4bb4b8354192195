"""Chooses how a layer is run on a GPU by measuring the ways there are, once for each size."""

from collections.abc import Callable, Hashable, Mapping

import torch

__all__ = ["CHOICES", "choose_fastest", "measure_milliseconds"]

# Key of a layer to the name of the way that was fastest; there to be read, and emptied.
CHOICES: dict[Hashable, str] = {}
_RUNS = 10


def choose_fastest(
    key: Hashable, ways: Mapping[str, Callable[[], None]], device: torch.device
) -> str:
    """Return the name of the fastest of ``ways``, all of which do the same and may be run again.

    Where nothing can be measured (no GPU; a CUDA graph is being captured) it is the first, and
    nothing is remembered. A way that fails to compile or asks for more than the GPU has is left
    out, unless all do.

    Args:
        key: Key under which the choice is remembered.
        ways: Functions that each run the layer, by name.
        device: Device on which they run.
    """
    if key in CHOICES:
        return CHOICES[key]
    first = next(iter(ways))
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing() or len(ways) == 1:
        return first
    times = {
        name: measure_milliseconds(way)
        for name, way in ways.items()
        if name == first or _can_run(way)
    }
    CHOICES[key] = min(times, key=lambda name: times[name])
    return CHOICES[key]


def _can_run(way: Callable[[], object]) -> bool:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        way()
    except (CompilationError, OutOfResources, PTXASError):
        return False
    return True


def measure_milliseconds(way: Callable[[], object]) -> float:
    """Measure the time of ``way`` on the GPU: the fastest of three CUDA graphs of ten runs.

    In a graph, because small kernels that are started one by one measure the CPU. What they read
    is in the L2 cache if it fits, as it is within a network.

    Args:
        way: Function that starts kernels on the current stream, and only there.
    """
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
    return float(min(times)) / _RUNS
