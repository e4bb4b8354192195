"""The table of where a training's time went."""

import json
import re
import time

import pytest
import torch
from tiny_runs import PYRAMID_ARGS, files_below, instance_arguments, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.training import profiling
from densenet_backbones.training.cli import train_det, train_seg
from densenet_backbones.training.profiling import PARTS, PartsProfiler

pytestmark = pytest.mark.usefixtures("empty_figures")


def profile_of(folder, name="profile"):
    """The parts of a run, their shares checked against the printed table."""
    found = json.loads((folder / f"{name}.json").read_text())
    parts = found["parts"]
    assert list(parts) == list(PARTS)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(found["seconds"])
    rows = re.findall(
        r"^ +(\S.*?) +[\d.]+ +([\d.]+)% *$", (folder / f"{name}.txt").read_text(), re.M
    )
    assert [row[0] for row in rows] == [name for name, part in parts.items() if part["seconds"]]
    assert sum(float(row[1]) for row in rows) == pytest.approx(100, abs=1)
    return {name: part["seconds"] for name, part in parts.items()}


@pytest.mark.long
def test_a_profiled_training_says_where_its_time_went(tiny_scenes, tmp_path):
    run, more = tmp_path / "run", ("--run-dir", str(tmp_path / "run"), "--profile")
    began = time.perf_counter()
    train_det(training_arguments(tiny_scenes, *more, "--trainer.gradient_clip_val", "1", epochs=1))
    seconds = profile_of(run)
    assert all(seconds.values()), seconds  # DSOD has every part
    assert sum(seconds.values()) < time.perf_counter() - began
    assert "Where the time went" in (run / "log.txt").read_text()
    assert "profile: false" in (run / "config.yaml").read_text()  # of a run like it
    before = (run / "profile.json").read_bytes()
    train_det(training_arguments(tiny_scenes, *more, "--resume", epochs=2))
    assert all(profile_of(run, "profile_from_step_3").values())
    assert (run / "profile.json").read_bytes() == before


@pytest.mark.long
def test_torchvisions_detectors_have_the_same_parts(tiny_scenes, tmp_path):
    run = tmp_path / "run"
    given = ("--run-dir", str(run), "--profile")
    args = {**PYRAMID_ARGS, "score_thresh": 0.0}
    train_det(instance_arguments(tiny_scenes, "retinanet_fpn", *given, args=args, epochs=1))
    seconds = profile_of(run)
    assert all(seconds.values()), seconds


@pytest.mark.long
def test_segmentation_has_what_there_is_of_them(tiny_masks, tmp_path):
    run = tmp_path / "run"
    train_seg(segmentation_arguments(tiny_masks, "--run-dir", str(run), "--profile", epochs=1))
    seconds = profile_of(run)
    assert {part for part, time in seconds.items() if not time} == {profiling.TARGETS}, seconds


def test_a_training_as_usual_is_not_profiled(tiny_run):
    assert not [name for name in files_below(tiny_run) if "profile" in name]


def test_each_moment_belongs_to_the_innermost_part(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: clock[0])
    profiler = PartsProfiler()

    def passes(seconds):
        clock[0] += seconds

    profiler.start("never counted")
    with profiler.running(torch.device("cpu")):
        passes(1)
        with profiler.profile("[LightningModule]Task.optimizer_step"):
            passes(2)
            with profiler.profile("[Strategy]SingleDeviceStrategy.training_step"):
                passes(0.5)
                profiler.open("model.backbone.forward", profiling.BACKBONE)
                passes(4)
                profiler.stop("model.backbone.forward")
            with profiler.profile("[Strategy]SingleDeviceStrategy.backward"):
                passes(8)
        with profiler.profile("[Strategy]SingleDeviceStrategy.validation_step"):
            passes(16)
            profiler.open("model.backbone.forward", profiling.BACKBONE)
            profiler.open("left open by an exception", profiling.LOSS)
            passes(32)
            profiler.open("model.detections", profiling.SELECTION)
            passes(64)
        passes(128)
    passes(1000)
    found = {part: seconds for part, (seconds, _) in profiler.shares().items() if seconds}
    assert found == {
        profiling.REST: 129.5,
        profiling.OPTIMIZER: 2,
        profiling.BACKBONE: 4,
        profiling.BACKWARD: 8,
        profiling.EVALUATED: 48,
        profiling.SELECTION: 64,
    }
    assert sum(share for _, share in profiler.shares().values()) == pytest.approx(1)


def test_methods_are_as_before_after_a_profile(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Identity()
            self.forward = self.twice = lambda x: 2 * self.backbone(x)

    task = torch.nn.Module()
    task.model = Model()
    own, profiler = task.model.forward, PartsProfiler()
    with profiler.running(torch.device("cpu")), profiling.ExitStack() as until_the_end:
        for place, part in profiling.PLACES:
            profiling.time_method(task, place, part, profiler, until_the_end)
        assert task.model(torch.ones(2)).tolist() == [2, 2]
    assert task.model.forward is own and "forward" not in vars(task.model.backbone)
    timed = {action for _, action in profiler.seconds}
    assert timed == {"model.forward", "model.backbone.forward", profiling.REST}


def test_one_profiler_is_enough(refused_command, tiny_scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = training_arguments(tiny_scenes, "--profile", "--trainer.profiler", "simple")
    code, line = refused_command(train_det, *given)
    assert code == 2 and "--profile and trainer.profiler are both profilers" in line
