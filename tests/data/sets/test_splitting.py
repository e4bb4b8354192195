"""Splits of sets: groups stay whole, the stored split is used again, and nothing is moved."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mask_sets import some_masks, write_camvid, write_coco, write_image

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.sets.split_file import SPLIT_FILE, name_split_file, read_split
from densenet_backbones.data.sets.splitting import SplitOptions, split_set


def make_set(root, contents, labels):
    """A set of files, whose images have an object of each of their labels."""
    root.mkdir(exist_ok=True)
    records = []
    for n, (name, content) in enumerate(contents.items(), 1):
        (root / name).write_bytes(content)
        own = np.array(labels[n - 1], np.int64)
        boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(own), 1))
        records.append(ImageRecord(n, root / name, 8, 8, boxes, own, np.zeros(len(own), bool)))
    return DetectionSet("x/all", records, Categories.from_names(["a", "b", "c"]))


def names_of(data):
    return {record.path.name for record in data.records}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_copies_and_groups_stay_whole_and_old_images_stay_where_they_are(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    count = data.draw(st.integers(6, 24))
    # All are of one size and every sixth a copy; two of three are of a film.
    contents = {
        f"film{n % 3}_frame{n}.bmp" if n % 3 else f"im{n}.bmp": bytes([n if n % 6 else 0]) * 500
        for n in range(count)
    }
    labels = [data.draw(st.lists(st.integers(1, 3), max_size=3)) for _ in range(count)]
    whole = make_set(root, contents, labels)
    options = SplitOptions(0.25, r"(.+)_frame\d+", seed=data.draw(st.integers(0, 9)))
    files = [name_split_file(root)]
    first = replace(whole, records=whole.records[: count - 4])
    before = split_set(first, root, options, files).store(files)
    assert names_of(before.train) | names_of(before.val) == names_of(first)
    again = split_set(first, root, SplitOptions(seed=99), files)
    assert names_of(again.val) == names_of(before.val) and again.describe().startswith("Split of ")
    after = split_set(whole, root, SplitOptions(), files).store(files)
    assert names_of(before.val) <= names_of(after.val)
    assert names_of(before.train) <= names_of(after.train)
    assert len(after.train) + len(after.val) == count
    assert "; 4 new images assigned" in after.describe()
    for split in (before, after):
        films = [
            {n[:5] for n in names_of(part) if "frame" in n} for part in (split.train, split.val)
        ]
        bytes_of = [{contents[n] for n in names_of(part)} for part in (split.train, split.val)]
        assert not films[0] & films[1]
        assert not bytes_of[0] & bytes_of[1]
    # Every path through the stored file gives what it says.
    stored = read_split(files[0])
    assert {name for name, side in stored.sides.items() if side} == names_of(after.val)
    assert (stored.fraction, stored.group_pattern) == (0.25, r"(.+)_frame\d+")


@pytest.fixture
def photos(tmp_path):
    contents = {f"{n}.jpg": os.urandom(90 + n) for n in range(10)}
    return make_set(tmp_path / "photos", contents, [[1 + n % 2] for n in range(10)])


def test_a_split_is_stored_beside_the_data_or_where_it_can_be(photos, tmp_path):
    root = tmp_path / "photos"
    blocked = tmp_path / "photos/0.jpg/no.json"  # below a file
    files = [blocked, tmp_path / "run" / SPLIT_FILE]
    split = split_set(photos, root, SplitOptions(), files).store(files)
    assert split.describe() == (
        "No split given: 8 images to train on and 2 held out, by class (seed 0); "
        f"{tmp_path / 'run' / SPLIT_FILE} keeps this split for all that follows"
    )
    assert split.train.name == "photos/train" and {1, 2} == set(
        split.val.packed.columns.labels.tolist()
    )
    before = split_set(photos, root, SplitOptions())
    assert names_of(before.val) == names_of(split.val) and before.describe().endswith("(seed 0)")
    (root / "3.jpg").unlink()
    fewer = replace(photos, records=[r for r in photos.records if r.path.name != "3.jpg"])
    file = tmp_path / "run" / SPLIT_FILE
    assert (
        "; 1 that it names are not there"
        in split_set(fewer, root, SplitOptions(), [file]).describe()
    )
    assert name_split_file(root) == root / SPLIT_FILE
    assert name_split_file(tmp_path / "result.json").name == f"result.{SPLIT_FILE}"


FAULTS = {
    "[": "is not JSON",
    "[]": "must be a JSON object",
    '{"seed": -1}': "seed must be a whole number",
    '{"seed": 1, "fraction": true}': "fraction must lie in",
    '{"seed": 1, "fraction": 0.2, "group_pattern": 3}': "group_pattern must be a text or null",
    '{"seed": 1, "fraction": 0.2, "train": [3]}': "train must be a list of names",
    '{"seed": 1, "fraction": 0.2, "train": ["a"], "val": ["a"]}': "images in both parts .'a'.",
    json.dumps(
        {"seed": 1, "fraction": 0.2, "train": [f"{n}.jpg" for n in range(10)], "val": []}
    ): "its 10 images cannot be split into two parts by",
}


@pytest.mark.parametrize("content", FAULTS)
def test_faulty_split_files_are_named(content, photos, tmp_path):
    file = tmp_path / "photos" / SPLIT_FILE
    file.write_text(content)
    with pytest.raises(DataError, match=FAULTS[content]) as error:
        split_set(photos, tmp_path / "photos", SplitOptions(), [file])
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert file.read_text() == content


def test_what_cannot_be_split_is_refused_in_a_sentence(photos, tmp_path):
    root, file = tmp_path / "photos", tmp_path / "photos" / SPLIT_FILE
    wrong = {
        "no regular expression": SplitOptions(group_pattern="("),
        "has no group in parentheses": SplitOptions(group_pattern="a"),
        "matches none of the 10 names of images .*'0.jpg'": SplitOptions(group_pattern="(film)"),
        r"must lie in \(0, 1\), got 1": SplitOptions(1.0),
        "of one group of data.group_pattern": SplitOptions(group_pattern="(jpg)"),
    }
    for message, options in wrong.items():
        with pytest.raises(DataError, match=message):
            split_set(photos, root, options, [file])
    with pytest.raises(DataError, match=r"its 1 image cannot be split .*data.overfit_images"):
        split_set(replace(photos, records=photos.records[:1]), root, SplitOptions(), [file])
    assert not file.exists()
    split_set(photos, root, SplitOptions(), [file]).store([file])
    with pytest.raises(DataError, match=r"split with data.val_fraction 0.2, not 0.5; leave"):
        split_set(photos, root, SplitOptions(0.5), [file])


@pytest.mark.parametrize("write", [write_camvid, write_coco])
def test_masks_are_split_by_their_classes(write, tmp_path):
    found = some_masks(8)
    for n, mask in enumerate(found.values()):
        mask[:] = 1 + (n > 5)  # two images of the second class
    root = write(tmp_path, found)
    for n, path in enumerate(sorted(tmp_path.glob("train*/*"))):
        write_image(path, found[path.stem], n)  # no copies
    data = read_segmentation(root, "train" if write is write_camvid else "train2017")
    split = split_set(data, root, SplitOptions(seed=4))
    rare = {"im6", "im7"}
    assert len({record.name for record in split.val.records} & rare) == 1
