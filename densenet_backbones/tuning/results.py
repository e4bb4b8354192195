"""Results of a sweep: trials, points with mean and interval over their seeds, the best of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student  # type: ignore[import-untyped]

from densenet_backbones.comparison.runs import Run
from densenet_backbones.tuning.choosing import name_point
from densenet_backbones.tuning.plan import SweepPlan

CONFIDENCE = 0.95


def count_left_out(trials: Sequence[FrozenTrial], plan: SweepPlan) -> int:
    """Count planned trials that will not come: a bad point is not trained with further seeds."""
    bad = (TrialState.FAIL, TrialState.PRUNED)
    first = [t for t in trials if t.state in bad and t.user_attrs.get("seed") == plan.seeds[0]]
    return len(first) * (len(plan.seeds) - 1)


@dataclass(frozen=True)
class Cost:
    """A cost of a model or its training.

    Attributes:
        name: Name in files, and in the trials' attributes.
        title: With its unit, for pictures and tables.
        unit: Number by which it is divided there.
        measure: Value of a run.
    """

    name: str
    title: str
    unit: float
    measure: Callable[[Run], float | None]


COSTS = (
    Cost("parameters", "M params", 1e6, lambda run: run.parameters),
    Cost("macs", "GMAC", 1e9, lambda run: run.macs),
    Cost("kept_bytes", "MiB kept", 2**20, lambda run: run.kept_bytes),
    Cost("step_seconds", "s a step", 1.0, lambda run: run.step_seconds),
    Cost("step_cpu_seconds", "CPU s a step", 1.0, lambda run: run.step_cpu_seconds),
    Cost("peak_bytes", "GiB peak", 2**30, lambda run: run.peak_bytes),
)
"""Costs in the order of the tables: parameters, multiply-adds of an image, what is kept for the
backward pass, time, and the most memory of the process or the GPU."""


@dataclass(frozen=True)
class Point:
    """A point of the space with the trials that were trained at it.

    Attributes:
        params: Its values by key.
        values: Quality by seed.
        costs: Mean costs by name, those that are known.
        trials: Numbers of its trials that have a quality.
    """

    params: dict[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    trials: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean quality over the seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def interval(self) -> float | None:
        """Half the width of the mean's 95 % interval, by Student's t; None of one seed."""
        return measure_interval(list(self.values.values()))

    def describe(self) -> str:
        """Return the values in a line."""
        return ", ".join(f"{shorten_key(key)} {value}" for key, value in self.params.items())


def measure_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean, by Student's t; None of one value."""
    n = len(values)
    if n < 2:
        return None
    spread = float(np.std(values, ddof=1))
    return float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread / math.sqrt(n)


def shorten_key(key: str) -> str:
    """Return the last part of a key."""
    return key.rpartition(".")[2]


def gather_points(trials: Sequence[FrozenTrial]) -> list[Point]:
    """Return the points with a quality, best mean first."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            groups.setdefault(name_point(trial.params), []).append(trial)
    points = []
    for group in groups.values():
        costs = {}
        for cost in COSTS:
            known = [trial.user_attrs.get(cost.name) for trial in group]
            if measured := [float(value) for value in known if value is not None]:
                costs[cost.name] = float(np.mean(measured))
        values = {int(trial.user_attrs["seed"]): float(trial.value or 0.0) for trial in group}
        points.append(Point(group[0].params, values, costs, tuple(t.number for t in group)))
    return sorted(points, key=lambda point: -point.mean)


def choose_best(points: Sequence[Point], plan: SweepPlan) -> Point | None:
    """Return the point with the best mean, among those that most seeds were trained at."""
    most = max((len(point.values) for point in points), default=0)
    return next((p for p in points if len(p.values) == min(most, len(plan.seeds))), None)


def choose_costs(points: Sequence[Point], plan: SweepPlan) -> list[Cost]:
    """Return the costs that people compare, a single time among them, as far as they are known."""
    # On a machine that others use as well, the processor's own time is what can be compared.
    is_cpu = any("cpumin" in word for word in plan.words if word.startswith("--budget"))
    left_out = ("peak_bytes", "step_seconds" if is_cpu else "step_cpu_seconds")
    known = [cost for cost in COSTS if any(cost.name in point.costs for point in points)]
    return [cost for cost in known if cost.name not in left_out] or known or list(COSTS[:1])


def find_front(points: Sequence[Point], cost: str) -> list[Point]:
    """Return the points that no other beats in quality without costing more, cheapest first.

    Args:
        points: All points.
        cost: Name of a cost; points where it is unknown are left out.
    """
    known = [point for point in points if cost in point.costs]
    front: list[Point] = []
    for point in sorted(known, key=lambda p: (p.costs[cost], -p.mean)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    return front


def list_effects(points: Sequence[Point], key: str) -> list[tuple[Any, float, int]]:
    """Return the mean quality of all points that share a value of a knob, and their number."""
    values = dict.fromkeys(point.params[key] for point in points)
    try:
        ordered = sorted(values)
    except TypeError:  # numbers and texts
        ordered = list(values)
    groups = [(value, [p.mean for p in points if p.params[key] == value]) for value in ordered]
    return [(value, float(np.mean(means)), len(means)) for value, means in groups]


def list_differences(points: Sequence[Point], key: str) -> list[tuple[Any, list[float]]]:
    """Compare a knob's values with its best one, between trials that differ in nothing else.

    Such pairs share their seed and all other values, whose spread so drops out.

    Returns:
        Each other value with its pairs' differences of quality; values without a pair are left out.
    """
    effects = list_effects(points, key)
    best = max(effects, key=lambda effect: effect[1])[0]
    peers = {name_point({**p.params, key: None}): p for p in points if p.params[key] == best}
    found = []
    for value, *_ in effects:
        pairs = [
            (point, peers[name])
            for point in points
            if point.params[key] == value != best
            and (name := name_point({**point.params, key: None})) in peers
        ]
        differences = [
            one.values[seed] - other.values[seed]
            for one, other in pairs
            for seed in sorted(one.values.keys() & other.values.keys())
        ]
        if differences:
            found.append((value, differences))
    return found
