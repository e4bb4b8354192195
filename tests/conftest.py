"""Fixtures shared by every test."""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from locations import PROJECT
from long_cases import first_now

# albumentations asks the package index for updates at import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# No deadline an example: what takes long on a busy machine is no fault.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# Each process of `pytest -n` has a core: threads of its own would fight for the others'.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`pytest -n auto`: a process a core, at most 4, as each takes about 2 GiB."""
    return min(4, os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> None:
    """`pytest -n`: a process takes neighboring tests, and some of another's when it has none left.

    Tests of a file share its fixtures, those of a room what they import: by turns, as tests are
    handed out otherwise, every process makes and imports all of it. Another `--dist` holds.
    """
    if config.option.dist == "load":
        config.option.dist = "worksteal"


def pytest_collection_finish() -> None:
    """Garbage collections pass over the modules and thousands of tests that are there to stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Say how a process of `pytest -n` ended that did so in the middle of a test."""
    if error:
        code = node.gateway._io.popen.wait(timeout=20)
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        print(f"\n[{node.gateway.id}] ended by {how}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package and its libraries cache files in a folder of this run, not in the user's.

    The processes of `pytest -n` share it: compiled kernels and font lists are made once.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def crashes_leave_a_trace() -> Iterator[None]:
    """Lightning ends each training by setting all signals' handlers to what Python knows of.

    pytest's faulthandler is none of those, so a crash in a later computation said nothing.
    """
    find_handler = signal.getsignal
    fatal = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda n: None if n in fatal else find_handler(n))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real data sets beside the project; tests on generated data stand beside each use."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data sets beside the project")
    return folder


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated scenes in COCO and VOC layout: 12 training and 7 evaluated images of 64 pixels."""
    from densenet_backbones.data.scenes.generation import generate_scenes

    root = tmp_path_factory.mktemp("data") / "scenes"
    return generate_scenes(root, train=12, val=7, size=64, seed=0, progress=False)


@pytest.fixture(scope="session")
def tiny_run(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished training of two epochs on `tiny_scenes`; not to be written to."""
    from tiny_runs import signals_as_before, training_arguments

    from densenet_backbones.training.cli import train_det

    here = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, signals_as_before():
        patch.chdir(here)
        train_det(training_arguments(tiny_scenes))
    return here / "runs" / "quickstart"


@pytest.fixture(scope="session")
def tiny_masks(tiny_scenes: Path) -> Path:
    """The same scenes in VOC's layout, with masks of seven classes."""
    return tiny_scenes / "VOC"


@pytest.fixture(scope="session")
def tiny_segmentation(tiny_masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished segmentation training on `tiny_masks`; not to be written to."""
    from tiny_runs import signals_as_before
    from tiny_segmenters import segmentation_arguments

    from densenet_backbones.training.cli import train_seg

    here = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, signals_as_before():
        patch.chdir(here)
        train_seg(segmentation_arguments(tiny_masks))
    return here / "runs" / "quickstart"


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and pictures are saved as one white pixel, and no boxes are drawn.

    For files of tests that hold what is not in them; `tiny_run` and others have drawn ones.
    """
    from blank_figures import leave_blank

    leave_blank(monkeypatch.setattr)


@pytest.fixture
def drawn(empty_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `empty_figures` back, for a test that looks at pictures in a file of others."""
    monkeypatch.undo()


@pytest.fixture
def refused_command(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int | str | None, str]]:
    """Runs a command that is refused; returns (exit code, its one line on stderr)."""

    def run(main: Callable[[list[str]], None], *argv: object) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in argv])
        told = ("Seed set", "GPU available", "INFO: ")  # Lightning's own
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        lines = [line for line in lines if not line.startswith(told)]
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return end.value.code, lines[0].removeprefix("error: ")

    return run


COMPILERS = {
    "native": "c++",
    "without AVX-512": "c++ -mno-avx512f",
    "without AVX": "c++ -mno-avx",
    "clang": "clang++",
}


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """The C++ kernels are looked for, and weights packed, anew; afterwards again."""
    from densenet_backbones.dense_block.native import availability, block, library

    def forget() -> None:
        reasons = (
            availability.explain_unavailability,
            availability.is_usable,
            availability.has_bfloat16,
            availability.has_bfloat16_tiles,
        )
        for cached in (library.load_library, *reasons):
            cached.cache_clear()
        block._PACKED.clear()

    forget()
    yield
    forget()


@pytest.fixture(params=first_now(COMPILERS))
def instructions(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, nothing_kept: None
) -> None:
    """The C++ kernels, for each instruction set that this machine can run, and each compiler."""
    compiler, *flags = COMPILERS[request.param].split()
    if os.uname().machine != "x86_64" and flags:
        pytest.skip("an instruction set of x86")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")
    monkeypatch.setenv("CXX", COMPILERS[request.param])
    request.getfixturevalue("compiled")


@pytest.fixture
def compiled(nothing_kept: None) -> None:
    """The C++ kernels, where there is a compiler."""
    from densenet_backbones.dense_block.native import explain_unavailability

    reason = explain_unavailability()
    if reason is not None:
        pytest.skip(reason)
