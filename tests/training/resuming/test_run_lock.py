"""One process writes in a run's folder; the lock of a dead one stands in nobody's way."""

import json
import multiprocessing
import os
import platform
import signal
import time

import pytest
from tiny_runs import files_below, training_arguments

from densenet_backbones.training import cli
from densenet_backbones.training.resuming import lock
from densenet_backbones.training.resuming.lock import hold_run_folder, release_run_folders
from densenet_backbones.training.run_folder import HOLDER, LOCK, RunFolderError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    release_run_folders()


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds a folder; returns the process."""
    started = []

    def start(folder, is_new=False):
        ready = multiprocessing.get_context("fork").Event()

        def hold():
            hold_run_folder(folder, is_new)
            ready.set()
            time.sleep(60)

        process = multiprocessing.get_context("fork").Process(target=hold)
        process.start()
        started.append(process)
        assert ready.wait(20)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_held_folder_is_refused_with_the_process_that_holds_it(holder, tmp_path):
    process = holder(tmp_path)
    who = f"process {process.pid} on {platform.node()}, since 2"
    with pytest.raises(RunFolderError, match=rf"{tmp_path} is in use by {who}.* \(--run-dir\)"):
        hold_run_folder(tmp_path)
    process.kill()
    process.join()
    hold_run_folder(tmp_path)  # a dead process holds nothing
    hold_run_folder(tmp_path)  # the one that holds it may ask again
    assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    release_run_folders()
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_workers_that_outlive_a_killed_run_are_waited_for(holder, tmp_path):
    """They have its lock open, and end seconds after it."""
    worker = holder(tmp_path)
    dead = multiprocessing.get_context("fork").Process(target=int)
    dead.start()
    dead.join()
    state = json.loads((tmp_path / HOLDER).read_text()) | {"process": dead.pid}
    (tmp_path / HOLDER).write_text(json.dumps(state))
    end = multiprocessing.get_context("fork").Process(
        target=lambda: (time.sleep(0.5), os.kill(worker.pid, signal.SIGKILL))
    )
    end.start()
    hold_run_folder(tmp_path)
    end.join()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"process": "x"}', b"\xff"])
def test_a_damaged_note_of_the_holder_is_no_obstacle(content, holder, tmp_path):
    (tmp_path / HOLDER).write_bytes(content)
    hold_run_folder(tmp_path)
    release_run_folders()
    holder(tmp_path)
    (tmp_path / HOLDER).write_bytes(content)
    with pytest.raises(RunFolderError, match="is in use by "):
        hold_run_folder(tmp_path)


def test_a_new_run_does_not_write_where_another_has_just_ended(holder, tmp_path):
    hold_run_folder(tmp_path / "run", is_new=True)
    release_run_folders()
    hold_run_folder(tmp_path / "run", is_new=True)  # refused before it wrote anything
    release_run_folders()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(RunFolderError, match="run is in use by another process"):
        hold_run_folder(tmp_path / "run", is_new=True)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    class Unsupported(lock.FileLock):
        def acquire(self, *args, **options):
            raise NotImplementedError("no locks")

    monkeypatch.setattr(lock, "FileLock", Unsupported)
    hold_run_folder(tmp_path)
    assert f"{tmp_path}: cannot be locked here (no locks)" in capsys.readouterr().out


def test_neither_a_new_run_nor_a_resume_takes_a_held_folder(
    holder, tiny_run, tiny_scenes, tmp_path, capsys
):
    import shutil

    shutil.copytree(tiny_run, tmp_path / "old")
    for name, more in (("old", ("--resume",)), ("new", ())):
        folder = tmp_path / name
        holder(folder)
        before = files_below(folder)
        with pytest.raises(SystemExit) as end:
            cli.train_det(training_arguments(tiny_scenes, "--run-dir", str(folder), *more))
        assert end.value.code == 2
        assert f"error: {folder} is in use by process" in capsys.readouterr().err
        assert files_below(folder) == before
