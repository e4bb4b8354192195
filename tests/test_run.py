"""Most tests run the launcher in a stand-in for the package and for timm, which import in no time.

The launcher's file is the real one. What it must do is what plain Python does, so both run.
"""

import multiprocessing
import os
import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from locations import PROJECT
from stand_ins import PACKAGE, TIMM, environment, make_venv, write

from densenet_backbones.run import HELP, Program, read_program

LAUNCHER = ("-m", "densenet_backbones.run")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("stand_ins"), {**TIMM, **PACKAGE})
    shutil.copy(PROJECT / "densenet_backbones" / "run.py", folder / "densenet_backbones")
    return folder


class Python:
    """Runs an interpreter in a folder, with another folder on its path."""

    def __init__(self, executable: Path | str, folder: Path, stand_ins: Path | str) -> None:
        self.executable = executable
        self.folder = folder
        # Whoever tests may have installed the hook.
        self.environment = environment(PYTHONPATH=str(stand_ins), DENSENET_BACKBONES_HOOK="0")

    def start(self, arguments: tuple) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.executable), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess:
        return finished(self.start(arguments))

    def with_and_without_us(self, *program: str, options: tuple = ()) -> list:
        launchers = ((), LAUNCHER)
        both = [self.start((*options, *launcher, *program)) for launcher in launchers]
        return [finished(process) for process in both]


def finished(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An interpreter that starts fast, since it has no packages."""
    return make_venv(tmp_path_factory.mktemp("bare"), {})[0]


@pytest.fixture
def python(bare, stand_ins, tmp_path) -> Python:
    return Python(bare, tmp_path, stand_ins)


# -- a program sees what it sees under plain Python ------------------------------------------------

PROBE = """\
import sys, pickle
import __main__
def function(): pass
print(sys.argv, sys.path, __name__, __package__)
print(globals().get("__file__"), getattr(__spec__, "name", None), type(__loader__), __loader__)
print(sorted(set(globals()) - {"__annotations__"}), type(__builtins__), __doc__)
print(__main__.function is function, pickle.loads(pickle.dumps(function)) is function)
"""
PLACES = {
    "script": ("sub/probe.py",),
    "absolute": ("{here}/sub/probe.py",),
    "link": ("link.py",),
    "compiled": ("sub/probe.pyc",),
    "folder": ("app",),
    "archive": ("app.zip",),
    "module": ("-m", "package.probe"),
    "glued": ("-mpackage.probe",),
    "package": ("-m", "package"),
    "text": ("-c", PROBE),
    "glued text": ("-c" + PROBE,),
}


def write_programs(folder: Path, source: str) -> None:
    for name in ("sub/probe.py", "app/__main__.py", "package/probe.py", "package/__main__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    (folder / "package" / "__init__.py").touch()
    (folder / "link.py").symlink_to("sub/probe.py")
    py_compile.compile(str(folder / "sub/probe.py"), str(folder / "sub/probe.pyc"))
    with zipfile.ZipFile(folder / "app.zip", "w") as archive:
        archive.write(folder / "app/__main__.py", "__main__.py")


def without_address(text: str) -> str:
    return text.partition(" object at ")[0]


@pytest.mark.parametrize(
    ("place", "options"),
    [(place, ()) for place in PLACES]
    + [(place, ("-P",)) for place in ("script", "folder", "text")],
)
def test_a_program_sees_what_it_sees_under_plain_python(python, tmp_path, place, options):
    write_programs(tmp_path, PROBE)
    place = [part.format(here=tmp_path) if "{here}" in part else part for part in PLACES[place]]
    arguments = ("--model", "x", "-m", "-h", "--", "a b")
    plain, ours = python.with_and_without_us(*place, *arguments, options=options)
    assert "'--model', 'x', '-m', '-h', '--', 'a b']" in plain.stdout
    for theirs, mine in zip(plain.stdout.split("\n"), ours.stdout.split("\n"), strict=True):
        assert without_address(mine) == without_address(theirs)
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)


ENDS = {
    "fine": "print('done')",
    "status": "import sys; sys.exit(3)",
    "sentence": "raise SystemExit('went wrong')",
    "no status": "raise SystemExit",
    "error": "def f():\n    raise ValueError('bad')\nf()",
    "chain": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('a') from e",
    "syntax": "print('a'\n",
    "cookie": "# coding: latin-1\nprint('é')",
    "interrupted": "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "own hook": "import sys\nsys.excepthook = lambda k, v, t: print(v, t.tb_lineno)\n1 / 0",
    "thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()",
    "future flags": "def f(x: Missing): pass",
    "names": "print(Program)",
}


AS_MODULES = ("status", "error", "interrupted", "own hook")


@pytest.mark.parametrize(
    ("program", "end"),
    [(("ends.py",), end) for end in ENDS] + [(("-m", "ends"), end) for end in AS_MODULES],
)
def test_a_program_ends_as_under_plain_python(python, tmp_path, program, end):
    (tmp_path / "ends.py").write_text(ENDS[end])
    plain, ours = python.with_and_without_us(*program)
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert ours.stderr == plain.stderr


def test_main_stays_until_the_very_end(python, tmp_path):
    # A stand-in that ends with the last line would leave exit handlers without their functions.
    (tmp_path / "late.py").write_text(
        "import atexit, pickle\n"
        "def function(): pass\n"
        "atexit.register(lambda: print(pickle.loads(pickle.dumps(function)) is function))\n"
    )
    for program in (["late.py"], ["-m", "late"]):
        assert python(*LAUNCHER, *program).stdout == "True\n"


# -- the names are there ---------------------------------------------------------------------------

SPAWNS = """\
import multiprocessing, os, sys
import timm
from concurrent.futures import ProcessPoolExecutor

timm.create_model("ours")  # when the file is imported, in every process

def build(depth, method):
    os.environ["seen"] = timm.create_model("ours")
    if depth == 0:
        return os.environ["seen"], __name__, timm.__name__
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(build, depth - 1, method).result()

if __name__ == "__main__":
    os.chdir("/")  # the package must be found from anywhere
    print(build(2, sys.argv[1]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_processes_have_the_names(python, stand_ins, tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    (tmp_path / "spawns.py").write_text(SPAWNS)
    assert "Unknown model" in python("spawns.py", method).stderr
    done = python(*LAUNCHER, "spawns.py", method)
    assert done.stdout == "('ours', '__mp_main__', 'timm')\n", done.stderr
    assert python(*LAUNCHER, "-m", "spawns", method).stdout == done.stdout


def test_the_package_need_not_lie_on_the_programs_path(bare, stand_ins, tmp_path):
    # Started in a checkout: the current folder is on the path until the program's takes its place.
    (tmp_path / "spawns.py").write_text(SPAWNS)
    done = Python(bare, stand_ins, "")(*LAUNCHER, tmp_path / "spawns.py", "spawn")
    assert done.stdout == "('ours', '__mp_main__', 'timm')\n", done.stderr


def test_torchrun_starts_it(stand_ins, tmp_path):
    (tmp_path / "ranks.py").write_text(
        "import os, sys, timm\n"
        "timm.create_model('ours')\n"
        "open(os.environ['RANK'], 'w').write(repr(sys.argv))\n"
    )
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    python = Python(sys.executable, tmp_path, stand_ins)
    done = python(*torchrun, *LAUNCHER, "ranks.py", "--model", "x")
    assert done.returncode == 0, done.stderr
    for rank in "01":
        assert (tmp_path / rank).read_text() == "['ranks.py', '--model', 'x']"


def test_a_program_that_only_knows_timm_gets_our_networks(tmp_path):
    program = tmp_path / "third_party.py"
    program.write_text(
        "import timm\n"
        "tiny = dict(growth_rate=4, block_config=(1, 1, 1, 1))\n"
        "net = timm.create_model('densenet121_features', **tiny)\n"
        "print(len(net.feature_info.channels()))\n"
    )
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    plain, ours = Python(sys.executable, tmp_path, path).with_and_without_us(str(program))
    assert (ours.returncode, ours.stdout) == (0, "5\n"), ours.stderr
    assert plain.returncode == 1
    assert "Unknown model (densenet121_features)" in plain.stderr


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["a.py"], Program("script", "a.py", ())),
        (["a.py", "-m", "b"], Program("script", "a.py", ("-m", "b"))),
        (["-m", "a", "-c", "b"], Program("module", "a", ("-c", "b"))),
        (["-ma.b", "c"], Program("module", "a.b", ("c",))),
        (["-c", "", "c"], Program("code", "", ("c",))),
        (["-cpass"], Program("code", "pass", ())),
    ],
)
def test_command_line(arguments, program):
    assert read_program(arguments) == program


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to run; name a SCRIPT, -m MODULE or -c CODE"),
        (["-u", "a.py"], "Python's own options go before -m densenet_backbones.run"),
        (["-m"], "-m must be followed by a name"),
        (["-c"], "-c must be followed by a text"),
        (["missing.py", "-h"], "can't open file 'missing.py': No such file or directory"),
    ],
)
def test_wrong_usage_is_one_sentence(python, arguments, sentence):
    done = python(*LAUNCHER, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("densenet_backbones.run: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_missing_modules_are_named_as_by_python(python):
    plain, ours = python.with_and_without_us("-m", "missing")
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(python, flag):
    done = python(*LAUNCHER, flag, "a.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, HELP, "")
    assert max(map(len, HELP.splitlines())) <= 100
