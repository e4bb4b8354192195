"""Sentences of errors."""

import ast
import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
from locations import PROJECT

from densenet_backbones.messages import (
    check_choice,
    check_interval,
    check_whole,
    describe_missing,
    pluralize,
    to_plain,
)


def test_a_legal_value_passes():
    check_choice("tap", "raw", ("raw", "norm"))
    check_choice("norm", None, ("bn", None))
    check_interval("rate", 0, "[0, 1)")
    check_interval("scale", 1e300, "(0, inf)")
    check_whole("classes", np.int64(1))
    check_whole("seed", 0, least=0)


@pytest.mark.parametrize(
    ("check", "arguments", "sentence"),
    [
        (
            check_choice,
            ("Nrom", ("raw", "norm")),
            "'raw', 'norm', got 'Nrom'; did you mean 'norm'?",
        ),
        (check_choice, (3, ("bn", None)), "be one of 'bn', None, got 3"),
        (check_choice, ("NHWC", ("NCHW",)), "be 'NCHW', got 'NHWC'; did you mean 'NCHW'?"),
        (check_choice, ("net40", ("net201", "net40_k12_x", "net40_k12")), "mean 'net40_k12'?"),
        (check_interval, (1, "[0, 1)"), "lie in [0, 1), got 1"),
        (check_interval, (0.0, "(0, 1]"), "lie in (0, 1], got 0.0"),
        (check_interval, (float("nan"), "[0, 1]"), "lie in [0, 1], got nan"),
        (check_interval, (float("inf"), "(0, inf)"), "be above 0 and finite, got inf"),
        (check_interval, (-1, "[0, inf)"), "be at least 0 and finite, got -1"),
        (check_whole, (0,), "be at least 1, got 0"),
        (check_whole, (True,), "be a whole number, got True"),
        (check_whole, (2.0,), "be a whole number, got 2.0; write 2"),
        (check_whole, (2.5,), "be a whole number, got 2.5"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_legal(check, arguments, sentence):
    with pytest.raises(ValueError, match=f"^argument must .*{re.escape(sentence)}$"):
        check("argument", *arguments)


class Config(Sequence):
    """A list as OmegaConf's: a sequence that is neither a list nor a tuple."""

    def __init__(self, *entries):
        self.entries = entries

    def __getitem__(self, index):
        return self.entries[index]

    def __len__(self):
        return len(self.entries)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (range(1, 3), [1, 2]),
        (Config(np.int64(1), Config(2)), [1, [2]]),
        ((np.int64(1), None), (1, None)),
        ({"block_config": Config(1, 2)}, {"block_config": [1, 2]}),
        ("text", "text"),
        (2.0, 2.0),
    ],
)
def test_numbers_and_sequences_of_libraries_become_plain(value, plain):
    found = to_plain(value)
    assert found == plain and type(found) is type(plain)
    assert json.dumps(found)


def test_a_path_that_is_not_there_is_answered_with_the_nearest_beside_it(tmp_path):
    (tmp_path / "photos").mkdir()
    missing = describe_missing(tmp_path / "fotos", "file or folder")
    assert missing.endswith("fotos: there is no such file or folder; did you mean 'photos'?")
    assert describe_missing(tmp_path / "x" / "y").endswith("no such file; check the path")
    (tmp_path / "circle").symlink_to("circle")
    circle = describe_missing(tmp_path / "circle")
    assert circle.endswith(
        "circle: is a link to circle, which is not there or leads in a circle; correct the link"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((2, "more class"), "2 more classes"),
        ((3, "box"), "3 boxes"),
        ((3, "batch"), "3 batches"),
        ((3, "epoch"), "3 epochs"),
        ((2, "entry"), "2 entries"),
        ((1, "image is", "images are"), "1 image is"),
        ((2, "image is", "images are"), "2 images are"),
    ],
)
def test_a_count_and_its_noun(arguments, expected):
    assert pluralize(*arguments) == expected
    assert pluralize(1234, "image", grouped=True) == "1,234 images"


COUNTED = (
    "annotations batches boxes classes detections entries epochs evaluations faults files frames "
    "images keypoints masks objects pictures points steps tensors threads times trials"
)
AFTER_A_COUNT = re.compile(rf" (?:\w+ )?(?:{COUNTED.replace(' ', '|')})\b(?!/)")
VERBS = re.compile(r" (?:for|has|have|of|and|with|in|without)\b")


def list_bare_plurals(text):
    """Yield the line of each f-string with a number and a plural, which "1 images" comes of."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for number, word in zip(node.values, node.values[1:], strict=False):
            if not isinstance(number, ast.FormattedValue) or not isinstance(word, ast.Constant):
                continue
            counted = AFTER_A_COUNT.match(str(word.value)) and not VERBS.match(str(word.value))
            name = ast.unparse(number.value)
            is_limit = re.fullmatch(r"[A-Z_\d /.*]+", name)
            if counted and number.conversion == -1 and not is_limit:
                yield f"{node.lineno}: {{{name}}}{word.value}"


NO_COUNTS = {"name", "ratio", "shape", "decoded", "len(annotation['keypoints']) / 3"}


@pytest.mark.parametrize("room", ["densenet_backbones", "heads", "tools"])
def test_no_message_counts_one_images(room):
    assert list(list_bare_plurals('f"{n} images"')) and not list(list_bare_plurals('f"{n} of it"'))
    bare = [
        f"{file.relative_to(PROJECT)}:{line}"
        for file in sorted((PROJECT / room).rglob("*.py"))
        for line in list_bare_plurals(file.read_text("utf-8"))
        if line.partition("{")[2].partition("}")[0] not in NO_COUNTS
    ]
    assert not bare, f"use messages.pluralize: {bare}"
