"""The hook at work, mostly with stand-ins for timm and the package."""

import zipfile
from pathlib import Path

import pytest
from locations import PROJECT
from stand_ins import PACKAGE, TIMM, make_venv, python, write

from densenet_backbones.install_hook import Hook, site_folders

ADD = "import site, sys; site.addsitedir({site!r})\n"
REGISTERED = "import timm\nassert timm.create_model('ours') == 'ours' and timm.NAMES == ['ours']\n"
GONE = "assert not [f for f in sys.meta_path if type(f).__name__ == '_TimmFinder']\n"
WAITING = GONE.replace("not [", "[")
PROGRAMS = {
    "import timm": WAITING + REGISTERED + GONE,
    "import timm.models": "import timm.models\n" + REGISTERED,
    "from timm.models": "from timm.models import create_model\ncreate_model('ours')\n" + REGISTERED,
    "us first": "import densenet_backbones\n" + REGISTERED + GONE,
    "us by name": "import importlib\nimportlib.import_module('densenet_backbones')\n" + REGISTERED,
    "twice added": ADD + REGISTERED,
    "looked for before": "from importlib.util import find_spec\n"
    "spec = find_spec('timm')\n"
    "assert spec.loader.is_package('timm') and spec.loader.get_source('timm')\n" + REGISTERED,
    "its own loader": "import timm, importlib.machinery as m\n"
    "assert type(timm.__loader__) is type(timm.__spec__.loader) is m.SourceFileLoader\n",
    "copied loader": "import copy\nfrom importlib.util import find_spec\n"
    "copy.copy(find_spec('timm').loader).get_code('timm')\n" + REGISTERED,
    "reload": REGISTERED + "import importlib\nimportlib.reload(timm)\n" + REGISTERED,
    "reload models": REGISTERED + "import importlib\nimportlib.reload(timm.models)\nimport timm\n",
    "lazy": "from importlib import util\n"
    "spec = util.find_spec('timm')\n"
    "spec.loader = util.LazyLoader(spec.loader)\n"
    "timm = sys.modules['timm'] = util.module_from_spec(spec)\n"
    "spec.loader.exec_module(timm)\n"
    "assert 'timm.models' not in sys.modules\n"
    "assert timm.create_model('ours') == 'ours'\n" + REGISTERED + GONE,
    "resources": "import importlib.resources as r\n"
    "assert r.files('timm').joinpath('models.py').is_file()\n" + REGISTERED,
    "threads": "import threading\n"
    "names = ['timm', 'densenet_backbones', 'timm.models'] * 4\n"
    "threads = [threading.Thread(target=__import__, args=(name,)) for name in names]\n"
    "[t.start() for t in threads], [t.join(20) for t in threads]\n" + REGISTERED,
    "other finders": "class Silent:\n    find_spec = staticmethod(lambda *a: None)\n"
    "sys.meta_path[:] = [Silent(), *sys.meta_path, Silent()]\n" + REGISTERED,
    "taken out": "sys.meta_path[:] = [f for f in sys.meta_path if 'Timm' not in str(type(f))]\n"
    "import timm\nassert timm.NAMES == []\n",
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An interpreter that finds neither timm nor this package by itself."""
    return make_venv(tmp_path_factory.mktemp("bare"), {})[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A directory for `site.addsitedir`, with the hook."""
    folder = tmp_path_factory.mktemp("site")
    Hook(folder).install()
    return folder


def run_hooked(bare: Path, folder: Path, program: str, path: Path, *options: str, **variables):
    whole = ADD.format(site=str(folder)) + program.replace("{site!r}", repr(str(folder)))
    return python(bare, *options, "-c", whole, path=path, **variables)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("fakes"), {**TIMM, **PACKAGE})


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_timm_has_our_names(bare, folder, fakes, program):
    done = run_hooked(bare, folder, program, fakes)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_timm_imported_before_the_hook(bare, folder, fakes):
    program = "import timm\n" + ADD.format(site=str(folder)) + REGISTERED + GONE
    done = python(bare, "-c", program, path=fakes)
    assert (done.returncode, done.stderr) == (0, "")


def test_timm_in_an_archive(bare, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, text in {**TIMM, **PACKAGE}.items():
            archive.writestr(name, text)
    program = REGISTERED + "assert 'zipimporter' in repr(timm.__loader__)\n" + GONE
    done = run_hooked(bare, folder, program, tmp_path / "all.zip")
    assert (done.returncode, done.stderr) == (0, "")


WORKS_ON = "import timm\nassert timm.NAMES == []\nimport timm.models\nprint('works on')\n"


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["", "-W error"])
@pytest.mark.parametrize(
    "source",
    ["raise ValueError('bad')", "import not_there", "a b", "import warnings; warnings.warn('x')"],
)
def test_a_broken_package_is_one_warning(bare, folder, tmp_path, source, options):
    path = write(tmp_path / "fakes", {**TIMM, "densenet_backbones/__init__.py": source})
    done = run_hooked(bare, folder, WORKS_ON, path, *options)
    assert done.stdout == "works on\n", done.stderr
    if "warnings" in source and not options:
        assert "UserWarning: x" in done.stderr
        return
    assert done.stderr.count("timm lacks the networks of densenet_backbones, whose import") == 1
    assert f"delete densenet_backbones_hook.pth in {folder}" in done.stderr
    assert "Traceback" not in done.stderr


def test_switched_off(bare, folder, fakes):
    program = GONE + WORKS_ON
    done = run_hooked(bare, folder, program, fakes, DENSENET_BACKBONES_HOOK="0")
    assert (done.stdout, done.stderr) == ("works on\n", "")


def test_a_timm_that_cannot_be_imported_fails_as_ever_and_may_be_tried_again(
    bare, folder, tmp_path
):
    broken = "import sys\nif not hasattr(sys, 'go'): 1 / 0\n" + TIMM["timm/__init__.py"]
    path = write(tmp_path / "fakes", {**TIMM, **PACKAGE, "timm/__init__.py": broken})
    program = (
        "try:\n    import timm\nexcept ZeroDivisionError:\n    sys.go = True\n"
        "assert 'densenet_backbones' not in sys.modules\n"
    )
    done = run_hooked(bare, folder, program + REGISTERED + GONE, path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_timm_nothing_changes(bare, folder, tmp_path):
    (tmp_path / "fakes" / "timm").mkdir(parents=True)  # no package: a folder of that name
    program = "import timm\nassert timm.__file__ is None and list(timm.__path__)\n"
    lost = "sys.path.clear()\ntry:\n    import timm\nexcept ModuleNotFoundError as e:\n"
    assert run_hooked(bare, folder, program, tmp_path / "fakes").stderr == ""
    done = run_hooked(bare, folder, lost + "    print(e)\n", tmp_path)
    assert (done.stdout, done.stderr) == ("No module named 'timm'\n", "")


@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["", "-W error"])
def test_an_uninstalled_package_is_silence(tmp_path, options):
    interpreter, folder = make_venv(tmp_path, TIMM)
    Hook(folder).install()
    done = python(interpreter, *options, "-c", WORKS_ON)
    assert (done.stdout, done.stderr) == ("works on\n", "")


def test_the_real_timm_finds_our_networks(tmp_path):
    paths = [str(PROJECT), *map(str, site_folders())]
    interpreter, folder = make_venv(tmp_path, {"paths.pth": "\n".join(paths)})
    Hook(folder).install()
    program = (
        "import timm\n"
        "tiny = dict(growth_rate=4, block_config=(1, 1, 1, 1))\n"
        "print(len(timm.create_model('densenet121_features', **tiny).feature_info.channels()))\n"
    )
    done = python(interpreter, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
