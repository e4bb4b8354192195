"""Trainings in processes of their own, which are killed at a chosen instant of their writing."""

import multiprocessing
import os
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["densenet_backbones.training.cli"])


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

    from densenet_backbones.training import callbacks, cli

    torch.set_num_threads(1)
    callbacks.SAVE_EVERY = timedelta(0)  # a checkpoint a step
    cli.report.report_results = lambda *args: None
    if instant:
        _kill_at(*instant)
    getattr(cli, command)(arguments)


def train_in_process(command, arguments, temporary, output, instant=None, seconds=None):
    """Run a training to its end, to the instant of a kill, or for a time.

    Args:
        command: Function of the command line, by name.
        arguments: Its arguments.
        temporary: TMPDIR of the process.
        output: File of what it prints.
        instant: What is being done, and the how manieth time, when it is killed.
        seconds: After which it is killed.

    Returns:
        Exit code, negative for a signal.
    """
    process = CONTEXT.Process(target=_train, args=(command, arguments, temporary, output, instant))
    process.start()
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    process.join(120)
    assert process.exitcode is not None, "the training does not end"
    return process.exitcode
