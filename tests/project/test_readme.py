"""Everything that the READMEs show: snippets run, commands and options, paths and links exist."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import re
import runpy
import socket
import sys
import tomllib
from collections.abc import Callable

import numpy as np
import pytest
from locations import PROJECT
from mask_sets import write_image, write_mask
from pages import BLOCKS, PAGES, ROOMS, Page, programs
from row_scripts import run_script

from densenet_backbones.benchmark.subcommands import SUBCOMMANDS
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.torchvision_models import MODELS
from densenet_backbones.training.recipes import choice
from densenet_backbones.training.recipes.facts import DataFacts

FRONT = PAGES[0]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHON = [block for block in BLOCKS if block.language in ("python", "py")]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "shell", "console")]
YAML = [block for block in BLOCKS if block.language in ("yaml", "yml")]
CLASSES = [block for block in YAML if block.text.startswith("classes:")]
EXPERIMENTS = [block for block in YAML if block not in CLASSES]

_spec = importlib.util.spec_from_file_location("rc", PROJECT / ".ci" / "readme_command.py")
readme_command = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_command)


# -- the pages ----------------------------------------------------------------------------------


def test_the_front_page_is_short_and_every_room_has_a_page():
    assert len(FRONT.text.splitlines()) <= 250
    for room in ROOMS:
        assert f"({room}/README.md" in FRONT.text, f"README.md does not lead to {room}"


@pytest.mark.parametrize("folder", ["det", "seg", "cls"])
def test_every_experiment_has_its_row(folder):
    rows = re.findall(r"^\| `(\w+)`", Page("configs/README.md").text, re.MULTILINE)
    names = {path.stem for path in (PROJECT / "configs" / folder).glob("*.yaml")}
    assert names and names <= set(rows)


def test_every_tool_and_measurement_has_its_row():
    rows = re.findall(r"^\| (`.*?) \|", Page("tools/README.md").text, re.MULTILINE)
    shown = set(re.findall(r"`([\w.]+)`", "\n".join(rows)))
    tools = {
        path.name for suffix in ("py", "sh") for path in (PROJECT / "tools").glob(f"*.{suffix}")
    }
    assert tools - {"rows.sh"} <= shown
    assert {command.name for command in SUBCOMMANDS} <= shown


def test_models_of_the_registry_are_named():
    shown = set(re.findall(r"`(\w+)`", Page("heads/README.md").text))
    # Detectors on any backbone are named by their forms on densenet121.
    on_any = {name for name in MODELS if "densenet" not in name and re.search("fpn|ssd", name)}
    others = {name for name in MODELS if re.search("densenet(74|161|169|201)", name)}
    assert set(MODELS) - on_any - others <= shown
    named = {name for name in shown if re.match(r"dsod\w*\d|fcdensenet|\w+_densenet121", name)}
    assert named <= set(MODELS)


def test_arguments_in_the_table_exist():
    table = FRONT.text[FRONT.text.index("| argument |") :].partition("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines()[2:]]
    shown = {name for first in firsts for name in re.findall(r"`(\w+)", first)}
    ours = {field.name for field in dataclasses.fields(DenseNetSpec)}
    ours |= set(inspect.signature(DenseFeatureNet).parameters)
    timms = {"memory", "in_chans", "pretrained", "checkpoint_path", "features_only"}
    assert shown and shown <= ours | timms


def test_rooms_stand_in_the_order_of_their_imports():
    source = (PROJECT / "tests" / "project" / "test_imports.py").read_text(encoding="utf-8")
    (rows,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROWS"
    )
    page = Page("densenet_backbones/README.md").text
    table = page[page.index("| room |") :].partition("\n\n")[0]
    shown = [
        re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table.splitlines()[2:]
    ]
    rank = {room: number for number, row in enumerate(rows) for room in row}
    assert all(shown)
    assert {room for names in shown for room in names} <= set(rank)
    for above, below in itertools.pairwise(shown):
        assert max(rank[room] for room in above) <= min(rank[room] for room in below), below


# -- Python -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def after_quick_start(tmp_path_factory):
    """A folder with what the quick start leaves (its detector untrained here) and a photo."""
    folder = tmp_path_factory.mktemp("readme")
    run = folder / "runs" / "quickstart"
    run.mkdir(parents=True)
    spec = DetectorSpec("dsod_tiny", {"image_size": 128}, Categories.from_names(["a", "b"]))
    save_model(run / "model.safetensors", spec, spec.build())
    scenes = generate_scenes(folder / "scenes", train=1, val=1, size=160, progress=False)
    (scenes / "train" / "train_000001.jpg").rename(folder / "photo.jpg")
    return folder


def test_most_pages_show_python():
    assert len({block.page for block in PYTHON}) >= 4


@pytest.mark.parametrize(
    "block",
    [
        # Compilers and exporters take their time.
        pytest.param(b, marks=[pytest.mark.long] * ("torch.onnx" in b.text), id=str(b))
        for b in PYTHON
    ],
)
def test_python_runs_as_it_stands(block, after_quick_start, monkeypatch):
    if "sklearn" in block.text:  # only a source of pictures, no dependency
        pytest.importorskip("sklearn")
    connect = socket.socket.connect

    def only_inside(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"the block at {block} wants the network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_inside)
    monkeypatch.chdir(after_quick_start)
    padded = "\n" * (block.line - 1) + block.text  # so that errors name lines of the page
    exec(compile(padded, block.page, "exec"), {"__name__": "__main__"})


# -- commands -----------------------------------------------------------------------------------


def test_the_reader_of_commands_sees():
    block = (
        "A=1 python tools/train_det.py \\\n  --epochs 3  # long\ncd x && densenet-predict a.ckpt\n"
        "python -m densenet_backbones.run x.py\ntools/rows.sh -n"
    )
    assert list(programs(block)) == [
        ("densenet-train-det", ("--epochs", "3")),
        ("densenet-predict", ("a.ckpt",)),
        ("densenet_backbones.run", ("x.py",)),
        ("rows.sh", ("-n",)),
    ]


# For each training tool, the line that its resolved experiment has.
TRAINERS = {
    "densenet-train-det": "  detector: ",
    "densenet-train-seg": "  segmenter: ",
    "densenet-train-cls": "  classifier: ",
    "densenet": "er: ",
}
SHOWN = list(dict.fromkeys(program for block in SHELL for program in programs(block.text)))
TRAININGS = [
    program
    for program in SHOWN
    if program[0] in TRAINERS and (program[0] != "densenet" or program[1][:1] == ("train",))
]
SCRIPTS = [program for program in SHOWN if program[0].endswith(".sh")]
OTHERS = [program for program in SHOWN if program not in TRAININGS + SCRIPTS]


def entry(name: str) -> Callable[[list[str]], object]:
    """The function behind a console script or, for a dotted name, behind ``python -m``."""
    if not re.match("densenet(-|$)", name):
        return lambda arguments: run_module(name, arguments)
    assert name in PYPROJECT["scripts"], f"{name} is shown, which is not there"
    module, _, function = PYPROJECT["scripts"][name].partition(":")
    return getattr(importlib.import_module(module), function)


def run_module(name: str, arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_module(name, run_name="__main__")


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", text))


@pytest.fixture
def help_of(capsys):
    def ask(name: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            entry(name)([*arguments])
        out = capsys.readouterr()
        assert stop.value.code in (0, None), out.err
        return out.out

    return ask


def test_commands_are_one_line_to_paste():
    assert readme_command.command(FRONT.text, "test").endswith("pytest -n auto")
    assert readme_command.command(FRONT.text, "test-long") == ".venv/bin/pytest -n auto -m long"
    # Continuous integration adds --dry-run to this one.
    assert readme_command.command(FRONT.text, "run").endswith("tools/train_det.py")


def test_extras_exist():
    extras = ",".join(re.findall(r"\.\[([\w,-]+)\]", "\n".join(page.text for page in PAGES)))
    assert extras
    assert set(extras.split(",")) <= set(PYPROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    "text",
    [
        "```bash\npytest\n```\n",
        "<!-- command: test -->\nno block\n",
        "<!-- command: test -->\n```bash\npytest\nruff\n```\n",
        "<!-- command: test -->\n```bash\npytest\n```\n" * 2,
    ],
)
def test_a_command_that_is_not_clear_is_an_error(text):
    with pytest.raises(ValueError, match="command: test"):
        readme_command.command(text, "test")


def test_every_tool_is_shown():
    assert set(PYPROJECT["scripts"]) <= {name for name, _ in SHOWN}


@pytest.mark.parametrize(("name", "arguments"), OTHERS)
def test_flags_exist(name, arguments, help_of):
    used = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    # Sub-commands have their own help; the words of other programs are files.
    first = {"densenet-benchmark": 1, "densenet": 1}.get(name, 0)
    first += arguments[:1] == ("benchmark",)
    known = flags(help_of(name, *arguments[:first], "--help"))
    if {"sweep", "prune"} & {name.removeprefix("densenet-"), *arguments[:1]}:  # and a training's
        known |= flags(help_of("densenet-train-det", "--help"))
        if not set(used) <= known:  # longer names are in the longer help
            known |= flags(help_of("densenet-train-cls", "--help-all"))
        used = [re.sub(r"^(--model\.args)\..*", r"\1", word) for word in used]
    assert set(used) <= known


@pytest.mark.parametrize(("name", "arguments"), TRAININGS)
def test_trainings_resolve(name, arguments, help_of, monkeypatch):
    """Data sets that the pages name are not there: a recipe is shown some numbers instead."""
    monkeypatch.chdir(PROJECT)
    kind = "semantic" if name.endswith("seg") else "boxes"
    facts = DataFacts(kind, 100, (640, 480))
    monkeypatch.setattr(choice, "gather_facts", lambda data: facts)
    assert TRAINERS[name] in help_of(name, *arguments, "--print_config")


@pytest.mark.parametrize(("name", "arguments"), SCRIPTS)
def test_scripts_know_their_rows(name, arguments, tmp_path):
    done = run_script(name, "-n", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--run-dir" in done.stdout


def test_names_imported_in_commands_exist():
    shown = re.findall(
        r"from (densenet_backbones[\w.]*) import (\w+)", "\n".join(block.text for block in SHELL)
    )
    assert shown
    for module, name in shown:
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("block", EXPERIMENTS, ids=str)
def test_experiments_resolve(block, help_of, tmp_path):
    (tmp_path / "shown.yaml").write_text(block.text)
    both = ["--config", "quickstart", "--config", str(tmp_path / "shown.yaml")]
    assert "detector: " in help_of("densenet-train-det", *both, "--print_config")


@pytest.mark.parametrize("block", CLASSES, ids=str)
def test_classes_of_mask_folders_are_read(block, tmp_path):
    (tmp_path / "classes.yaml").write_text(block.text)
    mask = np.array([[7, 24], [0, 255]], np.uint8)
    write_image(tmp_path / "images" / "train" / "a.jpg", mask)
    write_mask(tmp_path / "masks" / "train" / "a.png", mask, mode="L")
    data = read_segmentation(tmp_path, "train")
    assert data.classes.names == ("road", "person")
    assert data.records[0].read_mask().tolist() == [[0, 1], [255, 255]]


def test_there_are_experiments_and_a_classes_file_to_show():
    assert EXPERIMENTS and CLASSES


def test_flags_in_the_text_exist(help_of):
    known = flags(help_of("densenet-train-det", "--help"))
    known |= flags(help_of("densenet-train-det", "--help-all"))
    known |= flags(help_of("densenet-train-seg", "--help-all"))
    known |= flags(help_of("densenet-train-cls", "--help-all"))
    for word in ("train", "prune"):
        known |= flags(help_of("densenet", word, "--help"))
    trainers = ("densenet-train-det", "densenet-benchmark")  # with helps of their own
    for name in set(PYPROJECT["scripts"]) - set(trainers):
        known |= flags(help_of(name, "--help"))
    for name in ("all", *(command.name for command in SUBCOMMANDS)):
        known |= flags(help_of("densenet-benchmark", name, "--help"))
    known |= {"--device-modules", "--model-kwargs"}  # of timm's train.py
    known |= {"--model", "--weights-backbone"}  # of torchvision's references
    known |= {"--accept"}  # of tests/quick_schedules/run.py
    code = [c for page in PAGES for c in re.findall(r"`(--[^`]+)`", page.prose)]
    shown = set().union(*map(flags, code))
    shown -= {flag for flag in shown if flag.startswith("--model.args.")}  # of each model
    assert shown
    assert shown <= known


# -- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_paths_and_links_exist(page):
    inside = r"(?:tools|configs|tests|heads|densenet_backbones|\.ci|\.github)/[\w./*-]*[\w*]"
    shown = set(re.findall(rf"(?<![\w/.-]){inside}", page.text))
    assert [path for path in sorted(shown) if not list(PROJECT.glob(path))] == []
    assert list(page.wrong_links()) == []
