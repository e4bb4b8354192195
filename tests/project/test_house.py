"""Rooms stay small, and the first line of every docstring can be read by a newcomer."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from locations import PROJECT

ROOMS = ("densenet_backbones", "heads", "tools")
MOST_FILES = 14
RIDDLE = re.compile(r"(What|How|Whether|Which|Of each|Of the|Of what)\b")
DECODERS = re.compile(
    r"(.*\.)?(Image\.open|imread\w*|imdecode\w*|ImageFile\.Parser|decode_(image|jpeg|png|gif|webp))"
    r"|(torchvision\.)?io\.read_image"
)


def sources() -> Iterator[Path]:
    """Every Python file of the rooms; the link to heads is not followed."""
    for room in ROOMS:
        yield from sorted((PROJECT / room).rglob("*.py"))


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and first line of each docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.partition("\n")[0]


def riddles(source: str) -> list[str]:
    """First lines that hide behind a question word what a thing is or does."""
    return [f"{line}: {first}" for line, first in docstrings(source) if RIDDLE.match(first)]


def test_rooms_stay_small():
    files = Counter(path.parent for path in sources() if path.name != "__init__.py")
    crowded = {str(room.relative_to(PROJECT)): n for room, n in files.items() if n > MOST_FILES}
    assert crowded == {}, "give the room walls: folders named for what passes through"


def test_every_file_says_what_it_is_for():
    silent = [path for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_docstrings_begin_with_a_verb_or_a_noun():
    wrong = {
        str(path.relative_to(PROJECT)): lines
        for path in sources()
        if (lines := riddles(path.read_text()))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("first", "wrong"),
    [
        ("What a reader returns.", True),
        ("Whether the file is there.", True),
        ("Return True if the file is there.", False),
        ("Whole images, never crops.", False),
    ],
)
def test_the_reader_of_docstrings_sees(first, wrong):
    source = f'"""{first}"""'
    assert bool(riddles(source)) == wrong
    assert bool(riddles(f'def f():\n    """{first}\n\n    What it says."""')) == wrong


def decoder_calls(source: str) -> list[str]:
    """Calls that decode an image file or its bytes: Pillow's, OpenCV's and those of others."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [name for name in map(ast.unparse, calls) if DECODERS.fullmatch(name)]


def test_one_function_alone_opens_images():
    found = {
        str(path.relative_to(PROJECT)): calls
        for path in sources()
        if (calls := decoder_calls(path.read_text()))
    }
    assert found == {"densenet_backbones/data/images.py": ["Image.open"]}, (
        "call open_image of densenet_backbones/data/images.py: it bounds formats and sizes"
    )


@pytest.mark.parametrize(
    "call",
    [
        "PIL.Image.open(path)",
        "Image.open(path)",
        "cv2.imread(path)",
        "cv2.imdecode(data, 1)",
        "plt.imread(path)",
        "io.decode_image(data)",
        "torchvision.io.read_image(path)",
    ],
)
def test_the_search_for_decoders_sees(call):
    assert decoder_calls(call)
