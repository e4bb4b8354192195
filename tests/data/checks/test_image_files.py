"""Images in two places of the data, and images that are almost black."""

import json
import os
import shutil

import numpy as np
import pytest
from instance_sets import write_instances
from mask_sets import some_masks, write_coco
from PIL import Image

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.checks import image_files
from densenet_backbones.data.checks.image_files import list_image_files, remark_on_dark
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.samples import DetectionSet, ImageRecord


def make_set(paths, size=(8, 8), name="data/part"):
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = tuple(ImageRecord(n, path, *size, *nothing) for n, path in enumerate(paths, 1))
    return DetectionSet(name, records, Categories.from_names(["x"]))


def write_files(folder, contents):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n}.bmp" for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def remark_on_shared(train, val):
    return image_files.remark_on_shared(val.name, list_image_files(train), list_image_files(val))


def remark_on_repeated(data):
    return image_files.remark_on_repeated(data.name, list_image_files(data))


LINKS = {
    "symlink": (os.symlink, "is the same file as"),
    "hard link": (os.link, "is the same file as"),
    "copy": (shutil.copy, "is a copy of"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_evaluated_images_that_are_trained_on_are_named(kind, tmp_path):
    link, how = LINKS[kind]
    train = write_files(tmp_path / "train", [os.urandom(9000) for _ in range(5)])
    val = write_files(tmp_path / "val", [os.urandom(9000), b"x" * 9000])
    link(train[3], tmp_path / "val/again.bmp")
    evaluated = make_set([*val, tmp_path / "val/again.bmp"], name="data/val")
    (line,) = remark_on_shared(make_set(train), evaluated)
    assert line.startswith("data/val: evaluated images that are training images too: 1 of 3 (")
    assert f"again.bmp {how} {train[3]})" in line
    assert list(remark_on_shared(make_set(train), make_set(val))) == []


def test_files_that_are_alike_in_part_are_no_copies(tmp_path):
    """Uncompressed pictures of one camera: the same size, and the same middle."""
    blank = bytearray(50_000)
    train = write_files(tmp_path / "train", [blank] * 3)
    blank[7] = 1
    val = write_files(tmp_path / "val", [blank, b"", b""])
    assert list(remark_on_shared(make_set(train), make_set(val))) == []


def test_copies_within_a_set_are_named(tmp_path):
    """Copies under other names; links are entries of one file, which another line is about."""
    contents = [os.urandom(9000), b"x" * 9000, os.urandom(700)]
    paths = write_files(tmp_path / "train", contents)
    paths += write_files(tmp_path / "again", [contents[0], os.urandom(9000), contents[0]])
    os.link(paths[1], tmp_path / "link.bmp")
    data = make_set([*paths, tmp_path / "link.bmp"], name="data/train")
    (line,) = image_files.remark_on_copies(data.name, list_image_files(data))
    assert line.startswith("data/train: images that are copies of others under another name: 2 (")
    assert f"({paths[3]} is a copy of {paths[0]})" in line
    assert line in list(remark_on_data(data, data))
    assert not list(image_files.remark_on_copies("", list_image_files(make_set(paths[:3]))))


def test_missing_and_unreadable_files_are_left_to_who_reads_them(tmp_path):
    train = write_files(tmp_path / "train", [b"a" * 99])
    paths = [tmp_path / "none.bmp", tmp_path / "no\0name.bmp", tmp_path]
    parts = make_set([*train, *paths]), make_set(paths)
    assert [*remark_on_shared(*parts), *remark_on_dark(parts[1])] == []
    assert list(remark_on_repeated(parts[0])) == []


def test_looking_for_shared_images_has_bounds(tmp_path, monkeypatch):
    """Every file of one size, every piece the same, no copies: nothing is read again and again."""
    contents = []
    for n in range(60):
        content = bytearray(20_000)
        content[0] = n
        contents.append(content)
    train, val = (
        make_set(write_files(tmp_path / name, part))
        for name, part in (("train", contents[:30]), ("val", contents[30:]))
    )
    pieces, compared = [], []
    read = image_files._read_piece
    monkeypatch.setattr(image_files, "_read_piece", lambda f: (pieces.append(f), read(f))[1])
    monkeypatch.setattr(
        image_files.filecmp, "cmp", lambda a, b, shallow: bool(compared.append((a, b)))
    )
    monkeypatch.setattr(image_files, "EVALUATED_COMPARED", 10)
    monkeypatch.setattr(image_files, "PIECES_READ", 15)
    monkeypatch.setattr(image_files, "MAX_COMPARED", 7 * 40_000)
    assert list(remark_on_shared(train, val)) == []
    assert len(pieces) <= 25 and len(compared) == 7


def test_a_file_in_two_entries_is_named(tmp_path):
    root = write_instances(tmp_path)
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["images"][5] |= {"file_name": "./2.png"}
    content["images"][5] |= {k: content["images"][2][k] for k in ("width", "height")}
    path.write_text(json.dumps(content))
    (line,) = remark_on_repeated(read_detection(root, "train"))
    assert "/train: files that are in several entries: 1 (" in line
    assert "2.png in those with the ids 3, 6); they count twice, and contradict each other" in line
    root = write_coco(tmp_path / "masks", some_masks())
    path = root / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace("im2.jpg", "im1.jpg"))
    (line,) = remark_on_repeated(read_segmentation(root, "train"))
    assert "im1.jpg in those with the ids 7, 14)" in line


@pytest.mark.parametrize(
    ("dtype", "highest", "brightest"),
    [
        (np.uint16, 4095, 16),
        (np.uint16, 16383, 64),
        (np.uint16, 65535, None),
        (np.uint8, 1, 1),
        (np.uint8, 255, None),
    ],
)
def test_images_that_are_almost_black_are_named(dtype, highest, brightest, tmp_path):
    values = np.linspace(0, highest, 48).reshape(6, 8).astype(dtype)
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        Image.fromarray(values).save(path)
    lines = list(remark_on_dark(make_set(paths)))
    if brightest is None:
        assert lines == []
        return
    said = "no pixel of 3 images looked at ('0.png', '1.png', '2.png') is brighter than"
    assert f"data/part: {said} {brightest} of 255" in lines[0]
    # One bright picture is enough.
    Image.fromarray(np.full((6, 8), np.iinfo(dtype).max, dtype)).save(paths[1])
    assert list(remark_on_dark(make_set(paths))) == []
