"""Compiles the C++ kernels for this machine, keeps them in the user's cache, and loads them."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

__all__ = ["CompilationError", "Layer", "load_library"]

_SOURCES = sorted((Path(__file__).parent / "cpp").glob("*.cpp"))
_HEADERS = sorted((Path(__file__).parent / "cpp").glob("*.h"))
_COMPILERS = ("c++", "g++", "clang++")
# Fused multiply-add is what -ffp-contract allows; nothing else about the arithmetic is loosened.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")
_TIMEOUT = 300  # seconds


class CompilationError(Exception):
    """The kernels cannot be compiled or loaded; the message says why."""


class Layer(ctypes.Structure):
    """``struct Layer`` of ``cpp/inference.cpp``: addresses of tensors, and sizes."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scale", "shift")),
        *((name, ctypes.c_void_p) for name in ("weight1", "bias1", "weight2", "bias2")),
        *((name, ctypes.c_int64) for name in ("bottleneck", "growth", "panels1", "vectors1")),
        *((name, ctypes.c_int64) for name in ("panels2", "vectors2")),
    ]


@lru_cache
def load_library() -> ctypes.CDLL:
    """Return the compiled kernels, which the first call compiles or loads.

    Raises:
        CompilationError: There is no compiler that can, or the result cannot be kept or loaded.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise CompilationError("no C++ compiler was found (c++, g++, clang++; or name one in CXX)")
    # 64-bit ARM's compilers know the processor by another flag.
    arm = platform.machine() in ("aarch64", "arm64")
    command = [*compiler.split(), *_FLAGS, "-mcpu=native" if arm else "-march=native"]
    try:
        file = _compile(command)
        kernels = ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:  # also: no home directory
        raise CompilationError(f"{error}") from error
    address, size, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    layers = ctypes.POINTER(Layer)
    for name in ("scratch_floats", "convolution_floats", "convolve_back_floats"):
        function = getattr(kernels, name)
        function.restype, function.argtypes = size, [size, size, count]
    kernels.narrow_values.restype = size
    kernels.narrow_values.argtypes = [size, size, size, size, size, count, count]
    kernels.multiply_adds.restype, kernels.multiply_adds.argtypes = real, [size]
    maps = (address, size, size, size, size, size)  # and bytes of a value, N, H, W, C
    rest = (real, address, address, size, count)  # ceiling, two addresses, scratch size, threads
    for function in (kernels.dense_block, kernels.transition, kernels.convolution):
        function.restype = None
    kernels.dense_block.argtypes = (*maps, size, layers, size, *rest, count)
    kernels.transition.argtypes = (*maps, layers, *rest, count)
    kernels.convolution.argtypes = (*maps, layers, *rest, count)
    rows = (address, size)  # a map and the floats between its cells
    shape = (size, size, address)  # cells, channels, result
    training = {
        "scale_shift_relu": (size, *rows, address, address, *shape),
        "masked_sums": (size, address, address, *rows, *shape, *rows, address, address, address),
        "affine_difference": (size, *rows, *rows, address, address, address, *shape),
        "add_scaled": (size, *rows, address, address, size, size),
        "convolve": (
            *(address, size, size, size, size, size, address, address),  # maps, scale, shift
            *(address, ctypes.POINTER(size), count, address, size, size, size),  # the kernel
            *(address, size, address, address, size),  # result and its stride, memory
        ),
        "convolve_back": (
            *(address, size, size, size, size, size),  # maps
            *(address, size, size, address, ctypes.POINTER(size)),  # gradient, the kernel's
            *(count, address, size),  # tile, memory
        ),
    }
    kernels.train_block_floats.restype = size
    kernels.train_block_floats.argtypes = [address, address, size, count, count]
    kernels.train_block.restype = None
    kernels.train_block.argtypes = [address, address, size, count, address, count]
    kernels.train_unit_floats.restype = size
    kernels.train_unit_floats.argtypes = [address, size, count, count]
    kernels.train_unit.restype = None
    kernels.train_unit.argtypes = [address, size, count, address, count]
    kernels.train_pool.restype = None
    kernels.train_pool.argtypes = [address, size, count, count]
    for name, arguments in training.items():
        function = getattr(kernels, name)
        function.restype, function.argtypes = None, (*arguments, count)
    return kernels


def _compile(command: list[str]) -> Path:
    """Return the path of the shared library; compile it unless this machine has done so before."""
    # What the compiler says of the machine: another one may see the same cache.
    machine = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    sources = [source.read_bytes() for source in (*_SOURCES, *_HEADERS)]
    key = hashlib.sha256(b"\0".join([*map(str.encode, command), machine, *sources]))
    cache = _find_cache()
    for part in (cache.parents[1], cache.parent, cache):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Links are followed first, so that what is checked is what is loaded.
    file = cache.resolve() / f"{key.hexdigest()[:32]}.so"
    _refuse_shared(file.parent)
    if not file.exists():
        from filelock import FileLock  # here, as few processes compile

        lock = FileLock(file.with_suffix(".lock"), timeout=_TIMEOUT, mode=0o600)
        # Of processes that start together one compiles, and the others wait for it; where the file
        # system has no locks, each does.
        with suppress(NotImplementedError):
            lock.acquire()
        try:
            _write_library(command, file)
        finally:
            lock.release()
    _refuse_shared(file)
    return file


def _write_library(command: list[str], file: Path) -> None:
    if file.exists():  # by now
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        new_file = Path(folder) / file.name
        _run([*command, *map(str, _SOURCES), "-o", str(new_file)])
        new_file.chmod(0o700)  # whatever the umask
        new_file.replace(file)  # other processes see all of it or nothing


def _refuse_shared(path: Path) -> None:
    """Refuse a file or folder that another user could have put there, or may exchange.

    What is loaded runs as this user. So it and every folder above it must belong to this user or to
    root, and nobody else may write there (as OpenSSH asks of its keys, `misc.c`); above the path,
    folders in which everybody may only touch what is his own, such as /tmp, are fine.

    Args:
        path: Absolute path without links.

    Raises:
        CompilationError: Names what is open to others, and the fix.
    """
    if not hasattr(os, "getuid"):  # Windows keeps users apart in another way
        return
    for part in (path, *path.parents):
        state = part.lstat()
        writable = state.st_mode & stat.S_IWOTH or (
            state.st_mode & stat.S_IWGRP and state.st_gid != os.getgid()
        )
        if state.st_uid not in (0, os.getuid()):
            raise CompilationError(
                f"{part} belongs to another user, so code in it is not loaded; remove it, or name "
                "a cache folder of your own in XDG_CACHE_HOME"
            )
        if writable and (part == path or not state.st_mode & stat.S_ISVTX):
            raise CompilationError(
                f"other users may write to {part}, so code in it is not loaded; allow only "
                f"yourself (chmod go-w {shlex.quote(str(part))}), or name another cache folder in "
                "XDG_CACHE_HOME"
            )


def _run(command: list[str]) -> bytes:
    result = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise CompilationError(f"{command[0]} failed: {lines[0]}")
    return result.stdout


def _find_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "densenet_backbones" / "native"
