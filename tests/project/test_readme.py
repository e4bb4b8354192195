import importlib
import importlib.util
import re
import shlex
import socket
import tomllib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from locations import PROJECT
from mask_sets import write_image, write_mask

from densenet_backbones.benchmark.commands import COMMANDS
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.samples import Categories
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import save_model

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# First line and content of each fenced block, by its language.
FENCED = [
    (TEXT.count("\n", 0, found.start()) + 2, found[1], found[2])
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]
PYTHON = [(line, block) for line, language, block in FENCED if language in ("python", "py")]
SHELL = [block for _, language, block in FENCED if language in ("bash", "sh", "shell", "console")]
YAML = [block for _, language, block in FENCED if language in ("yaml", "yml")]
CLASSES = [block for block in YAML if block.startswith("classes:")]
EXPERIMENTS = [block for block in YAML if block not in CLASSES]

_spec = importlib.util.spec_from_file_location("rc", PROJECT / ".ci" / "readme_command.py")
readme_command = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_command)


# -- Python -------------------------------------------------------------------------------------


def test_there_is_python_to_show():
    assert PYTHON


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


@pytest.mark.parametrize(("line", "block"), PYTHON, ids=[f"line {line}" for line, _ in PYTHON])
def test_python_runs_as_it_stands(line, block, after_quick_start, monkeypatch):
    connect = socket.socket.connect

    def only_inside(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            raise AssertionError(f"the block at line {line} of README.md wants the network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_inside)
    monkeypatch.chdir(after_quick_start)
    padded = "\n" * (line - 1) + block  # so that errors name lines of the README
    exec(compile(padded, "README.md", "exec"), {"__name__": "__main__"})


# -- commands -----------------------------------------------------------------------------------


def programs(block: str) -> Iterator[tuple[str, list[str]]]:
    """The programs of ours in a shell block, as names of console scripts, with their arguments."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.removeprefix("$ ").split("&&"):
            words = shlex.split(command, comments=True)
            for place, word in enumerate(words):
                tool = re.fullmatch(r"(?:.*/)?tools/(\w+)\.py", word)
                script = re.fullmatch(r"(?:.*/)?(densenet-[\w-]+)", word)
                if tool or script:
                    name = f"densenet-{tool[1].replace('_', '-')}" if tool else script[1]
                    yield name, words[place + 1 :]
                    break


def test_the_reader_of_commands_sees():
    block = (
        "A=1 python tools/train_det.py \\\n  --epochs 3  # long\ncd x && densenet-predict a.ckpt"
    )
    assert list(programs(block)) == [
        ("densenet-train-det", ["--epochs", "3"]),
        ("densenet-predict", ["a.ckpt"]),
    ]


# What each training's resolved experiment names.
TRAINERS = {"densenet-train-det": "detector: ", "densenet-train-seg": "segmenter: "}
SHOWN = [program for block in SHELL for program in programs(block)]


def entry(name: str) -> Callable[[list[str]], object]:
    assert name in PYPROJECT["scripts"], f"README.md shows {name}, which is not there"
    module, _, function = PYPROJECT["scripts"][name].partition(":")
    return getattr(importlib.import_module(module), function)


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


def test_both_commands_are_one_line_to_paste():
    assert readme_command.command(TEXT, "test").endswith("pytest -n auto")
    # Continuous integration adds --dry-run to this one.
    assert readme_command.command(TEXT, "run").endswith("tools/train_det.py")
    for name in ("run", "test"):
        extras = re.findall(r"\[([\w,-]+)\]", readme_command.command(TEXT, name))
        assert extras
        assert set(",".join(extras).split(",")) <= set(PYPROJECT["optional-dependencies"])


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


def test_there_are_commands_to_show():
    assert {"densenet-train-det", "densenet-evaluate", "densenet-predict"} <= dict(SHOWN).keys()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name, arguments in SHOWN if name not in TRAINERS],
)
def test_flags_exist(name, arguments, help_of):
    given = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    known = flags(help_of(name, *arguments[:first], "--help"))
    assert set(given) <= known


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, arguments in SHOWN if name in TRAINERS]
)
def test_trainings_resolve(name, arguments, help_of, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert TRAINERS[name] in help_of(name, *arguments, "--print_config")


@pytest.mark.parametrize("block", EXPERIMENTS)
def test_experiments_resolve(block, help_of, tmp_path):
    (tmp_path / "shown.yaml").write_text(block)
    both = ["--config", "quickstart", "--config", str(tmp_path / "shown.yaml")]
    assert "detector: " in help_of("densenet-train-det", *both, "--print_config")


@pytest.mark.parametrize("block", CLASSES)
def test_classes_of_mask_folders_are_read(block, tmp_path):
    (tmp_path / "classes.yaml").write_text(block)
    mask = np.array([[7, 24], [0, 255]], np.uint8)
    write_image(tmp_path / "images" / "train" / "a.jpg", mask)
    write_mask(tmp_path / "masks" / "train" / "a.png", mask, mode="L")
    found = read_segmentation(tmp_path, "train")
    assert found.classes.names == ("road", "person")
    assert found.records[0].read_mask().tolist() == [[0, 1], [255, 255]]


def test_there_is_a_classes_file_to_show():
    assert CLASSES


def test_flags_in_the_text_exist(help_of):
    known = flags(help_of("densenet-train-det", "--help"))
    known |= flags(help_of("densenet-train-det", "--help-all"))
    known |= flags(help_of("densenet-train-seg", "--help-all"))
    for name in ("densenet-train-seg", "densenet-evaluate", "densenet-predict", "densenet-export"):
        known |= flags(help_of(name, "--help"))
    for name in ("all", *(command.name for command in COMMANDS)):
        known |= flags(help_of("densenet-benchmark", name, "--help"))
    known |= {"--device-modules", "--model-kwargs"}  # of timm's train.py
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    shown = {flag for code in re.findall(r"`(--[^`]+)`", prose) for flag in flags(code)}
    assert shown
    assert shown <= known


# -- paths --------------------------------------------------------------------------------------


def test_paths_exist():
    inside = r"(?:tools|configs|tests|heads|densenet_backbones|\.ci)/[\w./*-]*[\w*]"
    shown = set(re.findall(rf"(?<![\w/.-]){inside}", TEXT))
    linked = {p for p in re.findall(r"\]\(([^)#\s]+)", TEXT) if "://" not in p}
    assert shown
    assert [path for path in sorted(shown | linked) if not list(PROJECT.glob(path))] == []
