"""Files appear whole or not at all, whatever interrupts their writing."""

import json
import os
from pathlib import Path

import pytest

from densenet_backbones.file_writing import replace_file, save_bytes, save_json, save_text


def test_contents_and_folders(tmp_path):
    save_bytes(tmp_path / "a" / "b.bin", b"\r\n\x00")
    save_text(tmp_path / "a" / "c.txt", "größer\n")
    save_json(tmp_path / "d.json", {"a": [1, None]})
    save_json(tmp_path / "e.json", [1, 2], indent=None)
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\r\n\x00"
    assert (tmp_path / "a" / "c.txt").read_bytes() == "größer\n".encode()
    assert json.loads((tmp_path / "d.json").read_text()) == {"a": [1, None]}
    assert (tmp_path / "e.json").read_text() == "[1, 2]\n"


@pytest.mark.parametrize("failing", ["block", "flush", "rename"])
def test_a_failure_leaves_the_former_file_alone(failing, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("former")

    def fail(*_):
        raise OSError("no space left")

    if failing == "flush":
        monkeypatch.setattr(os, "fsync", fail)
    elif failing == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"), replace_file(path) as draft:
        draft.write_text("half")
        if failing == "block":
            fail()
    assert path.read_text() == "former"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda _: events.append((tmp_path / "a").exists()))
    save_bytes(tmp_path / "a", b"1")
    assert events == [False] and (tmp_path / "a").read_bytes() == b"1"
