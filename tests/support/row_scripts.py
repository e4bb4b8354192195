"""Runs the scripts that make the README's tables."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from locations import PROJECT


def run_script(name, *arguments, folder, flags=""):
    """The finished process of ``tools/NAME``, run in a folder."""
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [str(PROJECT / "tools" / name), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PATH": paths, "FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )


def rows_of(name, *arguments, folder, tool, flags=""):
    """Run folder -> arguments of the training of each row."""
    shown = run_script(name, "-n", *arguments, folder=folder, flags=flags)
    assert shown.returncode == 0, shown.stderr
    commands = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert all(words[1].endswith(f"tools/{tool}") for words in commands)
    return {words[words.index("--run-dir") + 1]: words[2:] for words in commands}
