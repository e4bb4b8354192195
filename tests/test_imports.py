import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

import densenet_backbones

PACKAGE = "densenet_backbones"
# Low to high: a module imports from its own room or from lower rows, never from the same row.
ROWS = (
    {"dense_block", "densenet_spec"},
    {"variants"},
    {"checkpoints", "pooling"},
    {"layers"},
    {"stages"},
    {"densenet", "condensenet"},
    {"features"},
    {"timm_models"},
    {"deploy"},
    {"fpn"},
    {"heads"},
    {"data", "torchvision_models", "smp_encoders", "configs"},
    {"analysis"},  # above the data: the benchmark measures the input pipeline too
    {"training"},
    {"tools", "run", "install_hook"},
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
HEAVY = ("lightning", "albumentations", "pycocotools", "segmentation_models_pytorch", "matplotlib")


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


def test_imports_run_one_way():
    found = dict(modules())
    assert {f"{PACKAGE}.densenet", f"{PACKAGE}.heads.__init__"} <= set(found)
    wrong = [w for module, path in found.items() for w in wrong_imports(module, path.read_text())]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("features", "from densenet_backbones.densenet import DenseNet", None),
        ("densenet", "from densenet_backbones.features import DenseFeatureNet", "the other way"),
        ("densenet", "import densenet_backbones.features", "the other way"),
        ("densenet", "def f():\n    from densenet_backbones import features", "the other way"),
        ("dense_block.plain", "from densenet_backbones.checkpoints import keys", "the other way"),
        ("heads.dsod", "from densenet_backbones.data.samples import Sample", "the other way"),
        ("heads.dsod", "from densenet_backbones.heads.losses import f", None),
        ("heads.dsod", "from .losses import f", "absolute"),
        ("training.x", "import densenet_backbones", "package root"),
        ("training.x", "from densenet_backbones import DenseNet", "without a row"),
        ("training.x", "from densenet_backbones.analysis.plan import plan", None),
        ("utils", "from densenet_backbones.features import f", "without a row"),
        ("__init__", "from densenet_backbones.features import DenseFeatureNet", None),
    ],
)
def test_the_reader_of_imports_sees(module, source, wrong):
    found = wrong_imports(f"{PACKAGE}.{module}", source)
    assert found == [] if wrong is None else wrong in found[0]


def run_fresh(program: str) -> str:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light_and_registers():
    out = run_fresh(
        "import sys, densenet_backbones, timm\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "print(timm.is_model('densenet121_features'))"
    )
    assert out.split("\n")[:2] == ["[]", "True"]


def test_root_names():
    for name in densenet_backbones.__all__:
        if name != "load":  # it needs the training tools
            assert getattr(densenet_backbones, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        densenet_backbones.lod  # noqa: B018


def test_version_is_that_of_the_package():
    declared = f'version = "{densenet_backbones.__version__}"'
    assert declared in (PROJECT / "pyproject.toml").read_text()


def test_load_is_found_on_first_use():
    from densenet_backbones.training.detector import load

    assert densenet_backbones.load is load
