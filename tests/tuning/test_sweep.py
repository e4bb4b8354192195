"""Sweeps: what is tried, what is kept through stops and kills, and what is said at the end.

The trainings are a stand-in's, which takes milliseconds, but for the last test.
"""

import csv
import json
import os
import shlex
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
import stand_in_training
from forked_processes import start_saying
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import DETECTOR_ARGS

from densenet_backbones.command.main import main as densenet
from densenet_backbones.file_writing import is_dead
from densenet_backbones.tuning import command, pictures, trial
from densenet_backbones.tuning.command import main
from densenet_backbones.tuning.plan import SweepPlan, read_plan
from densenet_backbones.tuning.report import format_plain
from densenet_backbones.tuning.results import (
    Point,
    choose_best,
    find_front,
    gather_points,
    list_differences,
)
from densenet_backbones.tuning.space import parse_knob

STAND_IN = (sys.executable, stand_in_training.__file__)
GRID = ("--try", "growth_rate=8,24", "--try", "optimizer.lr=0.01,0.1")


@pytest.fixture
def drawing_stand_in(monkeypatch):
    monkeypatch.setattr(trial, "TRAIN", STAND_IN)
    monkeypatch.setattr(trial, "_LOOK_EVERY", 0.05)


@pytest.fixture
def stand_in(drawing_stand_in, monkeypatch):
    monkeypatch.setattr(pictures, "draw_sweep", lambda *args: [])


def start_sweep(said, *words, seconds="0.2", gate=""):
    """A sweep in a process of its own, which says what it does in a file."""
    environment = {"STAND_IN_SECONDS": seconds, "STAND_IN_GATE": str(gate)}
    return start_saying(said, sweep, [*map(str, words)], environment=environment)


def sweep(words):
    # Shells start what runs behind their backs with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial.TRAIN, trial._LOOK_EVERY = STAND_IN, 0.05
    pictures.draw_sweep = lambda *args: []
    main(words)


def rows_of(folder):
    with (Path(folder) / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values_of(folder):
    """Quality by point and seed, of all whole trials."""
    found = {}
    for row in rows_of(folder):
        if row["state"] == "complete":
            key = row["model.args.growth_rate"], row["model.optimizer.lr"], row["seed"]
            assert key not in found, "a point was trained twice with a seed"
            found[key] = float(row["quality"])
    return found


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def test_a_grid_with_seeds(drawing_stand_in, tmp_path, capsys):
    out = tmp_path / "odd name, 100% & ?"
    main([*GRID, "--seeds", "3", "--budget", "10steps", "--out", str(out)])
    said = capsys.readouterr().out
    assert len(values_of(out)) == 12 and "12 trials planned: 12 trained." in said
    # All points come first with one seed, then with the next.
    assert [row["seed"] for row in rows_of(out)] == [*"000011112222"]
    best = json.loads((out / "sweep.json").read_text())
    assert best["best"]["params"] == {"model.args.growth_rate": 24, "model.optimizer.lr": 0.01}
    command = best["best"]["command"]
    assert command in said and command.startswith("densenet train --budget=10steps ")
    assert command.endswith("--model.args.growth_rate=24 --model.optimizer.lr=0.01 --seed=2")
    first = best["points"][0]
    assert first["mean"] == pytest.approx(0.741) and list(first["values"]) == ["0", "1", "2"]
    assert first["interval"] == pytest.approx(4.302653 * 0.001 / 3**0.5, rel=1e-5)
    assert best["importances"]["model.args.growth_rate"] > best["importances"]["model.optimizer.lr"]
    assert first["costs"] == {
        "parameters": 24000,
        "macs": 24e6,
        "kept_bytes": 24 * 2**20,
        "peak_bytes": 2**30,
        "step_seconds": pytest.approx(2.4),
        "step_cpu_seconds": pytest.approx(0.1),
    }
    for name in ("pareto", "importance", "history", "slice", "evaluations"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size[0] > 500
    report = (out / "report.md").read_text()
    assert "24" in report and "against the best, in pairs (95 %)" in report
    assert not (out / "trials/0000/checkpoints").exists()


def test_failures_are_told_in_a_line_and_the_sweep_goes_on(stand_in, tmp_path, capsys):
    out = tmp_path / "s"
    main(["--try", "growth_rate=-1,8,99", "--seeds", "2", "--out", str(out)])
    said = capsys.readouterr().out
    failed = {row["model.args.growth_rate"]: row["failed"] for row in rows_of(out) if row["failed"]}
    assert failed == {
        "-1": "growth_rate must be at least 1, got -1",
        "99": "killed by the system, mostly for want of memory",
    }
    assert [row["seed"] for row in rows_of(out) if row["state"] == "complete"] == ["0", "1"]
    assert "failed: growth_rate must be at least 1, got -1" in said and "(4/4)" in said
    counts = "2 trained, 2 failed, 2 left out after their points' first seeds."
    assert f"6 trials planned: {counts}" in said


def test_a_sweep_is_made_longer_and_keeps_what_it_has(stand_in, tmp_path, capsys):
    out = tmp_path / "s"
    words = ["--try", "growth_rate=8,24", "--try", "optimizer.lr=1e-3..1e-1:log"]
    main([*words, "--trials", "3", "--out", str(out), "--keep-checkpoints"])
    before = values_of(out)
    assert (out / "trials/0000/checkpoints/last.ckpt").exists()
    main(["--resume", str(out), "--trials", "5", "--seeds", "2"])
    after = values_of(out)
    assert before.items() <= after.items() and len(after) == 10
    # As one that was never stopped: the points are functions of what was tried before.
    main([*words, "--trials", "3", "--out", str(tmp_path / "same")])
    assert values_of(tmp_path / "same") == before
    assert read_plan(out).sampler == "tpe"


def test_random_points_end_when_a_small_space_is_used_up(stand_in, tmp_path):
    out = tmp_path / "s"
    words = ["--try", "growth_rate=8,24", "--try", "optimizer.lr=0.01"]
    main([*words, "--sampler", "random", "--trials", "9", "--out", str(out)])
    assert len(values_of(out)) == 2


def test_bad_trials_are_given_up_early(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_SECONDS", "0.2")
    out = tmp_path / "s"
    words = ["--try", "growth_rate=24,23,22,21,8", "--pruner", "median", "--out", str(out)]
    main([*words, "--sampler-seed", "5"])
    rows = rows_of(out)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{out}/study.sqlite3")
    assert [len(t.intermediate_values) for t in study.trials[:4]] == [4] * 4
    worst = next(t for t in study.trials if t.params["model.args.growth_rate"] == 8)
    if worst.number == 4:  # after four whole ones, which the pruner waits for
        assert rows[4]["state"] == "pruned" and len(worst.intermediate_values) < 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is tried"),
        (["--try", "growth_rat=8"], "did you mean 'growth_rate'"),
        (["--try", "lr=1..2", "--sampler", "grid"], "--sampler grid takes lists"),
        (["--try", "lr=1,2", "--sampler", "gird"], "did you mean 'grid'"),
        (["--try", "lr=1,2", "--pruner", "medain"], "did you mean 'median'"),
        (["--try", "lr=1,2", "--trials", "0"], "--trials must be at least 1"),
        (["--try", "lr=1,2", "--seeds", "0"], "--seeds must be 1 to 100"),
        (["--try", "lr=1,2", "--seeds", "x"], "--seeds must be a number"),
        (["--try", "lr=1,2", "--seeds", "3,3"], "one twice"),
        (["--try", "lr=1,2", "--budget", "5cows"], "--budget must be a number and its unit"),
        (["--try", "lr=1,2", "--seed", "3"], "--seed is the sweep's own"),
        (
            ["--try", "lr=1,2", "--output", "x"],
            "of other tools; here it is --out",
        ),
        (["--try", "lr=1,2", "--data.batch_sise=4"], "unrecognized arguments"),
        (["--resume", "nowhere"], "is no sweep"),
        (["--resume", "nowhere", "--try", "lr=1"], "goes on with the sweep's own options"),
        (["--space", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ],
)
def test_wrong_options_are_refused_in_a_line(words, message, stand_in, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, *(() if "--resume" in words else ("--out", str(tmp_path / "s")))])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["optuna", "sklearn"])
def test_a_missing_package_is_said_before_anything_is_trained(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        command, "find_spec", lambda module: None if module == name else find_spec(module)
    )
    with pytest.raises(SystemExit, match="2"):
        main(["--try", "growth_rate=4,8", "--out", str(tmp_path / "out")])
    package = {"sklearn": "scikit-learn"}.get(name, name)
    expected = f'a sweep needs {package}; pip install "densenet-backbones[tune]"'
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_with_files_and_a_damaged_plan_are_refused(stand_in, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("format: 1\nknobs: {lr: [1]}\nwords: 3\nseeds: []\n")
    for words, message in (
        (["--try", "lr=1", "--out", str(tmp_path)], "already holds files"),
        (["--resume", str(tmp_path)], "is damaged"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


def test_plans_come_back_from_their_file(tmp_path):
    knobs = tuple(map(parse_knob, ("a=1,none", "b=[1, 2],[3]", "c=1e-4..1:log", "d=8..64:step=8")))
    plan = SweepPlan(("--data", "x y"), knobs, 7, (0, 4), "tpe", "median", 3, True)
    plan.save(tmp_path)
    assert read_plan(tmp_path) == plan


def test_fronts_hold_what_nothing_beats():
    points = [
        Point({"a": name}, {0: value}, {"macs": cost})
        for name, value, cost in (("x", 0.5, 1), ("y", 0.4, 2), ("z", 0.7, 3), ("w", 0.5, 1.5))
    ]
    assert [p.params["a"] for p in find_front(points, "macs")] == ["x", "z"]
    assert find_front(points, "parameters") == []
    several = [*points, Point({"a": "v"}, {0: 0.3, 1: 0.3})]
    plan = SweepPlan((), (parse_knob("a=x,y,z,w,v"),), 5, (0, 1), "grid")
    assert choose_best(several, plan).params == {"a": "v"}, "one seed alone may be lucky"
    assert gather_points([]) == [] and choose_best([], plan) is None


def test_values_of_a_knob_are_compared_between_trials_that_differ_in_nothing_else():
    qualities = {(8, 0): {0: 0.5, 1: 0.7}, (8, 4): {0: 0.4, 1: 0.5}, (12, 0): {0: 0.6, 2: 0.9}}
    points = [Point({"k": k, "b": b}, values) for (k, b), values in qualities.items()]
    assert list_differences(points, "b") == [(4, pytest.approx([-0.1, -0.2]))]
    assert list_differences(points, "k") == [(8, pytest.approx([-0.1]))]
    assert list_differences(points[:1], "k") == []


@given(st.lists(st.text("ab_0.±", min_size=1, max_size=40), min_size=6, max_size=30))
def test_wide_tables_cut_no_number(cells):
    printed = format_plain([cells, cells], "t", 80)
    last = printed.splitlines()[-1]
    assert "".join(last.split()) == "".join("".join(cells).split())


@pytest.mark.long
def test_a_killed_sweep_goes_on_where_it_was(stand_in, tmp_path, capsys):
    out = tmp_path / "s"
    process = start_sweep(tmp_path / "said", *GRID, "--out", out, seconds="0.5")
    wait_for((out / "trials/0001/checkpoints/last.ckpt").is_file)
    process.kill()
    process.join()
    # Its training is an orphan now, and is killed in one half of the cases: both go on.
    orphan = int((out / "trials/0001.pid").read_text())
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: is_dead(orphan))
    main(["--resume", str(out)])
    assert len(values_of(out)) == 4, capsys.readouterr().out
    text = (out / "trials/0001.txt").read_text()
    assert text.count("begins") == 2 and "--resume" in text
    whole = tmp_path / "whole"
    main([*GRID, "--out", str(whole)])
    assert values_of(whole) == values_of(out)


@pytest.mark.long
def test_ctrl_c_stops_in_order(stand_in, tmp_path):
    out = tmp_path / "s"
    process = start_sweep(tmp_path / "said", *GRID, "--out", out, seconds="0.5")
    wait_for((out / "trials/0000/checkpoints/last.ckpt").is_file)
    os.kill(process.pid, signal.SIGINT)
    process.join(300)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 130 and "Stopped" in said and "Traceback" not in said
    assert rows_of(out)[0]["state"] == "running"
    main(["--resume", str(out)])
    assert len(values_of(out)) == 4
    assert "--resume" in (out / "trials/0000.txt").read_text()


class _Interrupting:
    """Interrupts the process while Python frees it, where exceptions are ignored."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def usual_interrupts():
    """Ctrl-C as Python has it: background processes of a shell ignore it, tests among them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.usefixtures("stand_in", "usual_interrupts")
def test_ctrl_c_while_an_object_is_freed_counts(tmp_path, monkeypatch, ends):
    monkeypatch.setenv("STAND_IN_SECONDS", "0.2")
    (tmp_path / "trials").mkdir()
    looks = []

    def watch(values):
        looks.append(len(values))
        if len(looks) == 1:
            _Interrupting()
        return ends

    with pytest.raises(KeyboardInterrupt):
        trial.train_trial(trial.Place(tmp_path, 0), ["--seed=0"], watch)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.long
def test_two_workers_share_the_trials(tmp_path):
    out, gate = tmp_path / "s", tmp_path / "gate"
    texts = [tmp_path / "first", tmp_path / "second"]
    first = start_sweep(texts[0], *GRID, "--seeds", "3", "--out", out, gate=gate)
    wait_for((out / "sweep.yaml").is_file)
    second = start_sweep(texts[1], "--resume", out, gate=gate)
    wait_for(lambda: len(list(out.glob("trials/*.pid"))) == 2)
    gate.touch()
    for worker in (first, second):
        worker.join(300)
    texts = [text.read_text() for text in texts]
    assert [worker.exitcode for worker in (first, second)] == [0, 0], texts
    # Each trial by one of them, and both had some.
    assert len(values_of(out)) == 12
    assert all("\ntrial " in text for text in texts), texts
    assert sum(text.count("\ntrial ") for text in texts) == 12


@pytest.mark.long
def test_real_trainings_and_the_winner_s_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "draw_sweep", lambda *args: [])
    args = {**DETECTOR_ARGS, "backbone_kwargs": {"block_config": [1, 1, 1, 1]}}
    main(
        [
            *("--config", "quickstart", "--data.scenes", "{train: 12, val: 4}", "--workers", "0"),
            *("--batch-size", "4", "--model.args", json.dumps(args), "--budget", "2steps"),
            *("--try", "growth_rate=4,6", "--evaluations", "1", "--out", "s"),
        ]
    )
    rows = rows_of("s")
    assert [row["state"] for row in rows] == ["complete"] * 2, capsys.readouterr().out
    sizes = [
        int(row["parameters"]) for row in sorted(rows, key=lambda r: r["model.args.growth_rate"])
    ]
    assert sizes[0] < sizes[1] and all(float(row["step_cpu_seconds"]) > 0 for row in rows)
    assert int(rows[0]["kept_bytes"]) > 0 and float(rows[0]["macs"]) > 0
    command = shlex.split(json.loads(Path("s/sweep.json").read_text())["best"]["command"])
    assert command[:2] == ["densenet", "train"]
    done = start_saying(tmp_path / "said", densenet, [*command[1:], "--dry-run"])
    done.join()
    said = (tmp_path / "said").read_text()
    assert done.exitcode == 0 and "Dry run done" in said, said
