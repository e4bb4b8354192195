"""Picture of a comparison: curves over the epochs, and quality against cost."""

from collections.abc import Callable, Sequence
from pathlib import Path

from densenet_backbones.comparison.runs import Run
from densenet_backbones.reporting.colors import get_class_color
from densenet_backbones.reporting.figures import escape_name, make_figure, save_figure, to_floats

COSTS: tuple[tuple[str, Callable[[Run], float | None]], ...] = (
    ("GMAC an image", lambda run: run.macs and run.macs / 1e9),
    ("parameters in millions", lambda run: run.parameters and run.parameters / 1e6),
    ("minutes of training", lambda run: run.seconds and run.seconds / 60),
)


def plot_comparison(runs: Sequence[Run], path: str | Path) -> None:
    """Plot the runs' evaluations on top of each other, and their best against each cost.

    Args:
        runs: In the order of their colors.
        path: The PNG file; a panel without any number says so.
    """
    figure, axes = make_figure(1, 1 + len(COSTS), width=19, height=4.4)
    curves, *panels = axes
    curves.set_title("evaluations", loc="left")
    curves.set(xlabel="epoch", ylabel=" / ".join(dict.fromkeys(r.monitor or "-" for r in runs)))
    for number, run in enumerate(runs, start=1):
        if run.curve:
            color = to_floats(get_class_color(number))
            curves.plot(*zip(*run.curve, strict=True), color=color, marker="o", markersize=3)
    for axis, (name, measure) in zip(panels, COSTS, strict=True):
        axis.set_title(f"best against {name}", loc="left")
        axis.set(xlabel=name)
        for number, run in enumerate(runs, start=1):
            cost, best = measure(run), run.best
            if cost and best:
                color = to_floats(get_class_color(number))
                axis.scatter([cost], [best[1]], color=[color], s=40, zorder=3)
                axis.annotate(
                    escape_name(run.name),
                    (cost, best[1]),
                    xytext=(5, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
    for axis in axes:
        if not axis.has_data():
            axis.text(0.5, 0.5, "nothing known", transform=axis.transAxes, ha="center")
    figure.legend(
        [
            curves.plot([], [], color=to_floats(get_class_color(n)), marker="o")[0]
            for n in range(1, len(runs) + 1)
        ],
        [escape_name(run.name) for run in runs],
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )
    save_figure(figure, path)
