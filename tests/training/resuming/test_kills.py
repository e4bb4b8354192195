"""A run that is killed at any instant of its writing goes on bit by bit as if it had not been.

TMPDIR is on another file system where there is one: Lightning's own checkpoints are copied from it.
"""

import json
import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from killed_runs import train_in_process
from recorded_runs import EPOCHS, STEPS, last, metrics
from tiny_runs import differences, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training.arguments import is_whole_config

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
]

KINDS = ("write", "flush", "before renaming", "after renaming")
FILES = 8 + 3 * EPOCHS * STEPS
"""About as many files are written by a run: at its start, and by each step."""


@pytest.fixture(scope="module")
def temporary():
    """A folder on another file system than the runs, where there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


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


@pytest.mark.parametrize(("command", "workers"), [("train_det", 2), ("train_seg", 0)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    command, workers, tiny_scenes, tiny_masks, temporary, tmp_path
):
    def train(run, *more, **stop):
        make = training_arguments if command == "train_det" else segmentation_arguments
        data = tiny_scenes if command == "train_det" else tiny_masks
        options = ("--data.num_workers", str(workers), "--run-dir", str(run), *more)
        arguments = make(data, *options, epochs=EPOCHS)
        return train_in_process(command, arguments, temporary, tmp_path / "said.txt", **stop)

    whole = tmp_path / "whole"
    assert train(whole) == 0, (tmp_path / "said.txt").read_text()
    chance = random.Random(f"{command} {workers}")
    stops = [{"instant": (kind, chance.randint(1, FILES))} for kind in KINDS]
    stops += [{"seconds": chance.uniform(0.5, 4)}]
    killed = 0
    for number, stop in enumerate(stops):
        run = tmp_path / str(number)
        if train(run, **stop) == -signal.SIGKILL:
            killed += 1
            check_files(run)
        if (run / "checkpoints").is_dir() and list((run / "checkpoints").glob("*.ckpt")):
            code = train(run, "--resume")
        else:  # nothing to go on from
            shutil.rmtree(run, ignore_errors=True)
            code = train(run)
        assert code == 0, (stop, (tmp_path / "said.txt").read_text())
        assert differences(last(run), last(whole)) == [], stop
        assert metrics(run) == metrics(whole), stop
        assert not list(run.rglob("*.draft"))
        check_files(run)
    assert killed >= len(stops) // 2
    assert not [file for file in temporary.iterdir() if file.suffix == ".ckpt"]
