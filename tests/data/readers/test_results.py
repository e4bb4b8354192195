"""Detections made elsewhere: read in all the forms they have, and refused entry by entry."""

import json
from pathlib import Path

import numpy as np
import pytest

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.masks.run_lengths import decode_mask
from densenet_backbones.data.readers.coco.results import match_results, read_results
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.untrusted import limits

SQUARE = [[10, 10, 30, 10, 30, 20, 10, 20]]
GOOD = {"image_id": 7, "category_id": 18, "bbox": [10, 10, 20, 10], "score": 0.5}


@pytest.fixture(scope="module")
def part():
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    records = [ImageRecord(i, Path(f"set/{name}"), 64, 48, *nothing) for i, name in IMAGES.items()]
    points = ("nose", "tail")
    categories = Categories(("cat", "dog"), (17, 18), points, (), keypoint_positions=(1, 0))
    return DetectionSet("animals", tuple(records), categories)


IMAGES = {7: "one.jpg", 9: "two.png"}


@pytest.fixture
def match(part, tmp_path):
    def write(content, categories=None):
        file = tmp_path / "results.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        listed = None
        if categories is not None:
            listed = tmp_path / "classes.json"
            listed.write_text(json.dumps(categories))
        return match_results(read_results(file, listed), part)

    return write


def test_boxes_of_every_image(match):
    predictions, how = match([GOOD, {**GOOD, "image_id": 7.0, "category_id": 17, "score": 1}])
    assert [p["image_id"] for p in predictions] == [7, 9]
    assert predictions[0]["boxes"].tolist() == [[10, 10, 30, 20]] * 2
    assert predictions[0]["labels"].tolist() == [2, 1] and len(predictions[1]["boxes"]) == 0
    assert how.startswith("their ids")
    assert [len(p["scores"]) for p in match([])[0]] == [0, 0]


def test_images_and_classes_by_name(match):
    named = [{**GOOD, "image_id": name, "category_name": "cat"} for name in ("two.png", "one")]
    predictions, how = match(named)
    assert [p["labels"].tolist() for p in predictions] == [[1], [1]]
    assert how == "the names they carry (category_name)"
    listed = [{"id": 18, "name": "cat"}]
    for content, more in (([GOOD], listed), ({"annotations": [GOOD], "categories": listed}, None)):
        predictions, how = match(content, more)
        assert predictions[0]["labels"].tolist() == [1] and "list of categories" in how


def test_ids_are_of_the_file_s_own_images_where_it_names_them(match):
    """As `predict --save coco` writes them, which knows nothing of the annotation file."""
    images = [{"id": 7, "file_name": "there/two.png"}, {"id": 1, "file_name": r"C:\one.jpg"}]
    found = [{**GOOD, "score": 0.25}, {**GOOD, "image_id": 1}]
    predictions, _ = match({"images": images, "annotations": found})
    assert [p["scores"].tolist() for p in predictions] == [[0.5], [0.25]]
    with pytest.raises(DataError, match=r"images\[0\]: 'file_name' must be a name, not 5"):
        match({"images": [{"id": 7, "file_name": 5}], "annotations": found})
    with pytest.raises(DataError, match=r"detections\[0\]: has no 'image_id'.*--save coco"):
        match([{"file": "one.jpg", "detections": []}])


def test_masks_and_keypoints_and_the_boxes_around_them(match):
    without = {key: value for key, value in GOOD.items() if key != "bbox"}
    runs = {"size": [48, 64], "counts": [10 * 48 + 10, 10, 48 * 64 - 10 * 48 - 20]}
    predictions, _ = match([{**without, "segmentation": shape} for shape in (SQUARE, runs)])
    masks = [decode_mask(code) for code in predictions[0]["masks"]]
    assert [mask.sum() for mask in masks] == [200, 10] and predictions[1]["masks"] == []
    assert predictions[0]["boxes"].tolist() == [[10, 10, 30, 20], [10, 10, 11, 20]]
    predictions, _ = match([{**without, "keypoints": [1, 2, 1, 30, 40, 1]}])
    # The file's order is tail, nose; labels have nose first.
    assert predictions[0]["keypoints"].tolist() == [[[30, 40, 1], [1, 2, 1]]]
    assert predictions[0]["boxes"].tolist() == [[1, 2, 30, 40]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image_id": 8}, r"image_id 8 is not among the 2 images"),
        ({"image_id": None}, r"'image_id' must be a whole number"),
        ({"image_id": "tow.png"}, r"no image is called 'tow.png'.* did you mean 'two.png'"),
        ({"category_id": 1}, r"category_id 1 is not among the annotation file's \(17, 18\)"),
        ({"bbox": [1, 2, 3]}, r"'bbox' must be four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"sides not below 0"),
        ({"bbox": [1, 2, 10**400, 4]}, r"'bbox' must be four finite numbers"),
        ({"bbox": [float("nan"), 2, 3, 4]}, r"'bbox' must be four finite numbers"),
        ({"bbox": None}, r"'bbox' must be four finite numbers"),
        ({"score": 1.5}, r"'score' must be a number in \[0, 1\], not 1.5; divide"),
        ({"score": True}, r"'score' must be a number"),
    ],
)
def test_a_wrong_entry_is_named(match, wrong, said):
    with pytest.raises(DataError, match=r"results.json: detections\[1\]: .*" + said) as error:
        match([GOOD, {**GOOD, **wrong}])
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("key", "first", "wrong", "said"),
    [
        ("segmentation", SQUARE, None, "has no 'segmentation', which the first detection has"),
        ("segmentation", SQUARE, [[1, 2]], "a polygon must be a list of at least 3 points"),
        ("segmentation", SQUARE, {"size": [9, 9], "counts": [81]}, "run lengths are for the size"),
        ("segmentation", SQUARE, 5, "must be polygons or run lengths"),
        ("keypoints", [1] * 6, [1] * 5, "must be 6 finite numbers"),
        ("category_name", "cat", "cta", "class 'cta' is not one of the data's"),
        ("category_name", "cat", 5, "class 5 is not one of the data's"),
    ],
)
def test_what_the_first_entry_has_all_must_have(match, key, first, wrong, said):
    with pytest.raises(DataError, match=r"detections\[1\]: .*" + said):
        match([{**GOOD, key: first}, {**GOOD, key: wrong}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("5", "must be a list of detections"),
        ("[5]", r"detections\[0\] must be an object"),
        ("[" * 100_000, "not usable JSON"),
        ('{"images": []}', "has no 'annotations'"),
    ],
)
def test_what_is_no_list_of_detections(match, content, said):
    with pytest.raises(DataError, match=said):
        match(content)


def test_a_file_of_too_many_bytes(match, monkeypatch):
    monkeypatch.setattr("densenet_backbones.data.readers.coco.results.MAX_RESULTS_FILE", 10)
    assert limits.MAX_RESULTS_FILE > 10
    with pytest.raises(DataError, match="has more than 10 bytes"):
        match([GOOD])
