"""Files appear whole or not at all, whatever interrupts their writing."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densenet_backbones.file_writing import (
    GrowingList,
    check_output,
    find_last_folder,
    find_unused_folder,
    is_dead,
    remove_drafts,
    replace_file,
    save_bytes,
    save_json,
    save_text,
)


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
    assert events == [False, True]  # then the folder, with the name in it
    assert (tmp_path / "a").read_bytes() == b"1"


def test_modes_are_those_of_the_umask(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            with replace_file(tmp_path / "a") as draft:
                draft.unlink()
                os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))  # as some writers do
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk/b")
    save_text(tmp_path / "a", "1")
    save_text(tmp_path / "a", "2")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "disk/b").read_text() == "2"


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("a" * 255, "ä" * 127):
        save_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name


def test_drafts_of_dead_writers_alone_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {}
    with replace_file(tmp_path / "deep" / "a.txt") as draft:
        prefix, _, number = draft.name.rpartition("-")
        host = prefix.rpartition("-")[0]
        for what, process in (("dead", dead.pid), ("alive", os.getppid())):
            names[what] = draft.with_name(f"{host}-{process}-{number}")
        names["elsewhere"] = draft.with_name(f".a.txt.00000000-{os.getppid()}-3.draft")
        names["old"] = draft.with_name(f".a.txt.00000000-{os.getppid()}-4.draft")
        names["not ours"] = draft.with_name(".notes.draft")
        for file in names.values():
            file.touch()
        os.utime(names["old"], (0, time.time() - 48 * 3600))
    assert set(remove_drafts(tmp_path)) == {names["dead"], names["old"]}
    assert {name for name, file in names.items() if file.exists()} == {
        "alive",
        "elsewhere",
        "not ours",
    }
    assert remove_drafts(tmp_path / "none") == []


def test_a_growing_list_is_whole_after_every_entry(tmp_path):
    entries = [{"a": [1, 2], "b": None}, {"größer": []}, 3]
    growing = GrowingList(tmp_path / "made" / "list.json")
    for number, entry in enumerate(entries, start=1):
        growing.append(entry)
        assert json.loads(growing.path.read_text()) == entries[:number]
    growing.close()
    save_json(tmp_path / "whole.json", entries)
    assert growing.path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    GrowingList(tmp_path / "empty.json").close()
    assert (tmp_path / "empty.json").read_text() == "[]\n"


@pytest.mark.parametrize("written", [5, None])
def test_a_full_disk_costs_a_growing_list_the_last_entry_alone(tmp_path, monkeypatch, written):
    growing = GrowingList(tmp_path / "list.json")
    growing.append("first")
    growing.append("second")

    class Full(io.FileIO):
        def write(self, content):
            if b"third" not in content:
                return super().write(content)
            if written is None:
                raise OSError(28, "No space left on device")
            return super().write(content[:written])

    monkeypatch.setattr(Path, "open", lambda path, *a, **b: Full(path, "r+"))
    with pytest.raises(OSError, match=r"[Nn]o space left on"):
        growing.append("third")
    monkeypatch.undo()
    assert json.loads((tmp_path / "list.json").read_text()) == ["first", "second"]
    growing.append("fourth")
    assert json.loads((tmp_path / "list.json").read_text()) == ["first", "second", "fourth"]


def test_outputs_are_tried_without_leaving_anything(tmp_path):
    check_output(tmp_path / "a/b/c", "--out")
    check_output(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^--out .*file/b: nothing can be written there \(Not a dir"):
        check_output(tmp_path / "file/b", "--out")


def test_a_folder_with_files_is_left_alone(tmp_path):
    folder = tmp_path / "evaluation"
    assert find_unused_folder(folder) == find_last_folder(folder) == folder
    assert not folder.exists()
    folder.mkdir()
    assert find_unused_folder(folder) == find_last_folder(folder) == folder  # empty
    (folder / "table.txt").touch()
    assert find_last_folder(folder) == folder
    (tmp_path / "evaluation-2").touch()
    assert find_unused_folder(folder) == tmp_path / "evaluation-3"
    assert find_last_folder(folder) == tmp_path / "evaluation-2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without forks")
def test_a_process_that_has_ended_is_dead_though_nobody_has_asked_how():
    waiting, ended = (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        for code in ("input()", "")
    )
    try:
        # Left in the table of processes by its parent, which is this one.
        assert os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT).si_status == 0
        assert is_dead(ended.pid)
        assert not is_dead(waiting.pid)
    finally:
        waiting.kill()
        for process in (waiting, ended):
            process.communicate()
    assert is_dead(waiting.pid) and is_dead(ended.pid)
