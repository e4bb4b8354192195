"""Counts the cores that this process may use: of an affinity, and of a container's limit.

A container that is limited by time (`docker run --cpus`, Kubernetes' limits) sees every core of its
host, and one thread for each of them would wait most of the time. The kernel's own texts say what
the files hold: Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and
Documentation/scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["count_cores"]

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def count_cores(root: Path = _ROOT, own: Path = _OWN) -> int:
    """Return the number of cores, at least 1: a limit of 1.5 is rounded up.

    Args:
        root: Where control groups are mounted.
        own: File that names the groups of this process.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limits = [math.ceil(limit) for limit in _find_limits(root, own)]
    return max(1, min([cores, *limits]))


def _find_limits(root: Path, own: Path) -> Iterator[float]:
    """Yield the cores' worth of time that this process's groups, and those above, are given."""
    groups = (line.split(":", 2) for line in _read(own).splitlines() if line.count(":") >= 2)
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        # The second version has one tree; of the first, each controller has its own.
        tree = root / controllers if controllers else root
        folder = tree / path.strip("/")
        if ".." in folder.parts:  # a group outside of what this container sees
            folder = tree
        for above in (folder, *folder.parents):
            yield from _read_limit(above)
            if above == tree:
                break


def _read_limit(folder: Path) -> Iterator[float]:
    words = _read(folder / "cpu.max").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return
    if quota > 0 and period > 0:
        yield quota / period


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
