"""One process writes in a run's folder: the lock that it holds while it runs."""

import os
import platform
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from densenet_backbones.file_writing import is_dead, save_json
from densenet_backbones.reporting.console import say
from densenet_backbones.training.run_folder import HOLDER, LOCK, RunFolderError, is_unused
from densenet_backbones.untrusted.limits import MAX_RUN_FILE
from densenet_backbones.untrusted.reading import parse_json, read_bytes

_PATIENCE = 20
"""Seconds that a dead process's lock is waited for: its loader workers, which have it too, end
within 5."""

_held: dict[Path, FileLock] = {}


def hold_run_folder(folder: Path, is_new: bool = False) -> None:
    """Take a run's folder for this process until `release_run_folders`, or until it dies.

    Args:
        folder: Made if it is missing.
        is_new: The folder must have stayed empty since it was chosen.

    Raises:
        RunFolderError: Another process has it, or had it just now; names the process.
    """
    if Path(os.path.realpath(folder)) in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=_PATIENCE if _is_left_behind(_read_holder(folder)) else 0)
    except Timeout:
        raise RunFolderError(_explain(folder)) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        say(f"{folder}: cannot be locked here ({error}); start no other run in it", style="yellow")
        return
    if is_new and not is_unused(folder):
        lock.release()
        raise RunFolderError(_explain(folder))
    _held[Path(os.path.realpath(folder))] = lock
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"process": os.getpid(), "host": platform.node(), "since": since}
    save_json(folder / HOLDER, who, indent=None)


def try_run_folder(folder: Path) -> None:
    """Make a run's folder and a file in it, and take both away again.

    Raises:
        OSError: A run could not write there.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    draft = folder / f"{LOCK}-{os.getpid()}"  # the lock itself may be another process's
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.touch()
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
            for each in missing:  # the innermost first
                each.rmdir()


def release_run_folders() -> None:
    """Leave the folders that this process holds to others."""
    while _held:
        folder, lock = _held.popitem()
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def remove_run_folder(folder: Path, keep_empty: bool) -> None:
    """Leave a folder that this process holds, and remove it; any other stays as it is.

    Args:
        folder: The run's.
        keep_empty: Remove its files alone.
    """
    lock = _held.pop(Path(os.path.realpath(folder)), None)
    if lock is None:
        return
    lock.release()
    shutil.rmtree(folder, ignore_errors=True)
    if keep_empty:
        folder.mkdir(exist_ok=True)


def _read_holder(folder: Path) -> dict[str, Any]:
    try:
        holder = parse_json(read_bytes(folder / HOLDER, MAX_RUN_FILE, ValueError))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_left_behind(holder: dict[str, Any]) -> bool:
    """Return True if the holder was a process of this machine that is no more."""
    process = holder.get("process")
    return isinstance(process, int) and holder.get("host") == platform.node() and is_dead(process)


def _explain(folder: Path) -> str:
    holder = _read_holder(folder)
    who = "another process"
    if holder:
        process, host, since = (holder.get(name) for name in ("process", "host", "since"))
        who = f"process {process} on {host}, since {since}"
    return f"{folder} is in use by {who}: wait for it to end, or name another folder (--run-dir)"
