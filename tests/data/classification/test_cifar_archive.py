"""CIFAR's published archives: read as their folders are, and refused without leaving anything."""

import gzip
import io
import os
import tarfile

import pytest
from cifar_files import write_cifar

from densenet_backbones.data.classification.cifar_archive import unpack_cifar
from densenet_backbones.data.classification.reading import recognize_classes
from densenet_backbones.data.faults import DataError

FOLDER = "cifar-10-batches-py"


@pytest.mark.parametrize("form", ["pickle", "binary"])
@pytest.mark.parametrize("kind", ["10", "100"])
def test_a_published_archive_is_its_folder(kind, form, tmp_path):
    write_cifar(tmp_path / "a" / FOLDER, kind, form)
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "a" / FOLDER, FOLDER)  # its modification times take headers
        archive.addfile(tarfile.TarInfo(f"{FOLDER}/readme.html"), io.BytesIO())
    found = recognize_classes(path)
    expected = recognize_classes(tmp_path / "a")
    assert [(s.name, s.images) for s in found.splits] == [
        (s.name, s.images) for s in expected.splits
    ]
    folder, said = unpack_cifar(path)
    assert folder.parent == tmp_path and said == f"{path.name} was unpacked before, to {folder}"
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "a" / FOLDER / file.name).read_bytes()
    assert not (folder / "readme.html").exists()


def entry(name, content=b"x", kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


DAMAGED = bytearray(entry("test_batch"))
DAMAGED[0] ^= 1
LONG = tarfile.TarInfo("test_batch")
LONG.size = 2**40
BAD = {
    "no file of CIFAR": (entry("../../evil") + entry("/etc/evil"), "has not the files of CIFAR"),
    "a link": (entry("test_batch", b"", tarfile.SYMTYPE), "has not the files of CIFAR"),
    "a device": (entry("test_batch", b"", tarfile.CHRTYPE), "has not the files of CIFAR"),
    "twice": (entry("a/test_batch") + entry("../test_batch"), "entry 2: test_batch is there twice"),
    "a header of another kind": (bytes(DAMAGED), "entry 1: is damaged"),
    "a long file": (LONG.tobuf(tarfile.GNU_FORMAT), "more or larger files"),
    "a long header": (entry("x", bytes(3000), tarfile.XHDTYPE), "more or larger files"),
    "many": (entry("x") * 101, "more or larger files"),
    "cut short": (entry("test_batch", bytes(1000))[:700], "ends in the middle of test_batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_archives_are_refused_and_leave_nothing(name, tmp_path, monkeypatch):
    room = "densenet_backbones.data.classification.cifar_archive"
    monkeypatch.setattr(f"{room}.MAX_CIFAR_FILE", 2000)
    content, sentence = BAD[name]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tgz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=sentence):
        unpack_cifar(path)
    left = [file for file in os.listdir(tmp_path / "in") if not file.endswith(".lock")]
    assert left == ["a.tgz"] and os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no" + b[2:]])
def test_a_damaged_stream_is_one_sentence(damage, tmp_path):
    write_cifar(tmp_path / FOLDER, "10", "binary")
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / FOLDER, FOLDER)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar\.gz: no usable archive .*fetch it again"):
        unpack_cifar(path)
