"""Measure what a program waits for: imports, answers, a first prediction, and compiling.

Each time is of a process of its own. Imports and answers are processor time, which other programs
hardly change.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import NoReturn

import timm
import torch
from torch import Tensor
from torchvision.io import write_png

import densenet_backbones.timm_models  # noqa: F401 - registers our nets
from densenet_backbones.benchmark.contenders import DEPLOYED
from densenet_backbones.benchmark.measuring import Timing, take_turns
from densenet_backbones.benchmark.report import Column, Table
from densenet_backbones.deploy import deploy

__all__ = [
    "compare_answers",
    "compare_compilation",
    "compare_imports",
    "compare_prediction",
    "time_first_call",
]


_IMPORTS = {
    "import timm": "import timm",
    "import densenet_backbones": "import densenet_backbones",
    "both": "import densenet_backbones, timm",
}
_BASE = "import torch, torchvision"
_ANSWERED = (0, 1, 2)  # typos are measured too
_ANSWERS = {
    "densenet --help": ("--help",),
    "densenet train --help": ("train", "--help"),
    "densenet predict --help": ("predict", "--help"),
    "densenet list": ("list",),
    "densenet train nonsense": ("train", "nonsense"),
    "densenet train --model.args.growthrate 8": ("train", "--model.args.growthrate", "8"),
    "densenet train --data nowhere": ("train", "--data", "nowhere"),
    "densenet evaluate nowhere": ("evaluate", "nowhere", "--data", "nowhere"),
}


def compare_imports(turns: int) -> Table:
    """Measure processor time of ``import timm``, ours, and both, each in a fresh process.

    Args:
        turns: Rounds, at least 1; this process has had the system read the files before.
    """
    programs = {
        name: partial(_measure_process, "-c", program) for name, program in _IMPORTS.items()
    }
    title = f"import in a fresh process, processor time, {turns} turns"
    return _build_table(title, take_turns(programs, turns, uncounted=0), "Python itself included")


def compare_answers(turns: int) -> Table:
    """Measure processor time of answers to the words of a command line, in fresh processes.

    Args:
        turns: Rounds, at least 1.
    """
    programs = {"python -c pass": partial(_measure_process, "-c", "pass")}
    for name, words in _ANSWERS.items():
        command = ("-m", "densenet_backbones", *words)
        programs[name] = partial(_measure_process, *command, statuses=_ANSWERED)
    title = f"answers of the command line, processor time, {turns} turns"
    return _build_table(title, take_turns(programs, turns, uncounted=0), "Python itself included")


def compare_prediction(turns: int) -> Table:
    """Measure processor time of `predict` on one image, beside the import of its libraries.

    The model is an untrained `dsod_tiny`, whose pass on the image is in the time.

    Args:
        turns: Rounds, at least 1.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model.safetensors")
        write_png(torch.full((3, 240, 320), 90, dtype=torch.uint8), str(folder / "image.png"))
        words = ("predict", "model.safetensors", "image.png", "--device", "cpu")
        run = partial(_measure_process, "-m", "densenet_backbones", *words, folder=folder)
        programs = {
            _BASE: partial(_measure_process, "-c", _BASE),
            "densenet predict": run,
        }
        timings = take_turns(programs, turns, uncounted=0)
    title = f"prediction of one image in a fresh process, processor time, {turns} turns"
    return _build_table(title, timings, "dsod_tiny, 320x240 pixels; Python itself included")


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


def _measure_process(
    *words: str, folder: Path | None = None, statuses: Collection[int] = (0,)
) -> float:
    """Run Python with words, in a folder, and return the seconds of processor time that it took.

    Raises:
        RuntimeError: Its exit status is none of those given.
    """
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *words]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in statuses:
        _refuse_failure(done.stderr)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _refuse_failure(said: str) -> NoReturn:
    reason = said.strip().rpartition("\n")[2]
    raise RuntimeError(f"a process that was to be timed failed: {reason}")


def _write_model(file: Path) -> None:
    """Write an untrained detector as the trainings do."""
    from densenet_backbones.data.categories import Categories
    from densenet_backbones.inference.detector import DetectorSpec
    from densenet_backbones.inference.model_file import save_model

    spec = DetectorSpec("dsod_tiny", {}, Categories(("thing",), (1,)))
    save_model(file, spec, spec.build())


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
        _refuse_failure(done.stderr)
    return float(done.stdout.split()[-1])


def _build_table(title: str, timings: tuple[Timing, ...], note: str) -> Table:
    columns = (
        *(Column(""), Column("s", ".2f", spread=True)),
        Column(f"time / {timings[0].name}", ".3f", spread=True),
    )
    rows = tuple((t.name, t.seconds, t.compute_ratios(timings[0])) for t in timings)
    return Table(title, columns, rows, note)
