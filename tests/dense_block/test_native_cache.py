"""The cache of compiled kernels: nobody else's code is loaded, every failure is one sentence."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from densenet_backbones.dense_block.native import availability, library
from densenet_backbones.dense_block.native.library import CompilationError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX owners and modes")

# Says what machine this is, or "compiles" by writing a file in two halves.
COMPILER = """
import sys, time
if "-o" not in sys.argv:
    sys.exit(print("a machine"))
with open(sys.argv[0] + ".log", "a") as log:
    print("compiled", file=log)
with open(sys.argv[-1], "w") as file:
    file.write("first half, "); file.flush()
    time.sleep(0.3)
    file.write("second half")
"""
WHOLE = "first half, second half"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that the cache will be, in a home of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "compiler.py").write_text(COMPILER)
    return tmp_path / "cache/densenet_backbones/native"


def compile_kernels(cache):
    file = library._compile([sys.executable, str(cache.parents[2] / "compiler.py")])
    return Path(file).read_text()


def test_folders_are_private_whatever_the_umask(cache):
    before = os.umask(0)
    try:
        assert compile_kernels(cache) == WHOLE
    finally:
        os.umask(before)
    for path in (cache.parent, cache, *cache.iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    assert {path.suffix for path in cache.iterdir()} <= {
        ".so",
        ".lock",
    }  # nothing temporary is left


@pytest.mark.parametrize("place", ["", "..", "../.."])
def test_folders_that_others_may_write_to_are_refused(cache, place):
    compile_kernels(cache)
    open_folder = (cache / place).resolve()
    open_folder.chmod(0o777)
    with pytest.raises(CompilationError, match=f"may write to {open_folder}, .*chmod go-w"):
        compile_kernels(cache)
    open_folder.chmod(0o1777)  # as /tmp: fine above the cache, not as the cache
    if place:
        assert compile_kernels(cache) == WHOLE
    else:
        with pytest.raises(CompilationError, match="may write to"):
            compile_kernels(cache)
    open_folder.chmod(0o700)
    assert compile_kernels(cache) == WHOLE


def test_a_library_that_others_may_write_to_is_refused(cache):
    compile_kernels(cache)
    (file,) = cache.glob("*.so")
    file.chmod(0o702)
    with pytest.raises(CompilationError, match=f"may write to {file}"):
        compile_kernels(cache)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_what_belongs_to_others_is_refused(cache, place, monkeypatch):
    compile_kernels(cache)
    (file,) = cache.glob("*.so")
    foreign = cache if place == "folder" else file
    real = Path.lstat

    def lstat(self):
        state = list(real(self))
        if self == foreign:
            state[4] = 12345  # st_uid
        return os.stat_result(state)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(CompilationError, match=f"{foreign} belongs to another user"):
        compile_kernels(cache)


def test_a_link_is_checked_where_it_leads(cache, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    cache.parent.mkdir(parents=True)
    cache.symlink_to(tmp_path / "open")
    with pytest.raises(CompilationError, match=f"may write to {tmp_path / 'open'}"):
        compile_kernels(cache)


def _compile_at(moment, cache, queue):
    time.sleep(max(0.0, moment - time.time()))
    queue.put(compile_kernels(cache))


def _refuse_lock(self, *args, **kwargs):
    raise NotImplementedError


@pytest.mark.parametrize("locks", [True, False])
def test_of_processes_that_start_at_once_one_compiles_and_all_load_the_whole(
    cache, locks, monkeypatch
):
    if not locks:  # a file system without them: each may compile
        monkeypatch.setattr("filelock.FileLock.acquire", _refuse_lock)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    # Some begin while others are half done, or just finished.
    start = time.time() + 0.2
    processes = [
        context.Process(target=_compile_at, args=(start + 0.1 * n, cache, queue)) for n in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [queue.get() for _ in processes] == [WHOLE] * 6
    assert len(list(cache.glob("*.so"))) == 1
    compiled = (cache.parents[2] / "compiler.py.log").read_text().splitlines()
    assert len(compiled) == 1 if locks else len(compiled) > 1


def test_a_home_that_cannot_be_written_is_one_sentence(cache, monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} {cache.parents[2] / 'compiler.py'}")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for question in (library.load_library, availability.explain_unavailability):
        question.cache_clear()
    try:
        reason = availability.explain_unavailability()
    finally:
        for question in (library.load_library, availability.explain_unavailability):
            question.cache_clear()
    assert "Permission denied" in reason and str(cache.parents[1]) in reason
    assert "\n" not in reason
