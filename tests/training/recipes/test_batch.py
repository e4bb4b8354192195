"""Images a step: what fits the memory, and half of it where the memory runs out."""

import json

import pytest
import yaml
from recorded_runs import last
from tiny_runs import differences, training_arguments

from densenet_backbones.training import memory_choice
from densenet_backbones.training.cli import train_det
from densenet_backbones.training.tasks.detection import DetectionTask

pytestmark = pytest.mark.usefixtures("empty_figures")

AUTO = ("--batch-size", "auto", "--model.optimizer.base_batch", "8", "--run-dir")


def test_a_run_without_memory_begins_anew_with_half(tiny_scenes, tmp_path, monkeypatch, capsys):
    whole, half = tmp_path / "whole", tmp_path / "half"
    train_det(training_arguments(tiny_scenes, "--batch-size", "2", *AUTO[2:], str(half), epochs=1))
    losses = DetectionTask.losses

    def run_out(task, batch):
        if len(batch) > 2 and task.global_step:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return losses(task, batch)

    monkeypatch.setattr(DetectionTask, "losses", run_out)
    capsys.readouterr()
    train_det(training_arguments(tiny_scenes, *AUTO, str(whole), epochs=1))
    said = capsys.readouterr().out
    assert "Out of memory: starts anew with 2 images a step" in said
    assert differences(last(whole), last(half)) == []
    assert yaml.safe_load((whole / "config.yaml").read_text())["data"]["batch_size"] == 2
    assert len(list(whole.glob("events*"))) == 1
    # A number that was typed is not changed: the run ends with a sentence.
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, "--run-dir", str(tmp_path / "x"), epochs=1))
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "out of memory at step 1 with 4 images" in error and "--batch-size 2" in error
    assert json.loads((tmp_path / "x/summary.json").read_text())["ended"].startswith("failed: ")


def test_the_batch_fits_the_budget(tiny_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = training_arguments(tiny_scenes, *AUTO[:-1], "--dry-run", epochs=1)
    for budget, batch in ((10**12, 3), (1, 2)):
        monkeypatch.setattr(memory_choice, "compute_budget", lambda *args, b=budget: b)
        train_det(arguments)
        assert f"Chosen for this machine: {batch} images a step" in capsys.readouterr().out
