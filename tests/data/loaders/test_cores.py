"""Cores that a process may use: of its affinity and its container's limit."""

import os

import pytest

from densenet_backbones.data.loaders.cores import count_cores

HERE = "0::/app.slice/job\n"
FIRST_VERSION = "5:memory:/job\n4:cpu,cpuacct:/job\n"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)


def count(folder, own, files):
    (folder / "own").write_text(own)
    for name, text in files.items():
        file = folder / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return count_cores(folder / "tree", folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (HERE, {}, 8),
        (HERE, {"app.slice/job/cpu.max": "max 100000\n"}, 8),
        (HERE, {"app.slice/job/cpu.max": "200000 100000\n"}, 2),
        (HERE, {"app.slice/job/cpu.max": "150000 100000\n"}, 2),
        (HERE, {"app.slice/job/cpu.max": "20000 100000\n"}, 1),
        (HERE, {"app.slice/job/cpu.max": "3200000 100000\n"}, 8),
        (HERE, {"app.slice/cpu.max": "300000 100000", "app.slice/job/cpu.max": "max 100000"}, 3),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/../host\n", {"cpu.max": "400000 100000\n"}, 4),
        (HERE, {"cpu.max": "garbage\n"}, 8),
        (HERE, {"cpu.max": "100000 0\n"}, 8),
        ("garbage\n", {"cpu.max": "100000 100000\n"}, 8),
        (
            FIRST_VERSION,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            FIRST_VERSION,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "500000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
    ],
)
def test_a_limit_counts_where_it_is_below_the_affinity(tmp_path, own, files, expected):
    assert count(tmp_path, own, files) == expected


def test_an_affinity_counts_and_missing_files_do_not(tmp_path, monkeypatch):
    assert count_cores(tmp_path / "no", tmp_path / "nothing") == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert count_cores(tmp_path / "no", tmp_path / "nothing") == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores(tmp_path / "no", tmp_path / "nothing") == 1
