"""A run that is killed at any instant of its writing goes on bit by bit as if it had not been.

TMPDIR is on another file system where there is one: Lightning's own checkpoints are copied from it.
"""

import os
import random
import tempfile
from pathlib import Path

import pytest
from killed_runs import FILES, KINDS, KilledRuns

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
]


@pytest.fixture(scope="module")
def temporary():
    """A folder on another file system than the runs, where there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize(("command", "workers"), [("train_det", 2), ("train_seg", 0)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    command, workers, tiny_scenes, temporary, tmp_path
):
    runs = KilledRuns(command, workers, tiny_scenes, tmp_path, temporary)
    chance = random.Random(f"{command} {workers}")
    stops = [{"instant": (kind, chance.randint(1, FILES))} for kind in KINDS]
    stops += [{"seconds": chance.uniform(0, runs.seconds)}]
    killed = [runs.kill_and_resume(stop)[0] for stop in stops]
    assert sum(killed) >= len(stops) // 2
