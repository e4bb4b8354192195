"""Stops by signals: what several processes agree on, and a second signal that does not wait."""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.training.resuming import stopping
from densenet_backbones.training.resuming.stopping import OrderlyStop

TWO = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))


def test_a_signal_during_the_agreement_is_kept_for_the_next(monkeypatch):
    stop = OrderlyStop()
    during = [lambda: stop._note(signal.SIGTERM, None), lambda: None]
    # No process has asked for a stop when the first sum begins.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda asked, operation: during.pop(0)())
    stop.on_train_epoch_start(TWO, None)
    assert stop.received == signal.SIGTERM
    with pytest.raises(SIGTERMException):
        stop.on_train_epoch_start(TWO, None)
    assert not during


def test_a_signal_at_another_process_stops_this_one(monkeypatch):
    stop = OrderlyStop()
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda asked, operation: asked.fill_(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        stop.on_train_epoch_start(TWO, None)
    assert stop.received == signal.SIGINT


def in_a_fork(run):
    """Start a function in a forked process, with its standard error in a file beside."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        os.dup2(write, 2)
        try:
            run()
        finally:
            os._exit(77)
    os.close(write)
    return process, read


def end_of(process, read, within=20):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with os.fdopen(read) as said:
                return os.waitstatus_to_exitcode(status), said.read()
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("the process does not end")


def compute_for_minutes():
    """One call that leaves Python for long, as a step of a large network does."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@needs_fork
@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_second_signal_ends_a_process_that_is_deep_in_a_computation(number, monkeypatch):
    monkeypatch.setattr(stopping, "GRACE", 0.2)

    def run():
        with stopping.watch_signals():
            for each in stopping.SIGNALS:
                signal.signal(each, OrderlyStop()._note)
            os.write(2, b"begun\n")
            compute_for_minutes()

    process, read = in_a_fork(run)
    assert os.read(read, 6) == b"begun\n"
    os.kill(process, number)
    time.sleep(0.5)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)  # the first waits for the step
    os.kill(process, number)
    code, said = end_of(process, read)
    assert code == 128 + number
    assert said.splitlines() == [
        "Stopping in order; a second signal stops at once.",
        "Stopped at once by a second signal; what was written before is whole.",
    ]


@needs_fork
def test_a_second_signal_does_not_wait_for_what_follows_an_orderly_stop():
    def run():
        try:
            with stopping.watch_signals():
                signal.signal(signal.SIGTERM, OrderlyStop()._note)
                os.write(2, b"begun\n")
                time.sleep(1.5)
                sys.stdout = os.fdopen(os.dup(2), "w")
                sys.stdout.write("last words\n")  # waits in a buffer
                raise SystemExit(143)
        finally:
            compute_for_minutes()

    process, read = in_a_fork(run)
    assert os.read(read, 6) == b"begun\n"
    for _ in range(2):
        os.kill(process, signal.SIGTERM)
        time.sleep(0.3)
    code, said = end_of(process, read)
    assert code == 143
    assert said == "Stopping in order; a second signal stops at once.\nlast words\n"


@needs_fork
def test_workers_end_with_a_process_that_is_stopped_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(stopping, "GRACE", 0.0)

    def run():
        with stopping.watch_signals():
            signal.signal(signal.SIGTERM, OrderlyStop()._note)
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            worker.start()
            os.write(2, b"%9d\n" % worker.pid)
            compute_for_minutes()

    process, read = in_a_fork(run)
    worker = int(os.read(read, 10))
    # A signal to a worker, as Ctrl-C sends it to all of a terminal, is none to its parent.
    os.kill(worker, signal.SIGINT)
    os.kill(process, signal.SIGTERM)
    time.sleep(0.3)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.kill(process, signal.SIGTERM)
    assert end_of(process, read)[0] == 143
    wait_until_gone(worker)


def wait_until_gone(process):
    """Fail unless a process ends within 20 s: a killed one takes its time on a busy machine."""
    deadline = time.monotonic() + 20
    while not is_gone(process):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_gone(process):
    """True if a process has ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@needs_fork
def test_a_launched_process_ends_when_its_launcher_is_gone(monkeypatch):
    monkeypatch.setattr(stopping, "is_first_process", lambda: False)

    def run():
        launched = os.fork()
        if launched:
            os.write(2, b"%9d\n" % launched)
            time.sleep(60)
        with stopping.watch_signals():
            compute_for_minutes()

    launcher, read = in_a_fork(run)
    launched = int(os.read(read, 10))
    time.sleep(0.5)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_until_gone(launched)
    os.close(read)


def test_the_watch_leaves_signals_as_they_were():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    threads = threading.active_count()
    with stopping.watch_signals():
        assert threading.active_count() == threads + 1
    assert signal.set_wakeup_fd(before) == before
    deadline = time.monotonic() + 5
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)
