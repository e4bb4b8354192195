"""The early end of a run: after evaluations that brought nothing, resumed or not."""

import json

import pytest
from recorded_runs import Recorder, interrupt, last, recorded
from tiny_runs import differences, training_arguments

from densenet_backbones.training.cli import train_det

pytestmark = pytest.mark.usefixtures("empty_figures")

STILL = ("--model.optimizer.lr", "0", "--patience", "2")  # nothing is learned, nothing gets better


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_scenes, tmp_path, capsys):
    def train(name, stop=None, *more):
        arguments = training_arguments(
            tiny_scenes, *STILL, "--run-dir", str(tmp_path / name), *more, epochs=9
        )
        return recorded(train_det, arguments, Recorder(stop))

    train("whole")
    assert "Ended early, after epoch 3: 2 evaluations brought no better AP" in (
        capsys.readouterr().out
    )
    assert train("parts", ("train_epoch_start", 3, interrupt))[0] == 130
    stopped = json.loads((tmp_path / "parts/summary.json").read_text())
    assert stopped["ended"] == "stopped by Ctrl-C" and stopped["steps_done"] == 6
    train("parts", None, "--resume")
    assert last(tmp_path / "whole")["global_step"] == 9
    assert differences(last(tmp_path / "whole"), last(tmp_path / "parts")) == []
    summary = json.loads((tmp_path / "parts/summary.json").read_text())
    assert summary["ended"] == "ended early (patience)"
    assert [(e["epoch"], e["step"]) for e in summary["evaluations"]] == [(1, 3), (2, 6), (3, 9)]
    assert summary["time"]["wall_seconds"] > stopped["time"]["wall_seconds"]
    # One that goes on to its last epoch does not say that it ended early.
    capsys.readouterr()
    train("parts", None, "--resume", "--patience", "9", "--epochs", "4")
    assert "Ended early" not in capsys.readouterr().out
