"""Trainings in processes of their own, which are killed at a chosen instant of their writing."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from recorded_runs import EPOCHS, STEPS, last, metrics
from tiny_runs import differences, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training.arguments import is_whole_config

KINDS = ("write", "flush", "before renaming", "after renaming")
FILES = 8 + 3 * EPOCHS * STEPS
"""About as many files are written by a run: at its start, and by each step."""
STARTED = "config.yaml"
"""The first file of a run."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["densenet_backbones.training.running"])


def _kill_at(what, count):
    """Have this process killed at the n-th time that a file is written, flushed or renamed."""
    left = [count]

    def is_time():
        left[0] -= 1
        return left[0] == 0

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    write, flush, replace = Path.write_bytes, os.fsync, Path.replace

    def write_half(path, content):
        if is_time():
            write(path, bytes(content)[: len(content) // 2])
            kill()
        return write(path, content)

    def kill_instead(*arguments):
        if is_time():
            kill()
        return (flush if what == "flush" else replace)(*arguments)

    def replace_and_kill(path, target):
        replace(path, target)
        if is_time():
            kill()

    if what == "write":
        Path.write_bytes = write_half
    elif what == "flush":
        os.fsync = kill_instead
    else:
        Path.replace = kill_instead if what == "before renaming" else replace_and_kill


def _train(command, arguments, temporary, output, instant):
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    # Loader workers of this process are its own, and end with it, as in a run of a command.
    multiprocessing.set_start_method("fork", force=True)
    import torch

    from densenet_backbones.training import callbacks, cli, running

    torch.set_num_threads(1)
    callbacks.SAVE_EVERY = timedelta(0)  # a checkpoint a step
    running.report.report_results = lambda *args: None
    if instant:
        _kill_at(*instant)
    getattr(cli, command)(arguments)


def train_in_process(command, arguments, temporary, output, instant=None, seconds=None, since=None):
    """Run a training to its end, to the instant of a kill, or for a time.

    Args:
        command: Function of the command line, by name.
        arguments: Its arguments.
        temporary: TMPDIR of the process.
        output: File of what it prints.
        instant: What is being done, and the how manieth time, when it is killed.
        seconds: After which it is killed.
        since: File from whose appearance they are counted.

    Returns:
        Exit code, negative for a signal.
    """
    process = CONTEXT.Process(target=_train, args=(command, arguments, temporary, output, instant))
    process.start()
    if seconds is not None:
        while since and process.is_alive() and not since.exists():
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
    process.join(600)  # of a machine that has much else to do
    assert process.exitcode is not None, "the training does not end"
    return process.exitcode


def check_files(run):
    """Whatever was written is whole, and nothing else has a final name."""
    for file in run.rglob("*"):
        if file.suffix == ".ckpt":
            read_checkpoint(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.name == "config.yaml":
            assert is_whole_config(file)
        elif file.name == "metrics.csv":
            assert file.read_bytes().endswith(b"\n")


def measure(run):
    """Seconds from a run's first file to its last checkpoint."""
    started, ended = (run / STARTED).stat(), (run / "checkpoints/last.ckpt").stat()
    return ended.st_mtime - started.st_mtime


class KilledRuns:
    """Runs of one command that are killed and resumed, beside one that is not.

    Args:
        command: "train_det" or "train_seg".
        workers: Of the loader.
        scenes: Generated data of few images, in COCO's layout and in VOC's.
        folder: Of the runs.
        temporary: Their TMPDIR.

    Attributes:
        seconds: That the fastest whole run took so far, imports left out.
    """

    def __init__(self, command, workers, scenes, folder, temporary):
        self.command, self.workers, self.folder, self.temporary = (
            command,
            workers,
            folder,
            temporary,
        )
        self.scenes, self.count = scenes, 0
        started = time.monotonic()
        assert self.train(folder / "whole") == 0, self.said
        self.seconds = time.monotonic() - started

    @property
    def said(self):
        return (self.folder / "said.txt").read_text()

    def train(self, run, *more, **stop):
        if self.command == "train_det":
            make, data = training_arguments, self.scenes
        else:
            make, data = segmentation_arguments, self.scenes / "VOC"
        options = ("--data.num_workers", str(self.workers), "--run-dir", str(run), *more)
        arguments = make(data, *options, epochs=EPOCHS)
        output = self.folder / "said.txt"
        stop |= {"since": run / STARTED} if "seconds" in stop else {}
        return train_in_process(self.command, arguments, self.temporary, output, **stop)

    def kill_and_resume(self, stop):
        """Kill a run, and check what it left and how it goes on.

        Args:
            stop: `instant` or `seconds` of `train_in_process`.

        Returns:
            Whether it was killed before its end, and whether there was a checkpoint by then.
        """
        self.count += 1
        run, whole = self.folder / str(self.count), self.folder / "whole"
        is_killed = self.train(run, **stop) == -signal.SIGKILL
        if is_killed:
            check_files(run)
        else:
            self.seconds = min(self.seconds, measure(run))
        has_checkpoint = any((run / "checkpoints").glob("*.ckpt"))
        if not has_checkpoint:  # nothing to go on from
            shutil.rmtree(run, ignore_errors=True)
        assert self.train(run, *(("--resume",) if has_checkpoint else ())) == 0, (stop, self.said)
        assert differences(last(run), last(whole)) == [], stop
        assert metrics(run) == metrics(whole), stop
        assert not list(run.rglob("*.draft"))
        check_files(run)
        left = [file for file in self.temporary.iterdir() if file.suffix == ".ckpt"]
        assert not left, (stop, left)
        return is_killed, has_checkpoint
