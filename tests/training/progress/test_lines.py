"""What a run says while it trains: when it will end, where it is, within 80 columns."""

import io
import re
from datetime import datetime

import pytest
from rich.console import Console
from tiny_runs import training_arguments

from densenet_backbones.training.cli import train_det
from densenet_backbones.training.progress import lines
from densenet_backbones.training.progress.clock import RunClock, format_duration, format_end

pytestmark = pytest.mark.usefixtures("empty_figures")


class Time:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_the_estimate_follows_the_steps_and_evaluations_that_were_timed():
    time = Time()
    clock = RunClock(time)
    clock.mark()
    for seconds in (50, 5, 5, 2, 2, 2):  # the first three are slow, and not of the rest's kind
        time.seconds += seconds
        clock.add_step(4)
    assert clock.step_seconds == 2 and clock.images_per_second == 2
    guess = clock.estimate(10, 1, 12)
    assert 20 < guess < 20 + 12 * 66 / 24
    clock.mark()
    time.seconds += 7
    clock.add_evaluation()
    time.seconds += 2
    clock.add_step(4)
    assert clock.estimate(10, 3, 12) == pytest.approx(10 * 2 + 3 * 7)
    assert clock.passed == 75


def test_times_as_people_say_them():
    said = [format_duration(s) for s in (4.4, 59.6, 720, 7800, 60 * 60 * 76)]
    assert said == ["4 s", "1 min", "12 min", "2 h 10 min", "3 d 4 h"]
    noon = datetime(2026, 11, 28, 12, 0)
    assert format_end(3600, noon) == "13:00"
    assert format_end(86400, noon) == "Sun 29 Nov 12:00"


def test_a_run_says_where_it_is_and_when_it_ends(tiny_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lines, "LINE_EVERY", 0.0)
    monkeypatch.setattr(lines, "STEPS_KNOWN", 2)
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.progress.rich_progress.get_console", lambda: console
    )
    run = tmp_path / "run"
    bar = ("--trainer.enable_progress_bar", "true", "--run-dir", str(run))
    train_det(training_arguments(tiny_scenes, *bar))
    log = (run / "log.txt").read_text()
    assert re.search(r"^About \d+ s for the whole run at [\d.]+ images/s; ends about ", log, re.M)
    line = r"^epoch (\d)/2  step +(\d)  loss [\d.]+  lr \S+  [\d.]+ images/s"
    steps = re.findall(line, log, re.M)
    assert steps == [("1", "1"), ("1", "2"), ("1", "3"), ("2", "4"), ("2", "5"), ("2", "6")]
    evaluated = re.findall(r"^epoch (\d)/2 .* AP [\d.]+  AP50 [\d.]+  (ends|after) ", log, re.M)
    assert evaluated == [("1", "ends"), ("2", "after")]
    # With a bar on the terminal the minutes' lines are the log's alone.
    assert "images/s  ends" not in capsys.readouterr().out
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    rows = [row for row in re.split(r"[\r\n]+", drawn) if row.strip()]
    assert "Epoch 1/2" in drawn and "Epoch 0" not in drawn
    going_on = [row for row in rows if not row.startswith(("Epoch ", "Validation "))]
    assert going_on == []
    assert any("loss: " in row and "AP: " in row for row in rows)
