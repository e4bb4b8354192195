"""Regions of VIA that are objects, those that are none, and the attribute that is the class."""

import json
import math

import pytest
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import recognize

RECT = {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 20}


def write_regions(root, *regions, name="a.png", file="via.json", **attributes):
    """An export of one image, whose regions have the same attributes."""
    root.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / name)
    entries = [{"shape_attributes": s, "region_attributes": attributes} for s in regions]
    (root / file).write_text(json.dumps({f"{name}9": {"filename": name, "regions": entries}}))


def read(root):
    return read_detection([dict(recognize(root, "detection").splits[0].source)])


def test_circles_and_ellipses_are_outlines(tmp_path):
    circle = {"name": "circle", "cx": 20, "cy": 18, "r": 8}
    ellipse = {"name": "ellipse", "cx": 30, "cy": 24, "rx": 12, "ry": 4}
    turned = ellipse | {"theta": math.pi / 2}
    write_regions(tmp_path, RECT, circle, ellipse, turned, label="cat")
    data_set = read(tmp_path)
    assert data_set.categories.names == ("cat",) and not data_set.problems
    expected = [[1, 2, 11, 22], [12, 10, 28, 26], [18, 20, 42, 28], [26, 12, 34, 36]]
    assert data_set.records[0].boxes.round(3).tolist() == expected
    outline = data_set.records[0].annotations[1]["segmentation"][0]
    radii = [math.dist((20, 18), xy) for xy in zip(outline[::2], outline[1::2], strict=True)]
    assert radii == pytest.approx([8] * 32)


@pytest.mark.parametrize("name", ["point", "polyline", "line"])
def test_shapes_without_area_are_left_out_and_said(name, tmp_path):
    write_regions(tmp_path, RECT, {"name": name, "cx": 1, "cy": 2}, label="cat")
    (problem,) = read(tmp_path).problems
    assert f"'a.png': regions[1]: a {name} is no object; left out" in str(problem)


def test_regions_without_attributes_are_of_one_class(tmp_path):
    write_regions(tmp_path, RECT)
    assert read(tmp_path).categories.names == ("object",)


def test_an_attribute_of_any_name_is_the_class_if_it_is_the_only_one(tmp_path):
    write_regions(tmp_path, RECT, Art="kitten")
    assert read(tmp_path).categories.names == ("kitten",)


def test_a_choice_of_several_is_the_class_if_one_is_chosen(tmp_path):
    write_regions(tmp_path / "one", RECT, type={"cat": True, "dog": False})
    assert read(tmp_path / "one").categories.names == ("cat",)
    write_regions(tmp_path / "two", RECT, type={"cat": True, "dog": True})
    with pytest.raises(DataError, match="VIA have no box and no polygon"):
        read(tmp_path / "two")


def test_two_attributes_are_an_error_that_names_them(tmp_path):
    write_regions(tmp_path, RECT, fur="red", size="big")
    with pytest.raises(
        DataError, match=r"2 attributes \('fur', 'size'\); name the one .* \"class\""
    ):
        recognize(tmp_path, "detection")


def test_an_image_in_two_files_is_an_error_that_names_them(tmp_path):
    for file in ("a.json", "b.json"):
        write_regions(tmp_path, RECT, file=file, label="cat")
    with pytest.raises(DataError, match=r"'a.png' is in b.json and in a.json; give one of them"):
        recognize(tmp_path, "detection")
    assert recognize(tmp_path / "b.json", "detection").splits[0].images == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({**RECT, "x": "left"}, r"via.json: 'a.png': regions\[0\]: x must be a number, not 'left'"),
        ({"name": "polygon", "all_points_x": [1, 2]}, "a polygon needs lists of 3 x and y"),
        (3, r"regions\[0\]: is no file of VIA .* \(no object 'shape_attributes'\)"),
    ],
)
def test_wrong_regions_are_named(shape, message, tmp_path):
    write_regions(tmp_path, shape, label="cat")
    with pytest.raises(DataError, match=message):
        recognize(tmp_path, "detection")
