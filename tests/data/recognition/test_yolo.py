"""YOLO's data as people write it: the files that describe it, and where its labels lie."""

import json
import shutil

import pytest
from foreign_sets import write_darknet, write_roboflow_yolo, write_ultralytics, write_yolo_lists
from labelled_pictures import PICTURES, save_image, write_text

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import recognize

SPLITS = {"train": 4, "val": 2}


def describe(root, **entries):
    """Write another `pets.yaml`; what is None is left out."""
    known = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]} | entries
    text = json.dumps({key: value for key, value in known.items() if value is not None})
    write_text(root / "pets.yaml", text)


def read_splits(root):
    """Number of images of each split, and the names of the classes."""
    found = recognize(root, "detection")
    sets = [read_detection([dict(part.source)]) for part in found.splits]
    assert [len(data) for data in sets] == [part.images for part in found.splits]
    return {part.name: part.images for part in found.splits}, sets[0].categories.names


# ------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("others", ["", "/home/me/darknet/", "C:\\darknet\\"])
@pytest.mark.parametrize("word", ["valid", "val"])
def test_lists_of_darknet_name_the_splits(word, others, tmp_path):
    write_darknet(tmp_path)
    lists = {"train": PICTURES[:3], word: PICTURES[3:5], "test": PICTURES[5:]}
    lines = ["# of the dog", "classes = 2", "names = data/obj.names", "backup = backup/"]
    for key, pictures in lists.items():
        names = "".join(f"{others}data/obj_train_data/{picture.name}\n" for picture in pictures)
        write_text(tmp_path / f"{key}.txt", names)
        lines.append(f"{key} = data/{key}.txt")
    write_text(tmp_path / "obj.data", "\n".join(lines))
    assert read_splits(tmp_path) == ({"train": 3, word: 2, "test": 1}, ("cat", "dog"))
    assert recognize(tmp_path / "obj.data", "detection").splits[1].images == 2


def test_lists_of_darknet_lead_to_nothing_outside(tmp_path):
    write_darknet(tmp_path / "data")
    write_text(tmp_path / "secret.txt", "word")
    write_text(tmp_path / "data/obj.data", "names = obj.names\ntrain = ../secret.txt\n")
    with pytest.raises(DataError, match=r"obj\.data: train: '\.\./secret\.txt' leads to no images"):
        recognize(tmp_path / "data")
    write_text(tmp_path / "data/train.txt", "../../etc/passwd\n")
    write_text(tmp_path / "data/obj.data", "names = obj.names\ntrain = train.txt\n")
    with pytest.raises(DataError, match=r"train\.txt: line 1: there is no image"):
        recognize(tmp_path / "data")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"val": "images/valid"}, "val: 'images/valid' .* did you mean 'images/val'"),
        ({"train": ["images/train", "more"]}, "train: 'more' .*images are in 'images', 'images/"),
        ({"val": "vall.txt"}, r"val: 'vall\.txt' .* did you mean 'val\.txt'"),
    ],
)
def test_an_entry_that_leads_nowhere_is_refused(entries, said, tmp_path):
    write_ultralytics(tmp_path)
    write_text(tmp_path / "val.txt", "images/val/photo 4.jpg\n")
    describe(tmp_path, **entries)
    with pytest.raises(DataError, match=rf"pets\.yaml: {said}"):
        recognize(tmp_path, "detection")


def test_test_images_alone_may_be_missing(tmp_path):
    write_ultralytics(tmp_path)
    describe(tmp_path, test="images/test")
    assert read_splits(tmp_path)[0] == SPLITS
    assert "names 'images/test' for test, which has no" in recognize(tmp_path, "detection").lines[2]


@pytest.mark.parametrize("entries", [
    {"path": "/content/pets"}, {"path": "..", "train": "IMAGES/Train"},
    {"path": "images", "train": "train", "val": "val"}, {"val": None, "validation": "images/val"},
])  # fmt: skip
def test_folders_of_other_machines_and_in_another_case(entries, tmp_path):
    write_ultralytics(tmp_path)
    describe(tmp_path, **entries)
    assert sorted(read_splits(tmp_path)[0].values()) == [2, 4]


def test_folders_are_those_beside_the_file(tmp_path):
    write_roboflow_yolo(tmp_path / "pets")
    write_text(tmp_path / "train/images/README.txt", "another folder of the name")
    assert list(read_splits(tmp_path)[0].values()) == [4, 2]


def test_what_no_split_names_is_said(tmp_path):
    write_ultralytics(tmp_path)
    describe(tmp_path, val=None)
    line = recognize(tmp_path, "detection").lines[2]
    assert line.startswith("2 labelled images are in no split of pets.yaml: passed over ('images/v")
    shutil.rmtree(tmp_path / "labels/val")
    (tmp_path / "pets.yaml").unlink()
    line = recognize(tmp_path, "detection").lines[2]
    assert line.startswith("2 images are in folders without labels: passed over ('images/val')")
    describe(tmp_path)
    line = recognize(tmp_path, "detection").lines[2]
    assert line == "2 images have no label file: taken as without objects (all of 'val')"


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize("entries", [
    {"train": None, "val": None}, {"names": {"1": "dog", "0": "cat"}, "nc": "2"},
    {"names": "classes.txt", "nc": 2}, {"names": None},
])  # fmt: skip
def test_names_are_taken_where_they_stand(entries, tmp_path):
    write_ultralytics(tmp_path)
    describe(tmp_path, **entries)
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    assert read_splits(tmp_path) == (SPLITS, ("cat", "dog"))


def test_where_names_are_missing_is_said(tmp_path):
    write_ultralytics(tmp_path)
    describe(tmp_path, names=None, nc=3)
    assert read_splits(tmp_path)[1] == ("class 0", "class 1", "class 2")
    assert "(pets.yaml has no names)" in recognize(tmp_path, "detection").lines[2]
    describe(tmp_path, names="lost.names")
    assert "names 'lost.names', not there" in recognize(tmp_path, "detection").lines[2]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"nc": 3}, r"has 3 classes, but pets\.yaml names 2 \('cat', 'dog'\)"),
        ({"nc": 1, "names": "classes.txt"}, r"has 1 class, but classes\.txt names 2"),
        ({"nc": "many"}, "number of classes must be 1 to"),
        ({"names": {"0": "cat", "2": "dog"}}, "numbered from 0 without gaps"),
    ],
)
def test_names_that_contradict_are_refused(entries, said, tmp_path):
    write_ultralytics(tmp_path)
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    describe(tmp_path, **entries)
    with pytest.raises(DataError, match=rf"pets\.yaml: .*{said}"):
        recognize(tmp_path, "detection")


@pytest.mark.parametrize(("content", "said"), [
    (b"names: [K\xe4fer, b]", "line 1: .*UTF-8"), (b"names: [a, b", "not valid YAML"),
])  # fmt: skip
def test_a_damaged_description_is_not_passed_over(content, said, tmp_path):
    write_ultralytics(tmp_path)
    write_text(tmp_path / "mkdocs.yml", "a: !!python/name:x")
    (tmp_path / "pets.yaml").write_bytes(content)
    with pytest.raises(DataError, match=rf"pets\.yaml: {said}"):
        recognize(tmp_path, "detection")


def test_files_of_other_programs_are_passed_over(tmp_path):
    write_yolo_lists(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "pets.yaml")
    write_text(tmp_path / "config.yaml", "train: {lr: 0.1}\nval: true\n")
    write_text(tmp_path / "compose.yml", "test: pytest\n")
    (tmp_path / "iris.data").write_bytes(b"\xff\xfe\xfd")
    assert read_splits(tmp_path) == (SPLITS, ("cat", "dog"))


# ------------------------------------------------------------------------------ labels


def test_labels_are_found_in_any_case(tmp_path):
    write_ultralytics(tmp_path)
    for path in sorted((tmp_path / "labels").rglob("*.txt")):
        folder = tmp_path / "Labels" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name.upper())
    (tmp_path / "images").rename(tmp_path / "Images")
    shutil.rmtree(tmp_path / "labels")
    assert read_splits(tmp_path)[0] == SPLITS


def flatten_labels(root):
    for path in sorted((root / "labels").rglob("*.txt")):
        path.rename(root / "labels" / path.name)


def test_labels_of_several_folders_may_lie_in_one(tmp_path):
    write_ultralytics(tmp_path)
    flatten_labels(tmp_path)
    assert read_splits(tmp_path)[0] == SPLITS
    save_image(PICTURES[0], tmp_path / "images/val")  # now these are anybody's
    line = recognize(tmp_path, "detection").lines[2]
    assert "2 images have no label file" in line
    assert "1 label file belongs to no image, or to any of several: passed over" in line


def test_labels_of_several_images_are_said(tmp_path):
    write_ultralytics(tmp_path)
    image = min((tmp_path / "images/train").iterdir())
    shutil.copy(image, image.with_suffix(".bmp"))
    (line,) = [li for li in recognize(tmp_path, "detection").lines if "several images" in li]
    assert "1 label file is that of several images, which all take its objects" in line
    assert f"'labels/train/{image.stem}.txt'" in line


def test_labels_that_no_image_has_are_described(tmp_path):
    write_ultralytics(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "boxes")
    with pytest.raises(DataError, match=r"'boxes/.*\.txt' and 5 more: lines as YOLO's, but no ima"):
        recognize(tmp_path, "detection")


@pytest.mark.parametrize("half", ["images", "images/train", "labels"])
def test_half_of_a_data_set_names_the_whole(half, tmp_path):
    write_ultralytics(tmp_path / "pets")
    for layout in ("auto", "yolo"):
        with pytest.raises(DataError, match=r"give the folder of both, \S*/pets\b"):
            recognize(tmp_path / "pets" / half, "detection", layout=layout)
