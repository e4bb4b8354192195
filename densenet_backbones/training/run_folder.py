"""Folder of a run: where it is, what to resume from, and what is written there first."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from densenet_backbones.file_writing import save_json
from densenet_backbones.reporting.console import is_first_process, say
from densenet_backbones.untrusted.limits import MAX_RUN_FILE
from densenet_backbones.untrusted.reading import parse_json, read_bytes

_INHERITED = "DENSENET_BACKBONES_RUN_DIR"
"""Variable by which the first process tells those it launches which folder was chosen."""

LOCK, HOLDER = ".lock", ".holder.json"
"""Files of the lock on a folder; the second says who holds it."""


class RunFolderError(ValueError):
    """The run folder is taken, or holds nothing to resume."""


@dataclass(frozen=True)
class RunFolder:
    """One run's files.

    Attributes:
        path: The folder.
        resume_from: Checkpoint to go on from, or None for a new run.
        is_new: The folder was missing or empty when it was chosen.
    """

    path: Path
    resume_from: Path | None = None
    is_new: bool = True

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        """Folder of everything drawn during training."""
        return self.path / "pictures"

    @property
    def evaluation(self) -> Path:
        """Folder of the final evaluation."""
        return self.path / "evaluation"

    @property
    def slim(self) -> Path:
        """The inference checkpoint: the best weights and what is needed to predict."""
        return self.path / "model.safetensors"


def choose_run_folder(run_dir: str | None, name: str, ckpt_path: str | None) -> RunFolder:
    """Find the folder of this run; nothing of an earlier run is ever overwritten.

    Args:
        run_dir: Folder that the user asked for; None takes ``runs/NAME``, or ``runs/NAME-2`` …
            where a run is already there.
        name: Name of the experiment, from its config file.
        ckpt_path: None for a new run, "last" to go on in the run folder, or a checkpoint of the
            run to go on from.

    Raises:
        RunFolderError: The folder asked for holds another run, or there is nothing to resume.
    """
    # Further processes of a run are started by the first one, and take its folder.
    if inherited := os.environ.get(_INHERITED):
        folder = Path(inherited)
    elif ckpt_path is None:
        folder = _new_folder(run_dir, name)
    elif ckpt_path == "last":
        folder = Path(run_dir) if run_dir else find_latest_folder(name)
    else:
        folder = _find_folder_of(Path(ckpt_path), run_dir)
    resume = None
    if ckpt_path is not None:
        resume = find_checkpoint(folder, None if ckpt_path == "last" else Path(ckpt_path))
    # Lightning takes "::" for a chain of addresses, TensorBoard writes to paths of UTF-8 alone.
    if re.search("::|[\ud800-\udfff]", str(folder.absolute())):
        raise RunFolderError(
            f"{folder.absolute()}: a run's folder cannot have '::' or bytes that are no UTF-8 in "
            "its path; name another folder with --run-dir"
        )
    os.environ[_INHERITED] = str(folder)
    return RunFolder(folder, resume, is_new=not _is_taken(folder))


def get_run_folder() -> Path:
    """Return the folder that was chosen for the run of this process."""
    return Path(os.environ[_INHERITED])


def is_plain_name(name: str) -> bool:
    """Return True for a text that names a folder in another one."""
    return name not in (".", "..") and Path(name).name == name and "\\" not in name


def forget_run_folder() -> None:
    """Let the next run of this process choose anew (a program may train twice)."""
    os.environ.pop(_INHERITED, None)


def _is_taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or not is_unused(folder))


def is_unused(folder: Path) -> bool:
    """Return True if a folder holds nothing, or only the files of the lock."""
    return all(file.name in (LOCK, HOLDER) for file in folder.iterdir())


def _new_folder(run_dir: str | None, name: str) -> Path:
    if run_dir is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunFolderError(
            "processes started by torchrun must agree on a folder: name it with --run-dir"
        )
    if run_dir is not None:
        # Under torchrun every process comes here; only the first one may find the folder empty.
        if is_first_process() and _is_taken(Path(run_dir)):
            raise RunFolderError(
                f"{run_dir} already holds files; go on with that run (--resume), name another "
                "folder (--run-dir), or remove it"
            )
        return Path(run_dir)
    return next(f for f in _number_folders(name) if not _is_taken(f))


def _find_folder_of(checkpoint: Path, run_dir: str | None) -> Path:
    """The run that a checkpoint belongs to, or a new folder for what goes on from it."""
    place = Path(os.path.realpath(checkpoint)).parent  # which takes links in a circle as they are
    own = place.parent
    if place.name == "checkpoints" and run_dir in (None, str(own)):
        return own
    if run_dir is None:
        raise RunFolderError(
            f"{checkpoint} lies in no run's folder: name one for what goes on from it (--run-dir)"
        )
    return Path(run_dir) if Path(os.path.realpath(run_dir)) == own else _new_folder(run_dir, "")


def find_latest_folder(name: str) -> Path:
    """Return the newest ``runs/NAME*`` with something to resume, else the first, for errors."""
    folders = []
    for folder in _number_folders(name):
        if not _is_taken(folder):
            break
        if (folder / "checkpoints" / "last.ckpt").is_file():
            folders.append(folder)
    return folders[-1] if folders else Path("runs") / name


def find_checkpoint(folder: Path, asked: Path | None = None) -> Path:
    """Return the checkpoint to go on from: the one asked for, or the last one of a run.

    A run that is killed in its first evaluation has only the one of its best weights.

    Raises:
        RunFolderError: It is not there.
    """
    last, best = (folder / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    found = asked or (best if best.is_file() and not last.is_file() else last)
    if not found.is_file():
        raise RunFolderError(
            f"nothing to resume: there is no {found}; start a new run without --resume, or "
            "name the run with --run-dir or a checkpoint with --ckpt_path FILE"
        )
    return found


def _number_folders(name: str) -> Iterator[Path]:
    yield Path("runs") / name
    number = 2
    while True:
        yield Path("runs") / f"{name}-{number}"
        number += 1


def write_environment(folder: RunFolder) -> None:
    """Add this start's machine, versions and command to ``environment.json``."""
    path = folder.path / "environment.json"
    starts = _read_starts(path)
    packages = ["densenet-backbones", "torch", "torchvision", "timm", "lightning", "albumentations"]
    packages += ["numpy", "opencv-python-headless", "pycocotools", "torchmetrics", "jsonargparse"]
    starts.append(
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [sys.executable, *sys.argv],
            "folder": os.getcwd(),
            "git": _git_revision(),
            "platform": platform.platform(),
            **describe_machine(),
            "packages": {name: _version(name) for name in packages},
        }
    )
    save_json(path, starts, indent=2)


def describe_machine() -> dict[str, object]:
    """Return the hardware and the versions that a training's speed depends on, in short."""
    import torch  # here: a run that is not there is refused without it

    return {
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "densenet_backbones": _version("densenet-backbones"),
    }


def _read_starts(path: Path) -> list[object]:
    """Return the earlier starts; none, with a line about it, where the file is damaged."""
    if not path.is_file():
        return []
    try:
        starts = parse_json(read_bytes(path, MAX_RUN_FILE, ValueError))
    except ValueError:
        starts = None
    if isinstance(starts, list):
        return starts
    say(f"Left aside: {path} is damaged; it begins anew with this start.", style="yellow")
    return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Commit of the sources in use, with a mark when they were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
