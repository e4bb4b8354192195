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


def test_an_image_in_two_splits_is_refused(tmp_path):
    write_table(tmp_path, f"{HEAD},split", lambda p, t: write_header(p, t, t.name))
    with pytest.raises(DataError, match=r"boxes\.csv: line \d: its image .* is in the split"):
        recognize(tmp_path, "detection")
