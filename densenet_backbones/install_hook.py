"""Let the bare ``import timm`` find our networks: ``python -m densenet_backbones.install_hook``.

Opt-in, for programs that can neither import this package nor be started by
`densenet_backbones.run`. It writes two files into one site directory: a ``.pth`` file, which Python
reads at every start, and the module that it calls, which waits for timm and imports this package
after it (see ``post_import_hook.py``). ``--remove`` deletes both, ``--status`` looks for them, and
``DENSENET_BACKBONES_HOOK=0`` in the environment switches the hook off.
"""

import argparse
import contextlib
import importlib.util
import os
import py_compile
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

MODULE = "_densenet_backbones_hook"
MARK = "# Written by python -m densenet_backbones.install_hook, whose --remove deletes it.\n"
"""First line of both files, in every version: what lacks it is not ours to touch."""
SWITCH = "DENSENET_BACKBONES_HOOK"
"""Environment variable; "0" when Python starts switches the hook off."""
PTH = f"{MARK}import {MODULE}; {MODULE}.wait_for_timm()\n"


@dataclass(frozen=True)
class Hook:
    """The hook's two files in one site directory."""

    folder: Path

    @property
    def module(self) -> Path:
        """The module that waits for timm."""
        return self.folder / f"{MODULE}.py"

    @property
    def pth(self) -> Path:
        """The file that Python reads at its start."""
        return self.folder / "densenet_backbones_hook.pth"

    def install(self) -> list[Path]:
        """Write what is missing or of another version.

        Returns:
            The written files; none when the hook was there already.

        Raises:
            ValueError: A file of that name is not ours.
            OSError: The directory cannot be written to.
        """
        self._ours()
        # The module first: a .pth file without it would complain at every start of Python.
        wanted = {self.module: _module_text(), self.pth: PTH}
        written = [path for path, text in wanted.items() if _read(path) != text]
        for path in written:
            _write(path, wanted[path])
        if self.module in written:
            # Once, here: compiling at each start, where Python may not keep it, takes milliseconds.
            with contextlib.suppress(OSError):
                py_compile.compile(str(self.module))
        return written

    def remove(self) -> list[Path]:
        """Delete the files that `install` wrote, and what Python compiled from them.

        Returns:
            The deleted files; none when there was no hook.

        Raises:
            ValueError: A file of that name is not ours; nothing is deleted then.
            OSError: The directory cannot be written to.
        """
        ours = self._ours()
        for path in ours:
            path.unlink()
        if self.module in ours:
            cache = Path(importlib.util.cache_from_source(str(self.module))).parent
            for compiled in cache.glob(f"{MODULE}.*.pyc"):
                compiled.unlink()
            if cache.name == "__pycache__" and cache.is_dir() and not any(cache.iterdir()):
                cache.rmdir()
        return ours

    def state(self) -> str:
        """One of "not installed", "installed", "installed, of another version", "incomplete"."""
        found = {self.module: _read(self.module), self.pth: _read(self.pth)}
        ours = [text for text in found.values() if text is not None and text.startswith(MARK)]
        if len(ours) < 2:
            return "incomplete" if ours else "not installed"
        same = found == {self.module: _module_text(), self.pth: PTH}
        return "installed" if same else "installed, of another version"

    def _ours(self) -> list[Path]:
        """Those of the two files that exist, the .pth file first."""
        found = {path: _read(path) for path in (self.pth, self.module)}
        for path, text in found.items():
            if text is not None and not text.startswith(MARK):
                raise ValueError(
                    f"{path} was not written by this command; move it away, then try again"
                )
        return [path for path, text in found.items() if text is not None]


def _module_text() -> str:
    source = resources.files("densenet_backbones") / "post_import_hook.py"
    return MARK + source.read_text(encoding="utf-8")


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there as a whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("xb") as file:
            file.write(text.encode("utf-8"))
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def default_folder() -> Path:
    """The running interpreter's own directory of pure Python packages."""
    return Path(sysconfig.get_path("purelib"))


def site_folders() -> list[Path]:
    """Every directory in which the running interpreter reads ``.pth`` files at its start."""
    folders = [default_folder(), *map(Path, site.getsitepackages())]
    if site.ENABLE_USER_SITE:
        folders.append(Path(site.getusersitepackages()))
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _chosen_folder(arguments: argparse.Namespace) -> Path:
    if arguments.target is not None:
        if not arguments.target.is_dir():
            raise ValueError(
                f"--target must be an existing directory, got {arguments.target}; make it first"
            )
        return Path(arguments.target).resolve()
    if not arguments.user:
        return default_folder()
    folder = Path(site.getusersitepackages())
    if arguments.command == "install":
        if not site.ENABLE_USER_SITE:
            raise ValueError(
                f"this Python does not read its user site directory {folder} (as in a virtual "
                "environment); leave out --user"
            )
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _install(folder: Path) -> int:
    written = Hook(folder).install()
    for path in written:
        print(f"wrote {path}")
    if not written:
        print(f"already installed in {folder}")
    if folder.resolve() not in site_folders():
        print(
            f"note: {sys.executable} does not read .pth files in {folder} at its start; it works "
            "only where that directory is a site directory"
        )
    return 0


def _remove(folder: Path) -> int:
    removed = Hook(folder).remove()
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print(f"not installed in {folder}")
        for other in _installed_in(site_folders()):
            print(f"but in {other}: add --target {other}")
    return 0


def _installed_in(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if Hook(folder).state() != "not installed"]


def _status(folders: Sequence[Path]) -> int:
    found = _installed_in(folders)
    for folder in found:
        print(f"{Hook(folder).state()} in {folder}")
    if not found:
        print(f"not installed in {', '.join(map(str, folders))}")
    if os.environ.get(SWITCH) == "0":
        print(f"switched off here by {SWITCH}=0")
    return 0 if found else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m densenet_backbones.install_hook",
        description="Make timm.create_model('densenet121_features') work in this Python without "
        "an import of densenet_backbones, by two files in its site directory that every later "
        "start of this Python reads. Without options: install them.",
        epilog=f"{SWITCH}=0 in the environment switches the hook off. Before this "
        "package is uninstalled, use --remove; a hook left behind does nothing.",
    )
    command = parser.add_mutually_exclusive_group()
    for name, text in (
        ("remove", "delete the two files"),
        ("status", "say where the hook is installed; exit status 1 where it is not"),
    ):
        command.add_argument(
            f"--{name}", dest="command", action="store_const", const=name, help=text
        )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="in the user site directory")
    place.add_argument("--target", type=Path, metavar="DIR", help="in another site directory")
    parser.set_defaults(command="install")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status.

    Args:
        argv: The arguments, those of this process by default.

    Raises:
        SystemExit: With status 2 and one sentence, where nothing could be done.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        folder = _chosen_folder(arguments)
        if arguments.command == "status":
            anywhere = not arguments.user and arguments.target is None
            return _status(site_folders() if anywhere else [folder])
        return {"install": _install, "remove": _remove}[arguments.command](folder)
    except OSError as error:
        parser.error(
            f"{error.filename} cannot be changed ({error.strerror}); use --user, --target DIR, or "
            "a virtual environment of your own"
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
