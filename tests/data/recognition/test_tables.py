"""Tables of boxes (CSV) as people write them."""

import pytest
from labelled_pictures import PICTURES, save_image, write_text

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import recognize

HEAD = "filename,class,xmin,ymin,xmax,ymax"


def write_table(root, head, describe):
    """Write the pictures and a row of each object; `describe` makes it of picture and object."""
    rows = []
    for picture in PICTURES:
        save_image(picture, root / "photos")
        rows += [",".join(map(str, describe(picture, thing))) for thing in picture.things]
    write_text(root / "boxes.csv", "\n".join([*([head] * bool(head)), *rows]) + "\n")


def write_header(picture, thing, *more):
    return picture.name, thing.name, *thing.box, *more


@pytest.mark.parametrize("column", ["split", "Set", "subset"])
def test_a_column_names_the_split_of_each_image(column, tmp_path):
    words = {"train": "TRAIN", "val": "validation"}
    write_table(
        tmp_path, f"{HEAD},{column}", lambda p, t: write_header(p, t, words.get(p.split, ""))
    )
    found = recognize(tmp_path, "detection")
    assert found.lines[1].startswith("Found: TRAIN 4 images, validation 2 images;")
    assert len(read_detection(tmp_path, "val", layout="csv").records) == 2


def test_spellings_of_a_split_are_one(tmp_path):
    words = iter(["train", "Training", "TRAIN", "Val", "validation", "trainval"])
    splits = {picture.name: next(words) for picture in PICTURES}
    write_table(tmp_path, f"{HEAD},split", lambda p, t: write_header(p, t, splits[p.name]))
    found = recognize(tmp_path, "detection")
    assert {s.name: s.images for s in found.splits} == {"TRAIN": 3, "trainval": 1, "Val": 2}
    assert len(read_detection(tmp_path, "train", layout="csv").records) == 3


def test_an_image_in_two_splits_is_refused(tmp_path):
    write_table(tmp_path, f"{HEAD},split", lambda p, t: write_header(p, t, t.name))
    with pytest.raises(DataError, match=r"boxes\.csv: line \d: its image .* is in the split"):
        recognize(tmp_path, "detection")


def read_boxes(root):
    """Class and box of the objects of each picture."""
    data = read_detection(root, "all", layout="csv")
    return {
        record.path.stem: [
            (data.categories.name_of_label(label), *box)
            for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
        ]
        for record in data.records
    }


FIRST = {"cat": 0, "dog": 1}


@pytest.mark.parametrize(
    ("describe", "names"),
    [
        (lambda p, t: (p.name, t.name, *t.box), {"cat": "cat", "dog": "dog"}),
        (lambda p, t: (p.name, *t.box, FIRST[t.name]), {"cat": "0", "dog": "1"}),
        (lambda p, t: (p.name, FIRST[t.name] + 70, *t.box), {"cat": "70", "dog": "71"}),
        (lambda p, t: (p.name, *t.box[2:], *t.box[:2], t.name), None),  # from corner to corner
    ],
)
def test_columns_without_a_header_are_told_apart(describe, names, tmp_path):
    write_table(tmp_path, "", describe)
    if names is None:
        assert recognize(tmp_path, "detection").layout == "csv"
    else:
        expected = {p.stem: [(names[t.name], *t.box) for t in p.things] for p in PICTURES}
        assert read_boxes(tmp_path) == expected


@pytest.mark.parametrize("before", ["", "photo 0.jpg,,,,,\n"])
def test_columns_that_cannot_be_told_apart_need_a_header(before, tmp_path):
    write_table(tmp_path, "", lambda p, t: (p.name, FIRST[t.name], *t.box))
    path = tmp_path / "boxes.csv"
    path.write_text(before + path.read_text())
    line = 2 if before else 1
    with pytest.raises(DataError, match=rf"boxes\.csv: line {line}: .*first line such as filename"):
        recognize(tmp_path, "detection")


def test_names_of_images_may_lack_their_ending(tmp_path):
    write_table(
        tmp_path, HEAD.replace("filename", "image_id"), lambda p, t: (p.stem, t.name, *t.box)
    )
    expected = {p.stem: [(t.name, *t.box) for t in p.things] for p in PICTURES}
    assert read_boxes(tmp_path) == expected
    save_image(PICTURES[0], tmp_path / "more", "photo 0.png")
    with pytest.raises(DataError, match=r"'photo 0' may be any of 2 files"):
        recognize(tmp_path, "detection")


@pytest.mark.parametrize("row", ["1,2,3,4,5,6", "adam,best,0.1,0.2,3,4"])
def test_rows_of_other_things_are_no_table_of_boxes(row, tmp_path):
    write_text(tmp_path / "log.csv", f"{row}\n{row}\n")
    save_image(PICTURES[0], tmp_path)
    with pytest.raises(DataError, match=r"log\.csv: a table with the columns"):
        recognize(tmp_path, "detection")
