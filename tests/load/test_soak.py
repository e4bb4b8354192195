"""Memory, open files and threads of a training stay what they are after the warm-up."""

import subprocess
import sys

import pytest
from locations import PROJECT


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_training_does_not_grow(task, tmp_path):
    command = [sys.executable, "tests/load/soak.py", str(tmp_path), task, "--steps", "600"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    lines = dict(line.rsplit(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    growth = {k: v for k, v in lines.items() if k.startswith(("main", "worker"))}
    assert any(name.startswith("worker 2") for name in growth)
    for name, value in growth.items():
        # A warm-up of 150 steps is short: the command's 2,000 are held to 2 %.
        assert float(value.rstrip("%")) <= (4 if name.endswith("memory") else 0), growth
