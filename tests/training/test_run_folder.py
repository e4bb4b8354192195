"""Where a run writes: nothing that another run wrote is ever touched."""

import csv
import json
import os

import pytest
from tiny_classifiers import classification_arguments, write_folders
from tiny_runs import training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.reporting import console
from densenet_backbones.training import running
from densenet_backbones.training.cli import train_cls, train_det, train_seg
from densenet_backbones.training.resuming.lock import remove_run_folder
from densenet_backbones.training.resuming.run_logs import ContinuedCSVLogger
from densenet_backbones.training.run_folder import (
    RunFolderError,
    choose_run_folder,
    forget_run_folder,
    write_environment,
)

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_run_folder()


def choose(*arguments):
    """One start of the program: the choice is not inherited from an earlier one."""
    forget_run_folder()
    return choose_run_folder(*arguments)


def a_run(folder, checkpoint="last.ckpt"):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / checkpoint).touch()
    return folder / "checkpoints" / checkpoint


def test_new_runs_are_numbered(here):
    assert str(choose(None, "x", None).path) == "runs/x"
    assert not (here / "runs").exists()  # chosen, not made
    a_run(here / "runs/x")
    assert str(choose(None, "x", None).path) == "runs/x-2"
    a_run(here / "runs/x-2")
    assert str(choose(None, "x", None).path) == "runs/x-3"
    (here / "runs/y").mkdir()  # empty: free
    assert str(choose(None, "y", None).path) == "runs/y"
    (here / "runs/z").touch()  # a file
    assert str(choose(None, "z", None).path) == "runs/z-2"


def test_a_folder_with_files_is_refused(here):
    (here / "mine").mkdir()
    (here / "mine/notes.txt").touch()
    with pytest.raises(RunFolderError, match=r"mine already holds files; .*--resume"):
        choose("mine", "x", None)
    assert str(choose("other", "x", None).path) == "other"


def test_last_is_that_of_the_newest_run(here):
    with pytest.raises(RunFolderError, match="nothing to resume: there is no runs/x/checkpoints"):
        choose(None, "x", "last")
    a_run(here / "runs/x")
    last = a_run(here / "runs/x-2")
    a_run(here / "runs/x-3", "best.ckpt")  # stopped before its first last.ckpt
    folder = choose(None, "x", "last")
    assert (here / folder.path, here / folder.resume_from) == (here / "runs/x-2", last)
    assert str(choose("runs/x", "other name", "last").path) == "runs/x"


def test_a_checkpoint_goes_on_in_its_own_folder(here):
    file = a_run(here / "runs/x", "best.ckpt")
    for run_dir in (None, "runs/x", str(here / "runs/x")):
        folder = choose(run_dir, "name", str(file))
        assert folder.path.resolve() == here / "runs/x"
        assert folder.resume_from == file
    assert str(choose("fork", "name", str(file)).path) == "fork"


def test_a_checkpoint_does_not_go_on_in_another_runs_folder(here):
    file = a_run(here / "runs/x")
    a_run(here / "runs/y")
    with pytest.raises(RunFolderError, match="runs/y already holds files"):
        choose("runs/y", "name", str(file))


def test_a_checkpoint_from_elsewhere_needs_a_folder(here):
    (here / "downloads").mkdir()
    (here / "downloads/model.ckpt").touch()
    with pytest.raises(RunFolderError, match=r"model.ckpt lies in no run's folder: .*--run-dir"):
        choose(None, "name", "downloads/model.ckpt")
    assert str(choose("new", "name", "downloads/model.ckpt").path) == "new"


def test_processes_that_this_one_starts_take_its_folder(here):
    assert str(choose(None, "x", None).path) == "runs/x"
    a_run(here / "runs/x")
    assert str(choose_run_folder(None, "x", None).path) == "runs/x"  # as a child would
    forget_run_folder()
    assert "runs/x" not in os.environ.values()


def test_processes_started_by_torchrun_need_a_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFolderError, match="name it with --run-dir"):
        choose(None, "x", None)
    assert str(choose("named", "x", None).path) == "named"


def test_environment_lists_every_start(here):
    folder = choose("run", "x", None)
    folder.path.mkdir()
    write_environment(folder)
    write_environment(folder)
    starts = json.loads((here / "run/environment.json").read_text())
    assert len(starts) == 2
    for name in ("started", "command", "folder", "git", "python", "platform", "processor", "cores"):
        assert starts[0][name], name
    assert starts[0]["packages"]["torch"] and starts[0]["folder"] == str(here)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_resumed_log_keeps_the_rows_before_the_step(here):
    first = ContinuedCSVLogger(here)
    for step in range(4):
        first.log_metrics({"loss": 1.5 * step}, step)
    first.log_metrics({"val/AP": 0.25}, 3)
    first.save()
    resumed = ContinuedCSVLogger(here, until_step=2)
    _ = resumed.experiment
    # at once: a run that is killed before its first row must not lose them
    assert rows(here) == [{"loss": "0.0", "step": "0"}, {"loss": "1.5", "step": "1"}]
    resumed.log_metrics({"loss": 9.0, "new": 1.0}, 2)
    resumed.save()
    assert [row["step"] for row in rows(here)] == ["0", "1", "2"]
    assert rows(here)[2] == {"loss": "9.0", "new": "1.0", "step": "2"}


def test_what_is_said_is_kept_in_the_log(here, capsys):
    console.log_to(here / "log.txt")
    console.say("first")
    console.log_to(None)
    console.say("second")
    assert (here / "log.txt").read_text() == "first\n"
    assert capsys.readouterr().out == "first\nsecond\n"


TRAININGS = {
    "detector": (train_det, training_arguments, "tiny_scenes"),
    "segmenter": (train_seg, segmentation_arguments, "tiny_masks"),
    "classifier": (train_cls, classification_arguments, "tiny_colors"),
}


@pytest.fixture
def tiny_colors(tmp_path):
    return write_folders(tmp_path / "colors")


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_run_refused_at_its_plan_leaves_its_folder_free(kind, here, request, monkeypatch, capsys):
    """So that the same command, corrected, is not refused in turn."""
    train, list_arguments, data = TRAININGS[kind]
    arguments = list_arguments(request.getfixturevalue(data), "--run-dir", "run")
    folder = here / "run"

    def refuse(*args):
        assert (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()
        raise ValueError("no plan fits")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(running, "settle_memory", refuse)
        train(arguments)
    assert "error: no plan fits" in capsys.readouterr().err
    assert not folder.exists()

    def stop(started):
        raise KeyboardInterrupt

    # Stopped before its first step; in a folder that was there already, and stays.
    folder.mkdir()
    monkeypatch.setattr(running, "fit", stop)
    with pytest.raises(SystemExit):
        train(arguments)
    assert folder.is_dir() and not list(folder.iterdir())
    # What has begun stays.
    monkeypatch.setattr(running, "fit", lambda started: started.folder.checkpoints.mkdir())
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    train(arguments)
    assert {"config.yaml", "log.txt", "checkpoints"} <= {file.name for file in folder.iterdir()}
    with pytest.raises(SystemExit):
        train(arguments)
    assert "run already holds files" in capsys.readouterr().err


def test_a_folder_of_another_process_is_not_removed(here):
    (here / "run").mkdir()
    (here / "run/log.txt").touch()
    remove_run_folder(here / "run", keep_empty=False)
    assert (here / "run/log.txt").is_file()
