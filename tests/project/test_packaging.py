import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from locations import PROJECT

PACKAGE = "densenet_backbones"
TEXT = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads(TEXT)
# Where the files of a (sub-)package lie in the repository.
FOLDERS = {PACKAGE: PACKAGE, f"{PACKAGE}.heads": "heads", f"{PACKAGE}.configs": "configs"}
# Parts that need the training tools; all others must do with the core dependencies.
TRAINING = tuple(
    f"{PACKAGE}.{module}"
    for module in (
        *("data", "metrics", "reporting", "inference", "export", "training"),
        *(
            "anatomy",
            "comparison",
            "inspection",
            "demo",
            "sharing",
            "smp_encoders",
            "benchmark.input_pipeline",
            "untrusted.plain_yaml",
        ),
        "command.completion",
    )
)
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
# Declared, but imported by a library for us.
INDIRECT = {
    "tensorboard": "Lightning's logger writes with it",
    "pyyaml": "jsonargparse reads configs with it",
    "scikit-learn": "Optuna's importances are made of its forests",
}


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and file of everything that is packaged."""
    for name, folder in FOLDERS.items():
        for path in sorted((PROJECT / folder).rglob("*.py")):
            if (PROJECT / PACKAGE / "heads") in path.parents:
                continue  # the link: its files come by their own folder
            parts = path.relative_to(PROJECT / folder).with_suffix("").parts
            yield ".".join((name, *(part for part in parts if part != "__init__"))), path


def test_package_list_is_what_lies_on_disk():
    packages = {
        module if path.name == "__init__.py" else module.rpartition(".")[0]
        for module, path in sources()
    }
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(packages)
    assert len(packages) == len(PYPROJECT["tool"]["setuptools"]["packages"])
    found = dict(sources())
    assert {f"{p}/__init__.py" for p in packages if p not in found} == set()


def test_folders_of_packages_outside_of_the_main_one_are_declared():
    declared = dict(PYPROJECT["tool"]["setuptools"]["package-dir"])
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        parent = next(n for n in sorted(FOLDERS, reverse=True) if f"{package}.".startswith(f"{n}."))
        folder = "/".join((FOLDERS[parent], *package.removeprefix(parent).split(".")[1:]))
        if parent != PACKAGE or package == PACKAGE:
            assert declared.pop(package) == folder
    assert declared == {}


def _folder(package: str) -> Path:
    """Where a package lies: as declared, or within the one above it."""
    declared = PYPROJECT["tool"]["setuptools"]["package-dir"]
    if package in declared:
        return PROJECT / declared[package]
    above, _, name = package.rpartition(".")
    return _folder(above) / name


def test_files_besides_modules_are_declared_as_data():
    setuptools = PYPROJECT["tool"]["setuptools"]
    declared = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in _folder(package).glob(pattern)
    }
    there = {
        path
        for folder in FOLDERS.values()
        for path in (PROJECT / folder).rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and path.name != "README.md"  # a room's page, for readers of the repository
        and (PROJECT / PACKAGE / "heads") not in path.parents
    }
    assert declared == there


def test_link_to_the_heads():
    link = PROJECT / PACKAGE / "heads"
    assert link.is_symlink()
    assert os.readlink(link) == "../heads"


def test_heads_are_not_imported_under_a_second_name(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT)
    with pytest.raises(ImportError, match=r"import densenet_backbones\.heads, not heads"):
        importlib.import_module("heads")


@pytest.mark.parametrize("script", PYPROJECT["project"]["scripts"])
def test_console_scripts_lead_to_functions(script):
    module, _, function = PYPROJECT["project"]["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_each_tool_is_short_and_has_a_console_script():
    tools = sorted((PROJECT / "tools").glob("*.py"))
    # `densenet` itself is none of them: it runs them by its table.
    assert {f"densenet-{tool.stem.replace('_', '-')}" for tool in tools} == set(
        PYPROJECT["project"]["scripts"]
    ) - {"densenet"}
    for tool in tools:
        script = PYPROJECT["project"]["scripts"][f"densenet-{tool.stem.replace('_', '-')}"]
        module, _, function = script.partition(":")
        assert f"from {module} import {function}\n" in tool.read_text(), tool
        assert len(tool.read_text().splitlines()) <= 60, tool


# -- dependencies -------------------------------------------------------------------------------


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", r).group().lower().replace("_", "-") for r in requirements}


EXTRAS = PYPROJECT["project"]["optional-dependencies"]
CORE = names(PYPROJECT["project"]["dependencies"])
TRAIN = CORE | names(EXTRAS["train"])
OPTIONAL = set().union(  # imported where they are used
    *(
        names(EXTRAS[extra])
        for extra in ("fast-eval", "export", "openvino", "int8", "demo", "heic", "tune")
    )
)


def _runs_later(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.Lambda)


def _is_for_types(node: ast.AST) -> bool:
    """True for ``if TYPE_CHECKING:`` without an else, which never runs."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        and not node.orelse
    )


def imported(source: str, *, on_import_only: bool = False) -> set[str]:
    """Distributions that a module imports; on request, only those needed to import it."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or ""
            elif not (on_import_only and (_runs_later(child) or _is_for_types(child))):
                yield from visit(child)

    tops = {name.partition(".")[0] for name in visit(ast.parse(source))}
    return {
        DISTRIBUTIONS.get(top, top.lower().replace("_", "-"))
        for top in tops - set(sys.stdlib_module_names) - {PACKAGE, "conftest", ""}
    }


def test_the_reader_of_imports_sees():
    source = "import os.path, cv2\nfrom PIL import Image\ndef f():\n  import faster_coco_eval.x"
    assert imported(source) == {"opencv-python-headless", "pillow", "faster-coco-eval"}
    assert imported(source, on_import_only=True) == {"opencv-python-headless", "pillow"}
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import cv2"
    assert imported(for_types, on_import_only=True) == set()
    assert imported(f"{for_types}\nelse:\n  import onnx", on_import_only=True) >= {"onnx"}


@pytest.mark.parametrize(("module", "path"), list(sources()), ids=lambda v: str(v).split("/")[-1])
def test_imports_are_declared(module, path):
    source = path.read_text(encoding="utf-8")
    if any(f"{module}.".startswith(f"{part}.") for part in TRAINING):
        assert imported(source, on_import_only=True) <= TRAIN
        assert imported(source) <= TRAIN | OPTIONAL
    elif f".{PACKAGE}.tuning" in f".{module}":
        assert imported(source) <= TRAIN | names(EXTRAS["tune"])
    elif ".dense_block.triton" in module:
        assert imported(source) <= CORE | {"triton"}  # torch brings it where it runs
    elif module.endswith((".contenders", ".charts")):  # they use what is installed
        assert imported(source, on_import_only=True) <= CORE
        assert imported(source) <= TRAIN | OPTIONAL
    else:
        assert imported(source) <= CORE


def test_dependencies_are_used():
    used = set().union(*(imported(path.read_text(encoding="utf-8")) for _, path in sources()))
    assert used | set(INDIRECT) >= TRAIN | OPTIONAL


def test_tests_import_what_dev_installs():
    # The project is on the path of pytest: see the processes that tests spawn.
    beside = {path.stem.replace("_", "-") for path in (PROJECT / "tests").rglob("*.py")} | {"tests"}
    optional = set().union(*map(names, EXTRAS.values()))
    allowed = TRAIN | optional | beside | {"triton"}  # torch brings it where it runs
    for path in sorted((PROJECT / "tests").rglob("*.py")):
        assert imported(path.read_text(encoding="utf-8")) <= allowed, path


def test_dev_takes_every_extra():
    own = next(r for r in EXTRAS["dev"] if r.startswith("densenet-backbones["))
    assert set(re.findall(r"[\w-]+", own.partition("[")[2])) == set(EXTRAS) - {"dev"}


def test_each_bound_has_a_lower_end_and_its_reason():
    groups = [PYPROJECT["project"]["dependencies"], *EXTRAS.values()]
    for requirement in (r for group in groups for r in group if "densenet-backbones[" not in r):
        assert ">=" in requirement, requirement
        reason = rf'^ +"{re.escape(requirement)}", +# .{{6,}}$'
        assert re.search(reason, TEXT, re.MULTILINE), f"{requirement}: say why"
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


def test_citation_and_changelog_name_the_version():
    version = PYPROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}] - " in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- the wheel and the checks -------------------------------------------------------------------


@pytest.mark.long
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    copy = tmp_path / "copy"
    without = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (PACKAGE, "heads", "configs", "tools", "tests"):
        shutil.copytree(PROJECT / name, copy / name, symlinks=True, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    # Without isolation: the tests need no package index.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    done = subprocess.run([*build, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    check = [sys.executable, PROJECT / ".ci" / "check_wheel.py"]
    compared = subprocess.run([*check, wheel], capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    shutil.move(wheel, tmp_path / "other.zip")
    with_more = shutil.make_archive(str(tmp_path / "more"), "zip", PROJECT, "tools")
    compared = subprocess.run([*check, with_more], capture_output=True, text=True, check=False)
    assert compared.returncode == 1
    assert "should not be there: tools/train_det.py" in compared.stdout
    assert "missing: densenet_backbones/py.typed" in compared.stdout


def test_the_checks_can_be_run():
    run = PROJECT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    subprocess.run(["bash", "-n", run], check=True)
