"""Programs run by a new Python: what an import loads shows only there."""

import os
import subprocess
import sys

from locations import PROJECT


def run_fresh(program: str) -> str:
    """Run a program in a new Python with the project on its path; returns what it prints."""
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
