"""What a training sets in its own process: waits of threads, and memory that is freed."""

import os
import platform
import subprocess
import sys

import pytest

from densenet_backbones.training.cli import train_det


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (None, None, "10000"),
        ("GOMP_SPINCOUNT", "7", "7"),
        ("OMP_WAIT_POLICY", "active", None),
    ],
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(name, value, expected, monkeypatch):
    for known in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(known, "")
        monkeypatch.delenv(known)
    if name:
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train_det(["--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected


FREES = """
import resource, sys
from densenet_backbones.training import cli
try:
    cli.train_det(["--help"])
except SystemExit:
    pass
import torch
def count_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(2**24)  # 64 MiB
for _ in range(10):
    step()
before = count_pages()
for _ in range(5):
    step()
print("pages", count_pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize("tuned", [False, True])
def test_freed_memory_is_kept_for_the_next_step_unless_it_is_tuned(tuned):
    own = {"MALLOC_TRIM_THRESHOLD_": "131072"} if tuned else {}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FREES],
        env={**environment, **own},
        capture_output=True,
        text=True,
        check=True,
    )
    pages = int(done.stdout.rsplit(maxsplit=1)[1])
    # Huge pages hold 2 MiB: 32 of them are in a tensor.
    assert pages >= 100 if tuned else pages < 50
