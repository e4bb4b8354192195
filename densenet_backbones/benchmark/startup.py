"""Measure what a program waits for before its first feature maps: imports, and compiling.

Each time is of a process of its own, which measures it after Python itself has started.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

import densenet_backbones.timm_models  # noqa: F401 - registers our nets
from densenet_backbones.benchmark.contenders import DEPLOYED
from densenet_backbones.benchmark.measuring import Timing, take_turns
from densenet_backbones.benchmark.report import Column, Table
from densenet_backbones.deploy import deploy

__all__ = ["compare_compilation", "compare_imports", "time_first_call"]

_PACKAGES = ("timm", "densenet_backbones")


def compare_imports(turns: int) -> Table:
    """Measure seconds of ``import timm`` and ``import densenet_backbones`` in fresh processes.

    Args:
        turns: Rounds, at least 1; this process has had the system read the files before.
    """
    programs = {
        f"import {package}": partial(
            _time_program,
            f"import time; t = time.perf_counter(); import {package}; "
            "print(time.perf_counter() - t)",
        )
        for package in _PACKAGES
    }
    title = f"import in a fresh process, {turns} turns"
    return _build_table(title, take_turns(programs, turns, uncounted=0), "")


def compare_compilation(
    net: str, size: tuple[int, int, int, int], *, turns: int, device: torch.device
) -> Table:
    """Measure seconds of the first call of timm's net and the deployed one after ``torch.compile``.

    Args:
        net: A DenseNet that timm has: ``densenet121``, ...
        size: (N, 3, H, W).
        turns: Rounds, at least 1; each takes a minute or more.
        device: Device to run on.

    Raises:
        RuntimeError: A process failed; it needs a C++ compiler on a CPU.
    """
    programs = {
        name: partial(_time_cold_call, f"{(name, net, size, str(device), torch.get_num_threads())}")
        for name in ("timm", DEPLOYED)
    }
    title = (
        f"first call of torch.compile, feature maps of {net}, {size[0]} x {size[2]}x{size[3]} "
        f"pixels, float32, {device}, fresh process, empty cache, {turns} turns"
    )
    return _build_table(
        title, take_turns(programs, turns, uncounted=0), "building the net excluded"
    )


def time_first_call(
    name: str, net: str, size: tuple[int, int, int, int], device: str, threads: int
) -> float:
    """Time a compiled net until it has made its first feature maps.

    Args:
        name: ``timm`` or ``ours deployed``.
        net: A DenseNet that timm has.
        size: (N, 3, H, W).
        device: Device to run on.
        threads: Threads of the CPU.
    """
    torch.set_num_threads(threads)
    if name == DEPLOYED:
        model = deploy(timm.create_model(f"{net}_features"))
    else:
        model = timm.create_model(net, features_only=True)
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    image = torch.randn(size, device=device).to(memory_format=torch.channels_last)
    start = time.perf_counter()
    with torch.inference_mode():
        last: Tensor = torch.compile(model)(image)[-1]
        last.sum().item()  # waits for the device
    return time.perf_counter() - start


def _time_cold_call(arguments: str) -> float:
    """Run `time_first_call` with no cache that an earlier one has filled."""
    program = f"from {__name__} import time_first_call; print(time_first_call(*{arguments}))"
    with tempfile.TemporaryDirectory() as folder:
        return _time_program(
            program,
            TORCHINDUCTOR_CACHE_DIR=folder,
            TORCHINDUCTOR_FORCE_DISABLE_CACHES="1",
            TRITON_CACHE_DIR=str(Path(folder) / "triton"),
        )


def _time_program(program: str, **environment: str) -> float:
    """Run a program and return the number that it prints last.

    Raises:
        RuntimeError: It fails.
    """
    path = os.pathsep.join(path for path in sys.path if path)  # where this one finds its packages
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"a process that was to be timed failed: {reason}")
    return float(done.stdout.split()[-1])


def _build_table(title: str, timings: tuple[Timing, ...], note: str) -> Table:
    columns = (
        *(Column(""), Column("s", ".2f", spread=True)),
        Column(f"time / {timings[0].name}", ".3f", spread=True),
    )
    rows = tuple((t.name, t.seconds, t.compute_ratios(timings[0])) for t in timings)
    return Table(title, columns, rows, note)
