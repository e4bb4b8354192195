"""Timing of things side by side: in turns within one run, as ratios to the first of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Timing", "interleave", "ratio_table", "ratios_of"]


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn of one contender, in the order of the turns."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds)


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    turns: int,
    synchronize: Callable[[], None] = lambda: None,
) -> tuple[Timing, ...]:
    """Times contenders in turns, so that a busy moment of the machine meets all of them.

    The order is turned round in every other round, and one round before the first is not counted.

    Args:
        contenders: Name to a step; the first is what the others are compared with.
        turns: Counted rounds, at least 1.
        synchronize: Waits for the device.

    Raises:
        ValueError: There is no contender, or ``turns`` is below 1.
    """
    if not contenders or turns < 1:
        raise ValueError(f"give one or more contenders and turns >= 1, not {turns}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(turns + 1):
        for name in names if turn % 2 else reversed(names):
            synchronize()
            start = time.perf_counter()
            contenders[name]()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return tuple(Timing(name, tuple(values)) for name, values in seconds.items())


def ratio_table(timings: Sequence[Timing]) -> str:
    """Median step time and, turn by turn, the time in units of the first contender's.

    Args:
        timings: As `interleave` returns them.

    Returns:
        One line a contender: median milliseconds, median ratio, smallest and largest ratio.
    """
    first = timings[0]
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':{width}}  {'median ms':>10}  time / {first.name}: median (min .. max)"]
    for timing in timings:
        lines.append(
            f"{timing.name:{width}}  {timing.median * 1e3:10.2f}  {ratios_of(timing, first)}"
        )
    return "\n".join(lines)


def ratios_of(timing: Timing, first: Timing) -> str:
    """Median, smallest and largest of the ratios taken turn by turn, in words."""
    ratios = [a / b for a, b in zip(timing.seconds, first.seconds, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} .. {max(ratios):.3f})"
