"""Run a Python program with our networks registered: ``python -m densenet_backbones.run train.py``.

For programs that build models by name with timm or torchvision and never import this package.
``-m densenet_backbones.run`` imports it, and this module then runs the program as Python itself
would: the same ``__main__``, ``sys.argv``, ``sys.path``, exit status and traceback. Processes that
the program starts through multiprocessing import the package too; new Python programs that it
starts do not (for those see `densenet_backbones.install_hook`).
"""

import builtins
import functools
import io
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from multiprocessing import spawn
from types import CodeType, ModuleType, TracebackType
from typing import Any

HELP = """\
usage: python -m densenet_backbones.run (SCRIPT | -m MODULE | -c CODE) [ARGUMENT ...]

Registers the networks of densenet_backbones with timm and torchvision, then runs a program as
Python would:

  SCRIPT       a file, or a folder or zip file with a __main__.py
  -m MODULE    a module, by its name
  -c CODE      a program, as text
  ARGUMENT     anything behind the program is the program's own
  -h, --help   show this text

Python's own options go before -m densenet_backbones.run. On several processes:
  torchrun --nproc-per-node 2 -m densenet_backbones.run train.py --model densenet121_features
"""


@dataclass(frozen=True)
class Program:
    """What to run: ``kind`` is "script", "module" or "code", ``name`` its path, name or text."""

    kind: str
    name: str
    arguments: tuple[str, ...]


def read_program(arguments: Sequence[str]) -> Program:
    """Find the program on the command line, as Python does: ``-mMODULE`` is ``-m MODULE``.

    Args:
        arguments: Everything behind ``-m densenet_backbones.run``.

    Raises:
        ValueError: There is no program, or an option that is not ours stands before it.
    """
    if not arguments:
        raise ValueError("nothing to run; name a SCRIPT, -m MODULE or -c CODE")
    first, *rest = arguments
    if not first.startswith("-"):
        return Program("script", first, tuple(rest))
    kind = {"-m": "module", "-c": "code"}.get(first[:2])
    if kind is None:
        raise ValueError(
            f"the first argument is a SCRIPT, -m, -c or --help, got {first!r}; "
            "Python's own options go before -m densenet_backbones.run"
        )
    if first[2:]:
        return Program(kind, first[2:], tuple(rest))
    if not rest:
        raise ValueError(f"{first} must be followed by a {'name' if kind == 'module' else 'text'}")
    return Program(kind, rest[0], tuple(rest[1:]))


def register_in_spawned_processes() -> None:
    """Let every process that multiprocessing spawns import this package before its main module.

    Such a process (a DataLoader's worker, say) imports the program's file anew, without this
    launcher. What it needs for that is sent to it as a pickled dictionary, built by an internal but
    old function (CPython, ``Lib/multiprocessing/spawn.py``, ``get_preparation_data``); an entry is
    added whose unpickling imports this package. The spawned process does the same for its own.
    """
    prepare = spawn.get_preparation_data
    registration = _Registration(tuple(sys.path))

    @functools.wraps(prepare)
    def prepare_and_register(name: str) -> dict[str, Any]:
        return {**prepare(name), "densenet_backbones": registration}

    spawn.get_preparation_data = prepare_and_register


@dataclass(frozen=True)
class _Registration:
    """Pickled as a program, which the new process runs before it has our ``sys.path``.

    ``path`` is what ours was before the program's folder took the place of the current one: the
    new process must find this package, and the same timm, from wherever it is started.
    """

    path: tuple[str, ...]

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        program = (
            f"import sys\nsys.path[:] = {self.path!r}\n"
            "from densenet_backbones.run import register_in_spawned_processes\n"
            "register_in_spawned_processes()\n"
        )
        return exec, (program,)


def _new_main(**attributes: Any) -> dict[str, Any]:
    """Names of a fresh ``__main__``, which stays in place until the process ends.

    `runpy.run_path` takes its own away when the program's last line is done; threads and exit
    handlers that run on, and pickle, would miss it.
    """
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, **attributes)
    sys.modules["__main__"] = main
    return vars(main)


def _search_first(folder: str) -> None:
    if not sys.flags.safe_path:  # with it, Python has put no folder in front
        sys.path[0] = folder


def _read_code(path: str) -> tuple[CodeType, Any]:
    """Code of a source or compiled file, and the kind of loader that Python shows for it."""
    with io.open_code(path) as file:
        compiled = pkgutil.read_code(file)
        if compiled is not None:
            return compiled, SourcelessFileLoader
        file.seek(0)
        return compile(file.read(), path, "exec", dont_inherit=True), SourceFileLoader


def _start_script(path: str) -> None:
    place = os.path.abspath(path)
    if pkgutil.get_importer(path) is not None:  # a folder or an archive: run its __main__.py
        _search_first(place)
        if sys.flags.safe_path:
            sys.path.insert(0, place)
        _start_module("__main__", alter_argv=False)
        return
    try:
        code, loader = _read_code(place)
    except OSError as error:
        sys.exit(_complain(f"can't open file {path!r}: {error.strerror}"))
    _search_first(os.path.dirname(os.path.realpath(path)))
    names = _new_main(
        __file__=place, __cached__=None, __loader__=loader("__main__", place), __annotations__={}
    )
    exec(code, names)


def _start_module(name: str, alter_argv: bool = True) -> None:
    _new_main()
    # What the interpreter itself calls for -m (CPython, Modules/main.c, pymain_run_module).
    runpy._run_module_as_main(name, alter_argv)  # type: ignore[attr-defined]


def _start_code(text: str) -> None:
    _search_first("")
    code = compile(text, "<string>", "exec", dont_inherit=True)
    exec(code, _new_main(__loader__=BuiltinImporter, __annotations__={}))


def run(program: Program) -> None:
    """Run a program in this process, as its ``__main__``.

    Args:
        program: What to run.

    Raises:
        SystemExit: The program's own; with status 2 where the script cannot be read.
        BaseException: Whatever the program leaves uncaught.
    """
    kinds: dict[str, tuple[Callable[[str], None], str]] = {
        "script": (_start_script, program.name),
        "module": (_start_module, "-m"),
        "code": (_start_code, "-c"),
    }
    start, first_argument = kinds[program.kind]
    sys.argv = [first_argument, *program.arguments]
    try:
        start(program.name)
    except BaseException as error:
        _hide_launcher_frames(error)
        raise


def _hide_launcher_frames(error: BaseException) -> None:
    """Leave our frames out of the traceback, should this error be the end of the process."""
    shown: TracebackType | None = error.__traceback__
    ours = _hide_launcher_frames.__code__.co_filename
    while shown is not None and shown.tb_frame.f_code.co_filename == ours:
        shown = shown.tb_next
    report = sys.excepthook  # the program may have set its own

    def report_from_the_program(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        if value is error:
            value, traceback = value.with_traceback(shown), shown
        report(kind, value, traceback)

    sys.excepthook = report_from_the_program


def _complain(message: str) -> int:
    print(f"densenet_backbones.run: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; returns when the program ended by itself.

    Args:
        argv: The arguments, those of this process by default.

    Raises:
        SystemExit: The program's own; with status 2 where there is nothing to run.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
        return
    try:
        program = read_program(arguments)
    except ValueError as error:
        sys.exit(_complain(str(error)))
    register_in_spawned_processes()
    run(program)


if __name__ == "__main__":
    main()
