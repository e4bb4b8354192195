"""Slices of a JSON file are what the standard library's parser makes of the whole."""

import json
import math
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from densenet_backbones.data.packing import json_slices
from densenet_backbones.data.packing.json_slices import read_members

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner, max_size=9)
    ),
    max_leaves=20,
)


@pytest.fixture(autouse=True)
def narrow_window(monkeypatch):
    """A few characters at once, so that every kind of value is cut somewhere."""
    monkeypatch.setattr(json_slices, "_CHUNK", 7)
    monkeypatch.setattr(json_slices, "_NUMBER", 60)
    monkeypatch.setattr(json_slices, "BATCH", 3)


def join(path):
    """The whole value, put together from its slices."""
    content = {}
    for name, first, value in read_members(path, float):
        if name is None:
            content = value
        elif first is None:
            content[name] = value
        else:
            content[name] = (content[name] if first else []) + value
            assert first % 3 == 0 and len(value) <= 3
    return content


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(value=VALUES, indent=st.sampled_from([None, 0, 2]))
def test_slices_make_the_whole(tmp_path, value, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    assert repr(join(path)) == repr(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2, 3, 4, 5], "b": 12345678.5, "a": [6]}',
        '{"number that is cut": [123456789.25, -1.5e-7, 123456789012345678]}',
        '\ufeff{"a": []}\n',
        "12345678901234",
        " { } ",
        '{"a": [NaN, Infinity, -Infinity, true, null]}',
        '{"a": ["' + "x" * 50 + '\\u00e9", {"b": "' + "]}" * 20 + '"}]}',
    ],
)
def test_values_on_the_edge_of_a_slice(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert repr(join(path)) == repr(json.loads(text.lstrip("\ufeff")))


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@example(value={"": None}, place=24, sign="}")  # behind a comma
@given(value=VALUES, place=st.integers(0, 200), sign=st.sampled_from([*'{}[],:"x1\n\\', ""]))
def test_faults_are_found_where_the_standard_library_finds_them(tmp_path, value, place, sign):
    text = json.dumps({"a": value, "b": [value]}, indent=1)
    text = text[:place] + sign + text[place + 1 :]
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(json.JSONDecodeError) as caught:
            join(path)
        assert (caught.value.lineno, caught.value.colno) == (error.lineno, error.colno)
        assert caught.value.msg == error.msg
    else:
        assert repr(join(path)) == repr(expected)


def test_a_fault_ends_the_reading(tmp_path, monkeypatch):
    """A large file with a fault in front is not read to its end, nor kept."""
    monkeypatch.setattr(json_slices, "_CHUNK", 2**16)
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"b": x' + ", 1" * 2_000_000 + "]}")
    tracemalloc.start()
    with pytest.raises(json.JSONDecodeError, match="Expecting value: line 1 column 14"):
        join(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_constants_are_noted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, NaN], "b": -Infinity}')
    seen = []
    list(read_members(path, lambda name: seen.append(name) or math.nan))
    assert set(seen) == {"NaN", "-Infinity"}  # again where a slice ends behind one
