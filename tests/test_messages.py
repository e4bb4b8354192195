"""Sentences of errors."""

import json
import re
from collections.abc import Sequence

import numpy as np
import pytest

from densenet_backbones.messages import (
    check_choice,
    check_interval,
    check_whole,
    describe_missing,
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
