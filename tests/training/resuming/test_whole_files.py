"""Files of a run are whole at every moment, and half ones of old never stand in its way."""

import json
import os
import shutil
import stat
import sys
from contextlib import contextmanager

import pytest
from long_cases import first_now
from recorded_runs import Recorder, last, recorded
from tiny_runs import training_arguments

from densenet_backbones.training import cli
from densenet_backbones.training.arguments import is_whole_config
from densenet_backbones.training.resuming.checkpoint_files import WholeCheckpoints
from densenet_backbones.training.resuming.run_logs import ContinuedCSVLogger
from densenet_backbones.training.run_folder import (
    RunFolder,
    choose_run_folder,
    forget_run_folder,
    write_environment,
)

pytestmark = pytest.mark.usefixtures("empty_figures")

APPENDED = ("events.out.tfevents", "log.txt", ".lock")
"""Files that grow, line by line or record by record, and are readable at every length."""
_opened = []
_watched = []


def _note(event, arguments):
    if _watched and event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        writes = (mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
        if writes and path.startswith(_watched[0]):
            _opened.append(os.path.basename(path))


sys.addaudithook(_note)  # it stays for ever, and does nothing outside of the test


@contextmanager
def opened_for_writing(folder):
    _watched.append(str(folder))
    try:
        yield _opened
    finally:
        _watched.clear()


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a finished run of two epochs."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def is_appended(name):
    return name.startswith(APPENDED)


def test_no_file_is_written_under_its_name(run, tiny_scenes, tmp_path):
    """Writers in Python are seen as they open files, all others by what they do to old ones."""
    links = {file: tmp_path / str(n) for n, file in enumerate(run.rglob("*")) if file.is_file()}
    former = {file: file.read_bytes() for file in links}
    for file, link in links.items():
        os.link(file, link)
    before = os.umask(0o027)
    try:
        with opened_for_writing(run) as opened:
            cli.train_det(
                training_arguments(tiny_scenes, "--run-dir", str(run), "--resume", epochs=3)
            )
    finally:
        os.umask(before)
    written = [name for name in opened if not is_appended(name)]
    assert [name for name in written if not name.endswith(".draft")] == []
    for part in (
        "last.ckpt",
        "config_from",
        "metrics.csv",
        "metrics.json",
        "results",
        "environment.json",
        "model.safetensors",
        "table.txt",
        ".png",
        ".holder.json",
    ):
        assert any(part in name for name in written), part
    rewritten = {file.name for file, link in links.items() if not file.samefile(link)}
    assert {"last.ckpt", "metrics.csv", "environment.json", "model.safetensors"} <= rewritten
    in_place = [file for file, link in links.items() if link.read_bytes() != former[file]]
    assert [file for file in in_place if not is_appended(file.name)] == []
    assert not list(run.rglob("*.draft"))
    new = [file for file in run.rglob("*") if file.is_file() and file.name in rewritten]
    assert {stat.S_IMODE(file.stat().st_mode) for file in new if not is_appended(file.name)} == {
        0o640
    }


LENGTHS = {"half": lambda n: n // 2, "none": lambda n: 0, "all but one": lambda n: max(n - 1, 0)}


@pytest.mark.parametrize("name", first_now(LENGTHS, 1))
def test_half_files_of_old_do_not_stop_a_resume(name, run, tiny_scenes, capsys):
    for file in run.rglob("*"):
        if file.is_file() and file.name != "best.ckpt":
            os.truncate(file, LENGTHS[name](file.stat().st_size))
    arguments = training_arguments(tiny_scenes, "--run-dir", str(run), "--resume", epochs=3)
    place = arguments.index("--config")
    del arguments[place : place + 2]  # the run's own is gone on with
    code, seen = recorded(cli.train_det, arguments, Recorder())
    assert code is None and seen
    said = capsys.readouterr().out
    # Without its last line feed, the environment is still one.
    damaged = ["checkpoints/last.ckpt: "] + ["environment.json is"] * (name != "all but one")
    assert said.count("Left aside: ") == len(damaged)
    assert all(f"Left aside: {run}/{file}" in said for file in damaged)
    assert (
        f"{run}/config.yaml was damaged, and is restored from {run}/checkpoints/best.ckpt" in said
    )
    assert f"Going on from {run}/checkpoints/best.ckpt" in said
    assert is_whole_config(run / "config.yaml")
    assert last(run)["epoch"] == 2


def test_a_run_without_a_whole_checkpoint_says_which(run, tiny_scenes, capsys):
    for file in (run / "checkpoints").iterdir():
        os.truncate(file, 1000)
    arguments = training_arguments(tiny_scenes, "--run-dir", str(run), "--resume", epochs=3)
    code, _ = recorded(cli.train_det, arguments, Recorder())
    assert code == 1
    assert f"error: {run}/checkpoints/last.ckpt: " in capsys.readouterr().err


def test_a_table_cut_off_anywhere_gives_its_whole_rows(tmp_path):
    logger = ContinuedCSVLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"a": 10.5 + step, "z": step}, 100 + step)
    logger.save()
    file = tmp_path / "metrics.csv"
    text = file.read_bytes()
    whole = [{"a": str(10.5 + n), "step": str(100 + n), "z": str(n)} for n in range(3)]
    for length in range(len(text) + 1):
        file.write_bytes(text[:length])
        rows = ContinuedCSVLogger(tmp_path, until_step=1000).experiment.metrics
        assert rows == whole[: max(text[:length].count(b"\n") - 1, 0)]
    file.write_bytes(b"a,step,z\n\x00\xff,nan,1\n1,inf,2\n3,4\n5,6,7\n")
    rows = ContinuedCSVLogger(tmp_path, until_step=1000).experiment.metrics
    assert rows == [{"a": "5", "step": "6", "z": "7"}]


def test_an_environment_cut_off_anywhere_begins_anew(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    monkeypatch.setattr("densenet_backbones.training.run_folder._git_revision", lambda: None)
    write_environment(folder)
    file = tmp_path / "environment.json"
    text = file.read_bytes()
    for length in [0, 1, len(text) // 2, len(text) - 3]:
        file.write_bytes(text[:length])
        write_environment(folder)
        assert len(json.loads(file.read_text())) == 1


def test_a_config_cut_off_anywhere_is_not_taken_for_whole(tiny_run, tmp_path):
    text = (tiny_run / "config.yaml").read_text()
    own = text[: text.index("profile:")]  # of no weight: it is false in every file
    (tmp_path / "config.yaml").write_text(own)
    assert is_whole_config(tmp_path / "config.yaml")
    for length in range(0, len(own), 31):
        (tmp_path / "config.yaml").write_text(own[:length])
        assert not is_whole_config(tmp_path / "config.yaml")


def test_a_run_killed_in_its_first_evaluation_goes_on_from_its_best_weights(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    folder = choose_run_folder(str(tmp_path), "name", "last")
    forget_run_folder()
    assert folder.resume_from == tmp_path / "checkpoints" / "best.ckpt"


def test_a_full_disk_names_the_file_and_keeps_the_former(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    plugin = WholeCheckpoints("")
    plugin.save_checkpoint({"a": 1}, file)
    former = file.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"\[Errno 28\] No space left on device: '{file}'"):
        plugin.save_checkpoint({"a": 2}, file)
    assert file.read_bytes() == former
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]
