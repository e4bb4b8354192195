"""COCO files: layouts, labels, boxes, and one clear error for whatever is wrong."""

import copy
import json
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco import boxes as coco
from densenet_backbones.data.readers.coco.boxes import read_coco

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "b.png", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150.5},
        {"id": 5, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 0},
        {
            "id": 9,
            "image_id": 7,
            "category_id": 2,
            "bbox": [4, 4, 8, 8],
            "iscrowd": 1,
            "segmentation": {"size": [30, 40], "counts": [600, 600]},
        },
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
}


def write(root, content=CONTENT, *, file="annotations/instances_train2017.json", images=None):
    """A data set below `root`; gives back the root."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    folder = root / (images or "train2017")
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    Image.new("RGB", (20, 10)).save(folder / "b.png")
    return root


def changed(*path, value=None, remove=False):
    """A copy of CONTENT with one place changed."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def refused(root, content, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        read_coco(write(root, content), "train2017", **options)
    assert "instances_train2017.json" in str(caught.value)


def test_records_have_labels_boxes_and_annotations(tmp_path):
    found = read_coco(write(tmp_path), "train2017")
    assert found.name == f"{tmp_path.name}/train2017"
    assert found.categories.names == ("bicycle", "toothbrush")
    assert found.categories.ids == (2, 90)
    assert [r.image_id for r in found.records] == [7, 3]
    first, second = found.records
    assert (first.width, first.height) == (40, 30)
    assert first.path == tmp_path / "train2017" / "a.png"
    assert first.boxes.dtype == np.float32 and first.labels.dtype == np.int64
    assert first.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 40, 30]]  # the crowd is not there
    assert first.labels.tolist() == [2, 1]
    assert first.difficult.tolist() == [False, False]
    assert [a["iscrowd"] for a in first.annotations] == [0, 0, 1]
    assert [a["area"] for a in first.annotations] == [150.5, 1200.0, 64.0]
    assert first.annotations[2]["segmentation"]["counts"] == [600, 600]
    assert second.boxes.shape == (0, 4) and second.annotations == ()
    assert found.problems == ()


def test_ground_truth_is_read_by_pycocotools(tmp_path):
    truth = COCO()
    truth.dataset = read_coco(write(tmp_path), "train2017").ground_truth()
    truth.createIndex()
    assert truth.getCatIds() == [2, 90] and sorted(truth.getImgIds()) == [3, 7]
    assert truth.imgToAnns[7][0]["bbox"] == [1, 2, 10, 20]
    assert [a["iscrowd"] for a in truth.imgToAnns[7]] == [0, 0, 1]


@pytest.mark.parametrize(
    ("split", "images", "annotations", "crowds"),
    [("train2017", 80, 705, 6), ("val2017", 80, 815, 11)],
)
def test_real_photographs(shared_data, split, images, annotations, crowds):
    found = read_coco(shared_data / "coco_tiny", split, strict=True)
    entries = [a for record in found.records for a in record.annotations]
    assert len(found) == images and len(entries) == annotations
    assert sum(a["iscrowd"] for a in entries) == crowds
    assert sum(len(r.boxes) for r in found.records) == annotations - crowds
    assert len(found.categories.names) == 80 and found.categories.ids[-1] == 90
    # Against a reader of its own: labels and boxes of every object.
    truth = json.loads((shared_data / f"coco_tiny/annotations/instances_{split}.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    expected = sorted(
        (a["image_id"], names[a["category_id"]], *np.float32(a["bbox"][:2]).tolist())
        for a in truth["annotations"]
        if not a["iscrowd"]
    )
    seen = sorted(
        (r.image_id, found.categories.name_of_label(int(label)), *box[:2].tolist())
        for r in found.records
        for label, box in zip(r.labels, r.boxes, strict=True)
    )
    assert seen == expected


def coco_numbers(dataset, predictions):
    """pycocotools' twelve numbers for boxes."""
    truth = COCO()
    truth.dataset = dataset
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(predictions)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def test_evaluation_equals_that_of_the_file_itself(tmp_path):
    """With an object of no area, a box that reaches out, and a crowd."""
    content = changed("annotations", 0, "bbox", value=[5, 5, 0, 10])
    content["annotations"].append(
        {"id": 12, "image_id": 3, "category_id": 2, "bbox": [15, 2, 20, 5], "area": 100}
    )
    for annotation in content["annotations"]:  # pycocotools itself needs them
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    boxes = [(7, 2, [1, 0, 38, 30]), (7, 2, [4, 4, 7, 8]), (3, 2, [15, 2, 18, 5]), (7, 90, [5] * 4)]
    predictions = [
        {"image_id": image, "category_id": category, "bbox": box, "score": 0.9 - 0.1 * n}
        for n, (image, category, box) in enumerate(boxes)
    ]
    ours = read_coco(write(tmp_path, content), "train").ground_truth()
    numbers = coco_numbers(ours, predictions)
    np.testing.assert_array_equal(numbers, coco_numbers({"info": {}, **content}, predictions))
    # One of two classes is found; the object without area is one that never was.
    assert 0.4 < numbers[1] <= 0.5


def test_cocoapi_file_without_its_images_says_how_many(shared_data, tmp_path):
    file = shared_data / "cocoapi_val2014_100/cocoapi/instances_val2014_100.json"
    with pytest.raises(DataError, match="lacks 100 of its 100 images"):
        read_coco(tmp_path, "val2014", annotation_file=file)


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_train2017.json", "images/train2017", "train2017"),
        ("annotations/instances_train.json", "images/train", "train"),
        ("annotations/instances_train.json", "train2014", "train"),
        ("annotations/train.json", "images", "train"),
        ("annotations/train.json", ".", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("annotations/instances_val2017.json", "val2017", "val"),
    ],
)
def test_layouts(tmp_path, file, images, split):
    found = read_coco(write(tmp_path, file=file, images=images), split)
    assert found.records[0].path == tmp_path / images / "a.png"


def test_split_without_year_takes_the_newest(tmp_path):
    write(tmp_path, file="annotations/instances_train2014.json", images="train2014")
    write(tmp_path)
    assert read_coco(tmp_path, "train").name.endswith("train2017")
    assert read_coco(tmp_path, "train2014").name.endswith("train2014")


def test_files_with_other_names_can_be_given(tmp_path):
    write(tmp_path, file="labels.json", images="photos")
    found = read_coco(tmp_path, "train", annotation_file="labels.json", image_folder="photos")
    assert len(found) == 2
    with pytest.raises(DataError, match=r"nothing\.json: there is no such file"):
        read_coco(tmp_path, "train", annotation_file="nothing.json")


def test_images_may_lie_in_folders(tmp_path):
    content = changed("images", 0, "file_name", value="deep\\down/a.png")
    write(tmp_path, content)
    (tmp_path / "train2017/deep/down").mkdir(parents=True)
    (tmp_path / "train2017/a.png").rename(tmp_path / "train2017/deep/down/a.png")
    found = read_coco(tmp_path, "train")
    assert found.records[0].path == tmp_path / "train2017/deep/down/a.png"


def test_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"splits there: 'train2017'\).*did you mean 'train2017'"):
        read_coco(write(tmp_path), "trian2017")
    with pytest.raises(DataError, match="splits there: none"):
        read_coco(tmp_path / "train2017", "train")
    with pytest.raises(DataError, match="there is no such folder"):
        read_coco(tmp_path / "nowhere", "train")


def test_sizes_in_the_file_spare_looking_at_images(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(coco, "read_image_size", lambda path: pytest.fail("looked at an image"))
    assert len(read_coco(tmp_path, "train")) == 2


@pytest.mark.parametrize("key", ["width", "height"])
def test_missing_size_is_read_from_the_image(tmp_path, key):
    write(tmp_path, changed("images", 0, key, remove=True))
    record = read_coco(tmp_path, "train").records[0]
    assert (record.width, record.height) == (40, 30)


def test_masks_can_be_left_out(tmp_path):
    found = read_coco(write(tmp_path), "train", masks=False)
    assert not any("segmentation" in a for r in found.records for a in r.annotations)
    assert [a["iscrowd"] for a in found.records[0].annotations] == [0, 0, 1]


# --- classes -------------------------------------------------------------------------------------


def test_given_classes_set_the_order_and_keep_the_ids(tmp_path):
    found = read_coco(write(tmp_path), "train", classes=["toothbrush", "cup", "bicycle"])
    assert found.categories.names == ("toothbrush", "cup", "bicycle")
    assert found.categories.ids == (90, 91, 2)
    assert found.records[0].labels.tolist() == [1, 3]


def test_objects_of_other_classes_are_refused(tmp_path):
    refused(
        tmp_path,
        CONTENT,
        r"1 class \('toothbrush'\).*did you mean 'tooth brush'",
        classes=["bicycle", "tooth brush"],
    )
    unused = copy.deepcopy(CONTENT)
    unused["categories"].append({"id": 0, "name": "everything"})  # as Roboflow writes
    write(tmp_path, unused)
    assert read_coco(tmp_path, "train", classes=["bicycle", "toothbrush"]).categories.ids == (2, 90)


@pytest.mark.parametrize("classes", [["bicycle", "bicycle"], "bicycle", [""], [3]])
def test_unusable_class_lists_are_refused(tmp_path, classes):
    with pytest.raises(DataError, match="class"):
        read_coco(write(tmp_path), "train", classes=classes)


# --- boxes ---------------------------------------------------------------------------------------


def with_box(*bbox):
    return changed("annotations", 0, "bbox", value=list(bbox))


@pytest.mark.parametrize(
    ("bbox", "clipped"),
    [
        ((-0.5, 2, 10, 29), [0, 2, 9.5, 30]),
        ((30, 20, 11, 10.5), [30, 20, 40, 30]),
        ((-1, -1, 42, 32), [0, 0, 40, 30]),
    ],
)
def test_small_overhang_is_clipped_silently(tmp_path, bbox, clipped):
    found = read_coco(write(tmp_path, with_box(*bbox)), "train", strict=True)
    assert found.records[0].boxes[0].tolist() == clipped
    assert found.records[0].annotations[0]["bbox"] == list(bbox)  # evaluation: as the file has it


def test_large_overhang_is_clipped_and_reported(tmp_path):
    found = read_coco(write(tmp_path, with_box(30, 20, 15, 5)), "train")
    assert found.records[0].boxes[0].tolist() == [30, 20, 40, 25]
    (problem,) = found.problems
    assert problem.item == "annotation 1 (a.png)" and "5 pixels beyond" in problem.what
    assert problem.action == "clipped for training"
    refused(tmp_path, with_box(30, 20, 15, 5), "strict reading found 1 fault", strict=True)


@pytest.mark.parametrize(
    ("bbox", "what"),
    [
        ((5, 5, 0, 10), r"no area \(width 0, height 10\)"),
        ((5, 5, 10, -3), r"no area \(width 10, height -3\)"),
        ((40, 5, 10, 10), "lies outside the image of 40x30"),
        ((5, -20, 10, 10), "lies outside"),
        ((1e300, 5, 1e308, 10), "lies outside"),
        ((20, 5, 1e-9, 10), "too thin"),
        ((math.nextafter(40, 0), 5, 5, 10), "too thin"),
    ],
)
def test_unusable_box_is_left_out_of_training_alone(tmp_path, bbox, what):
    found = read_coco(write(tmp_path, with_box(*bbox)), "train")
    record = found.records[0]
    assert record.boxes.tolist() == [[0, 0, 40, 30]] and record.labels.tolist() == [1]
    assert len(record.annotations) == 3 and record.annotations[0]["bbox"] == list(bbox)
    (problem,) = found.problems
    assert re.search(what, problem.what) and "still counted in evaluation" in problem.action
    refused(tmp_path, with_box(*bbox), what, strict=True)


def test_boxes_stay_with_their_image_when_some_are_left_out(tmp_path):
    content = copy.deepcopy(CONTENT)
    boxes = [(3, [0, 0, 5, 5]), (7, [1, 1, 0, 0]), (3, [1, 1, 30, 2]), (7, [2, 2, 3, 3])]
    content["annotations"] = [
        {"id": n, "image_id": image, "category_id": 2 if n % 2 else 90, "bbox": box}
        for n, (image, box) in enumerate(boxes)
    ]
    found = read_coco(write(tmp_path, content), "train")
    assert found.records[0].boxes.tolist() == [[2, 2, 5, 5]]
    assert found.records[0].labels.tolist() == [1]
    assert found.records[1].boxes.tolist() == [[0, 0, 5, 5], [1, 1, 20, 3]]
    assert found.records[1].labels.tolist() == [2, 2]
    assert len(found.problems) == 2


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"images": [,]}', "not valid JSON at line 1, column 13"),
        ('{\n "images": [\n', "not valid JSON at line 3, column 1"),
        ("", "not valid JSON at line 1"),
        ("[]", "is a list, as files of results are"),
        ("3", "not a COCO annotation file"),
        ('{"a": 1}', "not a COCO annotation file"),
        ("[" * 100_000, "not usable JSON"),
        ('{"images": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
)
def test_files_that_are_no_coco_files(tmp_path, text, match):
    refused(tmp_path, text, match)


def test_file_that_is_no_text(tmp_path):
    write(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").write_bytes(b"\xff\xfe\xfa\xff")
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_coco(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (changed("annotations", remove=True), "has no 'annotations'"),
        (changed("images", value=[]), "lists no images"),
        (changed("categories", value=[]), "'categories' is empty"),
        (changed("images", value={}), "'images' must be a list"),
        (changed("images", 1, value=5), r"images\[1\] must be an object, not 5"),
        (changed("images", 1, "id", value=7), r"images\[1\]: image id 7 is given twice"),
        (changed("images", 1, "id", value=None), r"'id' must be a whole number, not null"),
        (changed("images", 1, "id", value=True), r"'id' must be a whole number, not True"),
        (changed("images", 1, "id", value=2.5), r"'id' must be a whole number, not 2.5"),
        (changed("images", 1, "id", value=2**63), r"'id' must be a whole number"),
        (changed("images", 1, "id", value=10**4000), r"'id' must be a whole number"),
        (changed("images", 1, "file_name", value=None), r"images\[1\]: 'file_name' must be"),
        (changed("images", 1, "width", value=0), "sides must be in 1 .. 1000000 pixels, not 0x10"),
        (changed("images", 1, "width", value="2e1"), "'width' must be a whole number"),
        (changed("categories", 1, "id", value=90), "category id 90 is given twice"),
        (changed("categories", 1, "name", value="toothbrush"), "'toothbrush' is given twice"),
        (changed("categories", 1, "name", value=" "), "'name' must be a text"),
        (changed("annotations", 1, "id", value=1), r"annotations\[1\] \(id 1\): .* given twice"),
        (changed("annotations", 1, "image_id", value=8), "image_id 8 is not among the images"),
        (changed("annotations", 1, "category_id", value=1), r"category_id 1 is not among .*2, 90"),
        (changed("annotations", 1, "area", value="big"), "'area' must be a finite number"),
        (
            changed("annotations", 1, "bbox", value=[0, 0, 1e200, 1e200]),
            "'area' must be .* not inf",
        ),
        (changed("annotations", 1, "segmentation", value=[1, 2, 3, 4]), "list of polygons"),
        (changed("annotations", 1, "iscrowd", value=2), "'iscrowd' must be 0 or 1, not 2"),
        (changed("annotations", 1, "iscrowd", value=[]), "'iscrowd' must be 0 or 1"),
        (changed("annotations", 1, "segmentation", value=4), "'segmentation' has the wrong type"),
        (changed("annotations", 1, "keypoints", value="a"), "'keypoints' has the wrong type"),
        (changed("annotations", 2, "segmentation", "counts", value=[5]), "must have 'size'"),
        (changed("annotations", 2, "segmentation", "size", value=[30]), "must have 'size'"),
        (changed("annotations", 2, "segmentation", "counts", value=None), "must have 'size'"),
        (changed("annotations", 1, "note", value=math.nan), "has NaN or Infinity"),
    ],
)
def test_one_wrong_value_is_named(tmp_path, content, match):
    refused(tmp_path, content, match)


@pytest.mark.parametrize(
    "bbox",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, "3 px", 4],
        [1, 2, None, 4],
        [1, 2, True, 4],
        [1, 2, math.nan, 4],
        [1, 2, math.inf, 4],
        [1, 2, 10**400, 4],
        {"x": 1},
        "1 2 3 4",
    ],
)
def test_bbox_must_be_four_finite_numbers(tmp_path, bbox):
    content = changed("annotations", 1, "bbox", value=bbox)
    refused(tmp_path, content, r"annotations\[1\] \(id 5\): 'bbox' must be four finite numbers")


def test_numbers_as_texts_are_taken(tmp_path):
    """As tools write them that give ids as texts, too."""
    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        image |= {key: str(image[key]) for key in ("width", "height") if key in image}
    for annotation in content["annotations"]:
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
        annotation["iscrowd"] = str(annotation.get("iscrowd", 0))
    found, plain = (
        read_coco(write(tmp_path / name, own), "train2017")
        for name, own in (("texts", content), ("plain", CONTENT))
    )
    for one, other in zip(found.records, plain.records, strict=True):
        assert one.boxes.tolist() == other.boxes.tolist() and one.width == other.width


def test_outlines_give_the_box_where_there_is_none(tmp_path):
    content = changed("annotations", 1, "bbox", remove=True)
    content["annotations"][1]["segmentation"] = [[1, 2, 5, 2.5, 3, 9], [4, 1, 6, 1, 6, 3]]
    found = read_coco(write(tmp_path, content), "train2017")
    boxes = {a["id"]: a["bbox"] for r in found.records for a in r.annotations}
    assert boxes[5] == [1, 1, 5, 8]
    runs = {"size": [10, 12], "counts": [23, 4, 6, 5, 82]}  # rows 3 to 7 of columns 2 and 3
    content["annotations"][1]["segmentation"] = runs
    (box,) = [
        a["bbox"]
        for r in read_coco(write(tmp_path, content), "train2017").records
        for a in r.annotations
        if a["id"] == 5
    ]
    assert box == [2, 3, 2, 5]
    content["annotations"][1]["segmentation"] = {**runs, "counts": [23, 4]}
    refused(tmp_path, content, r"annotations\[1\] \(id 5\): 'segmentation' as run lengths must")
    content["annotations"][1]["segmentation"] = [[1, 2, 5]]
    refused(tmp_path, content, r"annotations\[1\] \(id 5\): 'bbox' must be four finite numbers")


def test_whole_numbers_written_with_a_point_are_taken(tmp_path):
    content = changed("annotations", 0, "category_id", value=90.0)
    content["images"][0]["width"] = 40.0
    record = read_coco(write(tmp_path, content), "train").records[0]
    assert record.labels[0] == 2 and record.width == 40 and type(record.width) is int


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../a.png",
        "x/../../a.png",
        "..\\a.png",
        "C:\\a.png",
        "c:a.png",
        "",
        ".",
        "a\0",
    ],
)
def test_file_names_may_not_leave_the_folder(tmp_path, name):
    (tmp_path / "a.png").touch()
    refused(tmp_path, changed("images", 0, "file_name", value=name), r"images\[0\]: file name")


def test_annotations_without_an_id_are_numbered_above_the_others(tmp_path):
    content = changed("annotations", 1, "id", remove=True)
    others = [a["id"] for a in content["annotations"] if "id" in a]
    data = read_coco(write(tmp_path, content), "train")
    ids = sorted(a["id"] for record in data.records for a in record.annotations)
    assert ids == sorted([*others, max(others) + 1])


def test_lone_surrogates_in_names_are_refused(tmp_path):
    refused(tmp_path, changed("images", 0, "file_name", value="\ud800.png"), "control codes")


def test_missing_images_are_counted_and_named(tmp_path):
    write(tmp_path)
    (tmp_path / "train2017/b.png").unlink()
    (tmp_path / "train2017/b.png").mkdir()  # a folder is no image
    with pytest.raises(DataError, match=r"\S*train2017 lacks 1 of its 2 images \('b.png'\)"):
        read_coco(tmp_path, "train")


# --- hostile files -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
PLACES = [
    (),
    ("images",),
    ("annotations",),
    ("categories",),
    *(("images", n) for n in (0, 1)),
    *(("annotations", n) for n in (0, 2)),
    ("categories", 0),
    *(("images", 0, key) for key in CONTENT["images"][0]),
    *(("annotations", 0, key) for key in (*CONTENT["annotations"][2], "area", "keypoints")),
    *(("annotations", 2, "segmentation", key) for key in ("size", "counts")),
    *(("annotations", 0, "bbox", n) for n in range(4)),
    *(("categories", 0, key) for key in ("id", "name")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hostile"))


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_any_json_reads_or_is_refused(folder, changes):
    content = copy.deepcopy(CONTENT)
    for path, value in changes:
        try:
            if not path:
                content = value
            else:
                place = content
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content))
    try:
        found = read_coco(folder, "train")
    except DataError as error:
        assert str(error).isprintable() or "\n" in str(error)
        return
    for record in found.records:
        x1, y1, x2, y2 = record.boxes.T
        assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= record.width))
        assert np.all((y1 >= 0) & (y1 < y2) & (y2 <= record.height))
        assert np.all((record.labels >= 1) & (record.labels < found.categories.num_classes))
        assert folder in record.path.parents and ".." not in record.path.parts
    truth = COCO()
    truth.dataset = found.ground_truth()
    truth.createIndex()
    json.dumps(truth.dataset, allow_nan=False)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=40) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))
)
def test_any_bytes_are_refused(folder, data):
    (folder / "annotations/instances_train2017.json").write_bytes(data)
    with pytest.raises(DataError):
        read_coco(folder, "train")
