"""Pictures of a sweep: quality against each cost with its Pareto front, and Optuna's plots."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from optuna.trial import TrialState

from densenet_backbones.reporting.figures import GRAY, escape_name, make_figure, save_figure
from densenet_backbones.tuning.choosing import SweepStudy
from densenet_backbones.tuning.results import (
    Cost,
    Point,
    choose_costs,
    find_front,
    shorten_key,
)

_MOST_NAMES = 20
_BLUE, _RED = "#3b6ea8", "#c2452d"


def draw_sweep(
    sweep: SweepStudy, points: Sequence[Point], monitor: str, importances: dict[str, float]
) -> list[str]:
    """Draw all that can be drawn of a sweep.

    Returns:
        Names of the files in its folder.
    """
    if not points:
        return []
    folder, study, names = sweep.folder, sweep.study, ["pareto.png"]
    plot_fronts(points, choose_costs(points, sweep.plan), monitor, folder / names[0])
    plots: list[tuple[str, Callable[[], Any]]] = [
        (
            "history.png",
            lambda: _optuna().plot_optimization_history(study, target_name=monitor),
        ),
        ("slice.png", lambda: _optuna().plot_slice(study, target_name=monitor)),
    ]
    if importances:
        plots.append(("importance.png", lambda: _plot_importances(study, importances)))
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if any(len(trial.intermediate_values) > 1 for trial in trials):
        plots.append(("evaluations.png", lambda: _optuna().plot_intermediate_values(study)))
    for name, plot in plots:
        _save_plot(plot, folder / name)
        names.append(name)
    return names


def plot_fronts(points: Sequence[Point], costs: Sequence[Cost], monitor: str, path: Path) -> None:
    """Plot quality against costs; the points that none beats are joined.

    Args:
        points: Best first, with intervals where there are several seeds.
        costs: One a panel.
        monitor: Name of the quality.
        path: The PNG file.
    """
    rows = -(-len(costs) // 2)
    columns = -(-len(costs) // rows)
    figure, axes = make_figure(rows, columns, width=5 * columns, height=4 * rows + 0.6)
    for empty in axes[len(costs) :]:
        empty.remove()
    for axis, cost in zip(axes, costs, strict=False):
        axis.set(xlabel=cost.title, ylabel=monitor)
        front = find_front(points, cost.name)
        for number, point in enumerate(points, start=1):
            if cost.name not in point.costs:
                continue
            place = point.costs[cost.name] / cost.unit, point.mean
            axis.errorbar(
                *place,
                yerr=point.interval,
                color=_RED if point in front else _BLUE,
                marker="o",
                markersize=5,
                capsize=3,
                elinewidth=0.8,
            )
            if number <= _MOST_NAMES:
                near: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points"}
                axis.annotate(str(number), place, fontsize=7, color=GRAY, **near)
        places = [(point.costs[cost.name] / cost.unit, point.mean) for point in front]
        if places:
            axis.plot(*zip(*places, strict=True), color=_RED, linewidth=1)
    title = "Quality against cost; red: no other point is better and no dearer"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    _name_points(figure, points)
    save_figure(figure, path)


def _name_points(figure: Figure, points: Sequence[Point]) -> None:
    """List the values of the best points by their numbers, beside the panels."""
    names = [
        escape_name(f"{number}   {', '.join(map(str, point.params.values()))}")
        for number, point in enumerate(points[:_MOST_NAMES], start=1)
    ]
    nothing = [Line2D([], [], linestyle="none") for _ in names]
    look: dict[str, Any] = {"frameon": False, "handlelength": 0, "fontsize": 8, "labelcolor": GRAY}
    knobs = ",\n".join(escape_name(shorten_key(key)) for key in points[0].params)
    legend = figure.legend(nothing, names, loc="outside right upper", title=knobs, **look)
    legend.get_title().set(fontsize=8, color=GRAY)


def _optuna() -> Any:
    """Return Optuna's plots with matplotlib, which draws without a display from here on."""
    import matplotlib

    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna.visualization.matplotlib


def _plot_importances(study: optuna.Study, importances: dict[str, float]) -> Any:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return _optuna().plot_param_importances(study, evaluator=evaluator, params=list(importances))


def _save_plot(plot: Callable[[], Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    drawn = plot()
    axis = drawn if hasattr(drawn, "figure") else drawn.flat[0]
    figure: Figure = axis.figure
    figure.set_size_inches(max(8.0, figure.get_size_inches()[0]), 5)
    save_figure(figure, path)
    plt.close(figure)
