"""Length of a run in steps or minutes: its evaluations, its plan, and its end, resumed or not."""

import csv
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import Recorder, interrupt, last, recorded
from tiny_runs import differences, training_arguments

from densenet_backbones.training.cli import train_det
from densenet_backbones.training.optimization import PLACES
from densenet_backbones.training.progress.budget import NEVER, Budget, BudgetEnd, parse_budget
from densenet_backbones.training.progress.clock import RunClock

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.mark.parametrize(
    ("text", "budget", "words"),
    [
        ("500steps", Budget(500, "steps"), "500 steps"),
        ("1 step", Budget(1, "steps"), "1 step"),
        ("90min", Budget(5400, "seconds"), "90 minutes of time"),
        ("1.5h", Budget(5400, "seconds"), "90 minutes of time"),
        ("0.5cpumin", Budget(30, "cpu seconds"), "0.5 minutes of processor time"),
    ],
)
def test_budgets_are_read(text, budget, words):
    assert parse_budget(text) == budget and str(budget) == words


@pytest.mark.parametrize(
    "text", ["", "5", "5 cows", "0min", "-1min", "1.5steps", "1e400min", "min"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="--budget must"):
        parse_budget(text)


@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=60),
    st.integers(1, 9),
    st.sampled_from(["seconds", "cpu seconds"]),
)
def test_a_run_of_any_steps_is_evaluated_at_its_parts_and_ends(durations, evaluations, unit):
    """The last evaluation is the end, and no part has two."""
    now = [0.0]
    clock = RunClock(lambda: now[0], lambda: now[0])
    amount = sum(durations) * 0.9
    budget = BudgetEnd(Budget(amount, unit), clock, evaluations)
    trainer = SimpleNamespace(
        should_stop=False,
        sanity_checking=False,
        global_step=0,
        accumulate_grad_batches=1,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=-1)),
    )
    trainer.fit_loop.epoch_loop.batch_progress = SimpleNamespace(
        current=SimpleNamespace(ready=0), is_last_batch=False
    )
    trainer.num_training_batches = 10**6
    budget.on_train_start(trainer, None)
    assert trainer.val_check_batch == NEVER
    clock.mark()
    places = []
    for duration in durations:
        now[0] += duration
        clock.add_step(1)
        trainer.global_step += 1
        trainer.fit_loop.epoch_loop.total_batch_idx += 1
        budget.on_train_batch_end(trainer)
        if trainer.val_check_batch == trainer.fit_loop.epoch_loop.total_batch_idx + 1:
            places.append(budget.place(trainer.global_step) * evaluations // PLACES)
            budget.on_validation_end(trainer, None)
        assert trainer.should_stop == (budget.used >= amount)
        if trainer.should_stop:
            break
    assert trainer.should_stop and places[-1] == evaluations
    assert places == sorted(set(places)) and len(places) <= evaluations


def test_a_resumed_run_of_steps_equals_one_never_stopped(tiny_scenes, tmp_path):
    def train(name, stop=None, *more):
        arguments = training_arguments(
            tiny_scenes, "--budget", "7steps", "--evaluations", "3", *more, epochs=99
        )
        return recorded(train_det, [*arguments, "--run-dir", str(tmp_path / name)], Recorder(stop))

    assert train("whole")[0] is None
    rates = [float(r) for r in read_column(tmp_path / "whole/metrics.csv", "lr")]
    assert rates[1] == max(rates) and rates[1:] == sorted(rates[1:], reverse=True)
    # In the middle of an epoch, and at the last evaluation, which is made after resuming.
    for number, moment in enumerate(
        (("train_batch_start", 4, interrupt), ("validation_batch_end", 5, interrupt))
    ):
        name = f"parts{number}"
        assert train(name, moment)[0] == 130
        train(name, None, "--resume")
        found = differences(last(tmp_path / "whole"), last(tmp_path / name))
        # Batches of an evaluation that was broken off are counted by Lightning, too.
        assert [place for place in found if ".val_loop." not in place] == []
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert [e["step"] for e in summary["evaluations"]] == [3, 5, 7]
        assert summary["ended"] == "finished" and summary["steps_done"] == 7


def test_a_run_that_has_ended_goes_on_with_a_larger_budget(tiny_scenes, tmp_path, capsys):
    def train(budget, *more):
        words = ("--budget", budget, "--evaluations", "2", "--run-dir", str(tmp_path / "run"))
        train_det(training_arguments(tiny_scenes, *words, *more, epochs=99))
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        return [e["step"] for e in summary["evaluations"]], capsys.readouterr().out

    used_up = "used up all its budget"
    assert train("2steps")[0] == [1, 2]
    assert used_up in train("2steps", "--resume")[1]
    evaluated, said = train("6steps", "--resume")
    assert evaluated == [1, 2, 3, 6] and used_up not in said


@pytest.mark.parametrize(
    ("budget", "evaluations", "done", "places"),
    [
        (Budget(100, "seconds"), 4, 2, 0.5),
        (Budget(200, "seconds"), 4, 1, 0.25),
        (Budget(100, "seconds"), 10, 5, 0.5),
        (Budget(20, "cpu seconds"), 4, 4, 1),
        (Budget(10, "steps"), 4, 2, 0.7),
    ],
)
def test_what_is_used_up_counts_for_a_budget_of_any_unit(budget, evaluations, done, places):
    """Half of 100 seconds, in which 40 were the processor's."""
    clock = RunClock(lambda: 0.0, lambda: 0.0)
    clock.trained, clock.trained_cpu = 50.0, 40.0
    first = BudgetEnd(Budget(100, "seconds"), clock, 4)
    trainer = SimpleNamespace(
        should_stop=False, sanity_checking=False, global_step=7, state=SimpleNamespace(fn="fit")
    )
    for _ in range(2):
        first.on_validation_end(trainer, None)
    other = BudgetEnd(budget, RunClock(lambda: 0.0, lambda: 0.0), evaluations)
    other.load_state_dict(first.state_dict())
    assert other.state_dict()["evaluated"] == done
    assert other.place(7) == places * PLACES
    # What is left takes as long as what was used up, whatever the present start has seen of it.
    if places < 1:
        assert other.estimate(7, 1) == pytest.approx(50 * (1 - places) / places)


def read_column(file, name):
    with file.open(newline="") as rows:
        return [row[name] for row in csv.DictReader(rows) if row[name]]


def test_a_budget_that_is_none_is_refused_before_anything_is_written(tiny_scenes, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, "--budget", "5cows", "--run-dir", str(run)))
    assert end.value.code == 2 and not run.exists()
    error = capsys.readouterr().err
    assert error.startswith("error: --budget must be") and error.count("\n") == 1


def test_epochs_typed_over_the_config_of_a_run_with_a_budget_hold(tiny_scenes, tmp_path):
    def train(name, *words):
        train_det([*words, "--run-dir", str(tmp_path / name)])
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        return summary["steps_done"], [e["step"] for e in summary["evaluations"]]

    budget = ("--budget", "3steps", "--evaluations", "1")
    assert train("first", *training_arguments(tiny_scenes, *budget, epochs=99)) == (3, [3])
    again = ("--config", str(tmp_path / "first/config.yaml"))
    assert train("budget", *again) == (3, [3])
    steps, evaluated = train("epochs", *again, "--epochs", "2")
    assert steps != 3 and evaluated == [steps // 2, steps]
    assert train("steps", *again, "--trainer.max_steps", "2")[0] == 2
