"""No small file takes much memory or time: each is read in a process of its own, with limits."""

import json
import os
import subprocess
import sys

import pytest
from hostile_inputs import MEGABYTES, READ, REFUSED, SECONDS
from locations import PROJECT


@pytest.fixture(scope="module")
def results():
    """What became of each case, read within the limits."""
    support = PROJECT / "tests" / "support" / "hostile"
    done = subprocess.run(
        [sys.executable, str(support / "hostile_inputs.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_files_are_refused_within_bounds(case, results):
    what = results[case]
    assert what.startswith("refused: "), f"{what} ({MEGABYTES} MB more, {SECONDS} s)"
    assert len(what) < 1500


@pytest.mark.parametrize("case", READ)
def test_large_files_are_read_within_bounds(case, results):
    assert results[case] == "read", f"{results[case]} ({MEGABYTES} MB more, {SECONDS} s)"
