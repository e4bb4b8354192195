import ast
import graphlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh_processes import run_fresh
from locations import PROJECT

import densenet_backbones

PACKAGE = "densenet_backbones"
# Low to high: a module imports from its own room or from lower rows, never from the same row.
ROWS = (
    {"messages", "file_writing", "garbage"},
    {"untrusted"},
    {"dense_block", "densenet_spec", "condensenet"},
    {"variants"},
    {"pooling"},
    {"layers"},
    {"checkpoints"},
    {"stages"},
    {"densenet"},
    {"features"},
    {"timm_models"},
    {"deploy"},
    {"fpn"},
    {"heads"},
    {"data", "analysis", "torchvision_models", "smp_encoders", "configs"},
    {"metrics"},
    {"reporting"},
    {"inference"},
    {"training"},
    {"export", "sharing", "demo", "inspection"},
    {"anatomy"},
    {"benchmark", "comparison"},
    {"tuning"},
    {"tools", "run", "command"},
    {"__main__"},
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the repository's package and tools."""
    for path in sorted((PROJECT / PACKAGE).rglob("*.py")):  # rglob does not follow the heads link
        if "heads" not in path.relative_to(PROJECT / PACKAGE).parts:
            yield ".".join(path.relative_to(PROJECT).with_suffix("").parts), path
    for folder in ("heads", "configs", "tools"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            inside = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            yield f"{PACKAGE}.{inside}", path


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else None


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and target of each import of ours; relative ones come out as such."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from densenet_backbones import fpn` means the module fpn
            bare = base == PACKAGE
            names = [f"{base}.{alias.name}" if bare else base for alias in node.names]
        else:
            continue
        yield from (
            (node.lineno, n) for n in names if n.startswith(".") or n.split(".")[0] == PACKAGE
        )


def wrong_imports(module: str, source: str) -> list[str]:
    room = room_of(module)
    wrong = []
    for line, target in imports(ast.parse(source), module):
        place = f"{module}:{line} imports {target}"
        if target.startswith("."):
            wrong.append(f"{place}: imports are absolute")
        elif room is None:
            continue  # the package root shows what the rooms hold
        elif room_of(target) is None:
            wrong.append(f"{place}: nothing imports from the package root")
        elif room_of(target) not in RANK or room not in RANK:
            wrong.append(f"{place}: a room without a row in this test")
        elif room_of(target) != room and RANK[room_of(target)] >= RANK[room]:
            wrong.append(f"{place}: imports run the other way")
    return wrong


def imported_files(tree: ast.AST, module: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of each import, `from package import module` as that module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            for target in (f"{base}.{name}", f"{base}.{name}.__init__", base, f"{base}.__init__"):
                if target in known and target != module:
                    yield node.lineno, target
                    break


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """A chain of modules that import each other and end where they began, if there is one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"a": "import p.b", "b": "from p import c", "c": "x = 1"}, None),
        ({"a": "import p.b", "b": "from p import a"}, {"p.a", "p.b"}),
        ({"a": "from p.b import f", "b": "def f():\n    from p.a import g"}, {"p.a", "p.b"}),
    ],
)
def test_the_reader_of_circles_sees(files, chain):
    known = {f"p.{name}" for name in files}
    graph = {
        f"p.{name}": {t for _, t in imported_files(ast.parse(source), f"p.{name}", known)}
        for name, source in files.items()
    }
    found = circle_in(graph)
    assert found is None if chain is None else set(found) == chain


def test_imports_run_one_way():
    found = dict(modules())
    assert {f"{PACKAGE}.densenet", f"{PACKAGE}.heads.__init__"} <= set(found)
    wrong = [w for module, path in found.items() for w in wrong_imports(module, path.read_text())]
    assert wrong == []


def test_no_files_import_in_a_circle():
    """Holds inside the rooms too; a package stands for its ``__init__.py``."""
    found = dict(modules())
    graph = {
        module: {t for _, t in imported_files(ast.parse(path.read_text()), module, set(found))}
        for module, path in found.items()
    }
    assert circle_in(graph) is None


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("features", "from densenet_backbones.densenet import DenseNet", None),
        ("densenet", "from densenet_backbones.features import DenseFeatureNet", "the other way"),
        ("densenet", "import densenet_backbones.features", "the other way"),
        ("densenet", "def f():\n    from densenet_backbones import features", "the other way"),
        ("dense_block.plain", "from densenet_backbones.checkpoints import keys", "the other way"),
        ("heads.dsod", "from densenet_backbones.data.samples import Sample", "the other way"),
        ("heads.dsod", "from densenet_backbones.heads.multibox.losses import f", None),
        ("heads.dsod", "from .losses import f", "absolute"),
        ("training.x", "import densenet_backbones", "package root"),
        ("training.x", "from densenet_backbones import DenseNet", "without a row"),
        ("training.x", "from densenet_backbones.analysis.plan import plan", None),
        ("data.x", "from densenet_backbones.training.tasks.task import Task", "the other way"),
        ("utils", "from densenet_backbones.features import f", "without a row"),
        ("__init__", "from densenet_backbones.features import DenseFeatureNet", None),
    ],
)
def test_the_reader_of_imports_sees(module, source, wrong):
    found = wrong_imports(f"{PACKAGE}.{module}", source)
    assert found == [] if wrong is None else wrong in found[0]


def test_root_names():
    assert set(densenet_backbones.__all__) <= set(dir(densenet_backbones))
    for name in densenet_backbones.__all__:
        if name != "load":  # it needs the training tools
            assert getattr(densenet_backbones, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        densenet_backbones.lod  # noqa: B018


def test_version_is_that_of_the_package():
    declared = f'version = "{densenet_backbones.__version__}"'
    assert declared in (PROJECT / "pyproject.toml").read_text()


def test_load_is_found_on_first_use():
    from densenet_backbones.inference.loading import load

    assert densenet_backbones.load is load


def test_a_checkout_without_links_is_imported(tmp_path):
    """Git for Windows and unzip write the link to the heads as a file that names its target."""
    for folder in (PACKAGE, "heads"):
        files = shutil.ignore_patterns("heads", "__pycache__", "data", "training", "benchmark")
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=files, symlinks=True)
    (tmp_path / PACKAGE / "heads").write_text("../heads")
    out = run_fresh(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import densenet_backbones, densenet_backbones.heads as heads, torchvision\n"
        "print(densenet_backbones.__file__, heads.__file__)\n"
        "print('dsod300' in torchvision.models.list_models())"
    )
    package, heads = out.split("\n")[0].split(" ")
    assert package == str(tmp_path / PACKAGE / "__init__.py")
    assert heads == str(tmp_path / "heads/__init__.py")
    assert out.split("\n")[1] == "True"
