"""Report of a sweep: tables, importance of each knob, pictures, and the winner's command."""

import csv
import io
import re
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.table import Table
from rich.text import Text

from densenet_backbones.comparison.tables import format_markdown
from densenet_backbones.file_writing import save_json, save_text
from densenet_backbones.messages import pluralize, quote_word
from densenet_backbones.reporting.console import say
from densenet_backbones.reporting.tables import render
from densenet_backbones.tuning.choosing import SweepStudy
from densenet_backbones.tuning.plan import SweepPlan
from densenet_backbones.tuning.results import (
    COSTS,
    Cost,
    Point,
    choose_best,
    choose_costs,
    count_left_out,
    find_front,
    gather_points,
    list_differences,
    list_effects,
    measure_interval,
    shorten_key,
)

Rows = list[list[str]]
_MOST_ROWS = 20


def report_sweep(sweep: SweepStudy) -> None:
    """Print the results of a sweep so far and write its files."""
    with sweep.reporting():
        _report(sweep)


def _report(sweep: SweepStudy) -> None:
    from densenet_backbones.tuning.pictures import draw_sweep

    trials, plan, folder = sweep.list_trials(), sweep.plan, sweep.folder
    points = gather_points(trials)
    monitor = next((t.user_attrs["monitor"] for t in trials if "monitor" in t.user_attrs), "-")
    importances = compute_importances(sweep.study, points)
    best = choose_best(points, plan)
    costs = choose_costs(points, plan)
    tables = [("Points, best first", tabulate_points(points, plan, monitor, costs))]
    tables += [("Each knob", tabulate_effects(points, importances))] if importances else []
    width = max(shutil.get_terminal_size().columns, 80)
    for title, rows in tables:
        shown = rows[: _MOST_ROWS + 1]
        say("", *format_plain(shown, title, width).splitlines())
        if len(rows) > len(shown):
            say(f"  and {len(rows) - len(shown)} more, in report.md")
    lines = list(_describe(trials, points, best, plan, monitor))
    say("", *lines)
    save_text(folder / "trials.csv", format_trials(trials, plan))
    tables[0] = tables[0][0], tabulate_points(points, plan, monitor, COSTS)
    texts = [f"## {title}\n\n{format_markdown(rows)}" for title, rows in tables]
    save_text(folder / "report.md", "\n".join(["# Sweep\n", *texts, *_as_markdown(lines)]) + "\n")
    save_json(folder / "sweep.json", _as_json(points, best, plan, monitor, importances), indent=1)
    pictures = draw_sweep(sweep, points, monitor, importances)
    say(
        "",
        f"Written to {folder}/: {', '.join(['report.md', 'trials.csv', 'sweep.json', *pictures])}",
    )


def compute_importances(study: optuna.Study, points: Sequence[Point]) -> dict[str, float]:
    """Return each knob's share of the variance of quality (fANOVA), the largest first.

    Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014. Empty
    where too little was tried.
    """
    if len(points) < 3:
        return {}
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # all trials are equally good
        return {}
    return {key: float(share) for key, share in found.items()}


def tabulate_points(
    points: Sequence[Point], plan: SweepPlan, monitor: str, costs: Sequence[Cost]
) -> Rows:
    """Return a row a point: its values, quality with its interval, costs."""
    keys = [knob.key for knob in plan.knobs]
    head = [*map(shorten_key, keys), f"{monitor} (95 %)", "seeds", *(c.title for c in costs)]
    rows = [head]
    for point in points:
        half = point.interval
        quality = f"{point.mean:.3f}" + (f" ± {half:.3f}" if half is not None else "")
        cells = [
            f"{point.costs[c.name] / c.unit:.3g}" if c.name in point.costs else "-" for c in costs
        ]
        rows.append(
            [*(str(point.params[k]) for k in keys), quality, str(len(point.values)), *cells]
        )
    return rows


def tabulate_effects(points: Sequence[Point], importances: dict[str, float]) -> Rows:
    """Return a row a knob: its importance, the mean quality at its values, and what they lose."""
    rows = [
        ["knob", "importance", "mean quality at each value", "against the best, in pairs (95 %)"]
    ]
    for key, share in importances.items():
        effects = list_effects(points, key)
        shown = [f"{value}: {mean:.3f}" for value, mean, _ in effects]
        if len(effects) > 8:  # a range: its quarters would be bins of our own choice
            shown = [f"{pluralize(len(effects), 'value')}, see slice.png"]
        pairs = [] if len(effects) > 8 else list_differences(points, key)
        losses = [f"{value}: {_describe_difference(found)}" for value, found in pairs]
        rows.append([shorten_key(key), f"{share:.0%}", "; ".join(shown), "; ".join(losses) or "-"])
    return rows


def _describe_difference(differences: Sequence[float]) -> str:
    half = measure_interval(differences)
    return f"{np.mean(differences):+.3f}" + (f" ± {half:.3f}" if half is not None else "")


def write_command(plan: SweepPlan, point: Point) -> str:
    """Return the command that trains a point again, with the seed that was best."""
    seed = max(point.values, key=lambda s: point.values[s])
    return " ".join(map(quote_word, ["densenet", "train", *plan.list_words(point.params, seed)]))


def _describe(
    trials: Sequence[FrozenTrial],
    points: Sequence[Point],
    best: Point | None,
    plan: SweepPlan,
    monitor: str,
) -> list[str]:
    """Return sentences about what was done, the winner and what can be done with it."""
    count = {state: sum(t.state == state for t in trials) for state in TrialState}
    parts = [
        f"{count[state]} {word}"
        for state, word in (
            (TrialState.COMPLETE, "trained"),
            (TrialState.PRUNED, "given up early"),
            (TrialState.FAIL, "failed"),
            (TrialState.RUNNING, "running or broken off"),
        )
        if count[state]
    ]
    if left_out := count_left_out(trials, plan):
        parts.append(f"{left_out} left out after their points' first seeds")
    lines = [f"{pluralize(plan.trials, 'trial')} planned: {', '.join(parts) or 'none begun'}."]
    failed = [t for t in trials if t.state == TrialState.FAIL]
    lines += [f"  trial {t.number}: {t.user_attrs.get('failed', 'broken off')}" for t in failed[:5]]
    if best is None:
        return lines
    half = f" ± {best.interval:.3f}" if best.interval is not None else ""
    lines.append(f"Best: {best.describe()}: {monitor} {best.mean:.3f}{half}.")
    rivals = [p for p in points if p is not best and _overlaps(p, best)]
    if rivals:
        lines.append(
            f"Its interval meets those of {pluralize(len(rivals), 'other point')}, the best of "
            f"them {rivals[0].describe()} ({rivals[0].mean:.3f}): more seeds would tell them "
            "apart."
        )
    elif best.interval is None and len(points) > 1:
        lines.append("One seed a point says nothing of chance: --seeds 3 gives an interval.")
    return [
        *lines,
        "Train it again (without --budget for its config's own length):",
        "",
        f"  {write_command(plan, best)}",
    ]


def _overlaps(one: Point, other: Point) -> bool:
    if one.interval is None or other.interval is None:
        return False
    return abs(one.mean - other.mean) <= one.interval + other.interval


def _as_markdown(lines: Sequence[str]) -> list[str]:
    """Return sentences as Markdown: the command as code, the failures as a list."""
    text = [f"    {line.strip()}" if line.startswith("  densenet") else line for line in lines]
    return ["", *(f"- {line.strip()}" if line.startswith("  trial") else line for line in text)]


def format_trials(trials: Sequence[FrozenTrial], plan: SweepPlan) -> str:
    """Format all trials as CSV, a row each with exact numbers."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    keys, costs = [knob.key for knob in plan.knobs], [cost.name for cost in COSTS]
    writer.writerow(
        ["trial", "state", "quality", "seed", *keys, *costs, "seconds", "epoch", "run", "failed"]
    )
    for trial in trials:
        attrs = trial.user_attrs
        writer.writerow(
            [
                *(trial.number, trial.state.name.lower(), trial.value, attrs.get("seed")),
                *(trial.params.get(key) for key in keys),
                *(attrs.get(name) for name in (*costs, "seconds", "epoch", "run", "failed")),
            ]
        )
    return text.getvalue()


def _as_json(
    points: Sequence[Point],
    best: Point | None,
    plan: SweepPlan,
    monitor: str,
    importances: dict[str, float],
) -> dict[str, Any]:
    fronts = {cost.name: [p.trials[0] for p in find_front(points, cost.name)] for cost in COSTS}
    return {
        "monitor": monitor,
        "best": best and {"params": best.params, "command": write_command(plan, best)},
        "importances": importances,
        "points": [
            {
                "params": point.params,
                "mean": point.mean,
                "interval": point.interval,
                "values": {str(seed): value for seed, value in point.values.items()},
                "costs": point.costs,
                "trials": list(point.trials),
            }
            for point in points
        ],
        "pareto_fronts": fronts,
    }


def format_plain(rows: Rows, title: str, width: int) -> str:
    """Format rows for a terminal; a table that is wider than that stays whole."""
    # Titles of many columns stand in several lines, so that no number needs two.
    is_wide = len(rows[0]) > 5
    head = [re.sub(r"(_)| ", r"\1\n", name) if is_wide else name for name in rows[0]]
    cells = [head, *([cell.replace("; ", "\n") for cell in row] for row in rows[1:])]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True)
    natural = 0
    for column in zip(*cells, strict=True):
        longest = max(len(line) for cell in column for line in cell.splitlines())
        least = longest if is_wide else None
        natural += 3 + longest if is_wide else 0
        table.add_column(Text(column[0]), justify="right", overflow="fold", min_width=least)
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    return render([table], max(width, natural))
