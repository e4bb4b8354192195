"""Masks and keypoints of objects, from annotations in COCO's forms and from hostile ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
from instance_sets import KEYPOINTS, change, rectangle, write_instances
from PIL import Image

from densenet_backbones.data import instances
from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.instances import keep_learnable_objects, read_instances
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.sets.classes import keep_classes

MASKS, POINTS = ("boxes", "masks"), ("boxes", "keypoints")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_instances(tmp_path_factory.mktemp("instances"))


def colored(record, number):
    """Pixels drawn in the color of the n-th object."""
    return (read_image(record.path) == (50 * number, 0, 255)).all(2)


def test_masks_are_the_objects_pixels(drawn):
    data = read_coco(drawn, "train")
    for record in data.records:
        found = read_instances(record, MASKS)
        assert found.masks.shape == (3, record.height, record.width)
        assert found.masks.dtype == np.uint8 and set(np.unique(found.masks)) == {0, 1}
        assert found.labels.tolist() == [1, 2, 1] and found.keypoints is None
        np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))
        hidden = colored(record, 3)
        for n, mask in reversed(list(enumerate(found.masks))):
            np.testing.assert_array_equal(mask.astype(bool) & ~hidden, colored(record, n) & ~hidden)
            hidden |= mask.astype(bool)


def test_keypoints_are_theirs_who_have_some(drawn):
    data = read_coco(drawn, "train", keypoints=True)
    assert data.categories.keypoints == KEYPOINTS
    assert data.categories.skeleton == ((0, 1), (0, 2))
    for record in data.records:
        found = read_instances(record, POINTS, len(KEYPOINTS))
        assert found.masks is None and found.keypoints.dtype == np.float32
        assert found.keypoints.shape == (3, 5, 3) and not found.keypoints[1:].any()
        expected = np.array(record.annotations[0]["keypoints"]).reshape(5, 3)
        np.testing.assert_array_equal(found.keypoints[0], expected)


def test_boxes_alone_are_read_as_ever(drawn):
    record = read_coco(drawn, "train").records[0]
    found = read_instances(record)
    assert found.boxes is record.boxes and found.labels is record.labels
    assert found.masks is None and found.keypoints is None


def test_images_that_were_turned_have_masks_and_keypoints_as_shown(tmp_path):
    root = write_instances(tmp_path, sizes=((24, 36),), exif=6)
    data = read_coco(root, "train")
    assert Image.open(data.records[0].path).size == (24, 36)  # lying, as stored
    sample = DetectionImages(data, target_types=("boxes", "masks", "keypoints"))[0]
    assert sample.image.shape == (3, 24, 36) and sample.masks.shape == (3, 24, 36)
    shown = sample.image.permute(1, 2, 0).numpy()
    on_top = (sample.masks[2].numpy() > 0) & ~colored(data.records[0], 3)
    assert (shown[on_top] == (100, 0, 255)).all() and on_top.any()
    x, y, _ = sample.keypoints[0, 0].tolist()
    assert sample.masks[0, int(y), int(x)] == 1


def test_masks_for_an_image_of_another_size_are_refused(tmp_path):
    root = write_instances(tmp_path, sizes=((24, 36),))
    Image.new("RGB", (24, 36)).save(root / "train/0.png")
    images = DetectionImages(read_coco(root, "train"), target_types=MASKS)
    with pytest.raises(DataError, match=r"is 24x36 pixels as shown, its annotations say 36x24"):
        images[0]


def test_objects_stay_with_their_annotations_where_classes_are_left_out(drawn):
    data = keep_classes(read_coco(drawn, "train"), ["box"])
    for record in data.records:
        assert [a["category_id"] for a in record.annotations] == [7]
        np.testing.assert_array_equal(record.annotation_of, [0])
        found = read_instances(record, MASKS)
        np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))


def test_objects_stay_with_their_annotations_where_sources_are_merged(drawn):
    data = read_detection([(drawn, "train"), (drawn, "train")], keypoints=True)
    assert data.categories.keypoints == KEYPOINTS
    for record in data.records:
        found = read_instances(record, ("masks", "keypoints"), 5)
        np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))


def test_faulty_boxes_are_skipped_with_their_masks(tmp_path):
    def no_area(content):
        content["annotations"][0]["bbox"] = [3, 3, 0, 5]

    record = read_coco(change(write_instances(tmp_path), no_area), "train").records[0]
    assert record.annotation_of.tolist() == [1, 2]
    found = read_instances(record, MASKS)
    np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))


def test_files_of_keypoints_are_found_where_keypoints_are_learned(tmp_path):
    write_instances(tmp_path, sizes=((24, 36),) * 2)
    write_instances(tmp_path, sizes=((24, 36),) * 2, file="keypoints", seed=1)
    (tmp_path / "annotations/keypoints_train.json").rename(
        tmp_path / "annotations/keypoints_train2017.json"
    )

    def first_box(**options):
        data = read_coco(tmp_path, "train", image_folder="train", **options)
        return data.records[0].boxes[0].tolist()

    plain = first_box()
    assert first_box(keypoints=True) == plain  # a file of the split's very name goes first
    (tmp_path / "annotations/instances_train.json").rename(
        tmp_path / "annotations/instances_train2017.json"
    )
    assert first_box() == plain
    other = first_box(keypoints=True)
    assert other != plain
    write_instances(tmp_path, sizes=((24, 36),) * 2, file="person_keypoints", seed=2)
    person = first_box(keypoints=True)
    assert person not in (plain, other) and first_box() == plain


# What can be learned.


def test_sets_in_order_are_left_as_they_are(drawn):
    data = read_coco(drawn, "train")
    found = keep_learnable_objects(data, ("boxes", "masks", "keypoints"), strict=True)
    assert found.records is data.records
    assert found.problems == () and keep_learnable_objects(data, ("boxes",), strict=True) is data


def test_objects_without_outline_are_left_out_of_training(tmp_path):
    def without(content):
        del content["annotations"][0]["segmentation"]
        content["annotations"][6]["segmentation"] = []

    data = read_coco(change(write_instances(tmp_path), without), "train")
    found = keep_learnable_objects(data, MASKS, strict=False)
    assert [len(r.boxes) for r in found.records[:3]] == [2, 2, 3]
    assert [len(r.annotations) for r in found.records[:2]] == [4, 4]  # evaluation counts them
    assert [p.what for p in found.problems] == ["has no 'segmentation'"] * 2
    assert found.problems[0].item.endswith("0.png: annotation 1")
    for record in found.records:
        objects = read_instances(record, MASKS)
        np.testing.assert_array_equal(objects.boxes, masks_to_boxes(objects.masks))
    with pytest.raises(DataError, match="strict reading found 2 faults"):
        keep_learnable_objects(data, MASKS, strict=True)


def test_sets_without_what_is_learned_are_refused(tmp_path, tiny_masks):
    def bare(content):
        for annotation in content["annotations"]:
            annotation.pop("keypoints", None)
            del annotation["segmentation"]

    data = read_coco(change(write_instances(tmp_path), bare), "train")
    with pytest.raises(DataError, match="its 24 objects have no 'segmentation', so no masks"):
        keep_learnable_objects(data, MASKS, strict=False)
    with pytest.raises(DataError, match="its 32 objects have no 'keypoints', so none can be"):
        keep_learnable_objects(data, POINTS, strict=False)
    voc = read_detection(tiny_masks, "train")
    for target_types in (MASKS, POINTS):
        with pytest.raises(DataError, match=r"its \d+ objects have no "):
            keep_learnable_objects(voc, target_types, strict=False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda categories: categories[0].pop("keypoints"),
        lambda categories: categories[0].update(keypoints="nose"),
        lambda categories: categories[0].update(keypoints=["nose", 4]),
        lambda categories: categories[1].update(keypoints=["corner"]),
    ],
)
def test_keypoints_without_common_names_are_refused_where_they_are_learned(tmp_path, edit):
    root = change(write_instances(tmp_path), lambda content: edit(content["categories"]))
    data = read_coco(root, "train")
    assert data.categories.keypoints == () and len(data.records[0].boxes) == 3
    with pytest.raises(DataError, match="its categories do not name the keypoints, or name diff"):
        keep_learnable_objects(data, POINTS, strict=False)


def test_classes_that_name_different_keypoints_are_refused_where_they_are_learned(tmp_path):
    def name_others(content):
        content["categories"][1]["keypoints"] = list(reversed(KEYPOINTS))

    def use_them(content):
        box = next(a for a in content["annotations"] if a["category_id"] == 7)
        box["keypoints"] = [1, 2, 2] * len(KEYPOINTS)

    # A class whose objects have none does not matter.
    root = change(write_instances(tmp_path), name_others)
    data = read_coco(root, "train", keypoints=True)
    assert data.categories.keypoints == KEYPOINTS and data.categories.skeleton
    keep_learnable_objects(data, POINTS, strict=False)
    assert read_coco(change(root, use_them), "train").categories.keypoints == ()
    message = r"_train.json: categories 'person', 'box' differ in 'keypoints' \(in another order\)"
    with pytest.raises(DataError, match=message) as error:
        read_coco(root, "train", keypoints=True)
    assert "\n" not in str(error.value)
    for names in (["beak", *KEYPOINTS[1:]], "beak", [["beak"]], 7):
        change(root, lambda content, names=names: content["categories"][1].update(keypoints=names))
        with pytest.raises(DataError, match=r"differ in 'keypoints' \(.* in one of them only\)"):
            read_coco(root, "train", keypoints=True)


@pytest.mark.parametrize("skeleton", [[[0, 1]], [[1, 6]], [[1, 2, 3]], [[1, 2.0]], "lines", [3]])
def test_a_skeleton_in_another_form_is_not_drawn(tmp_path, skeleton):
    def edit(content):
        content["categories"][0]["skeleton"] = skeleton

    categories = read_coco(change(write_instances(tmp_path), edit), "train").categories
    assert categories.keypoints == KEYPOINTS and categories.skeleton == ()


@pytest.mark.parametrize(
    "keypoints",
    [
        [1, 2, 2] * 4,
        [1, 2, 2] * 6,
        [1, 2, 3] * 5,
        [1, 2, -1] * 5,
        [1, None, 2] * 5,
        ["1", 2, 2] * 5,
        [float("nan"), 2, 2] * 5,
        [1e39, 2, 2] * 5,
        [10**400, 2, 2] * 5,
        [[1, 2, 2]] * 5,
        [True, 2, 2] * 5,
    ],
)
def test_faulty_keypoints_are_refused_before_training(tmp_path, keypoints):
    data = read_coco(write_instances(tmp_path), "train")
    first, *others = data.records
    annotation = {**first.annotations[0], "keypoints": keypoints}
    first = replace(first, annotations=(annotation, *first.annotations[1:]))
    data = replace(data, records=(first, *others))
    with pytest.raises(DataError) as error:
        keep_learnable_objects(data, POINTS, strict=False)
    assert "1 annotation has faulty keypoints" in str(error.value)
    assert "0.png: annotation 1: 'keypoints' must be x, y and visibility" in str(error.value)


@pytest.mark.parametrize(
    "outline",
    [
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 1e30]],
        [[1, 2, 3, 4, "5", 6]],
        [[]],
        {"size": [36, 24], "counts": [24 * 36]},
        {"size": [24, 36], "counts": "not run lengths"},
        {"size": [24, 36], "counts": "1"},
    ],
)
@pytest.mark.parametrize("number", [0, 3])  # an object, and a crowd that evaluation decodes
def test_faulty_outlines_are_refused_before_training(tmp_path, outline, number):
    def edit(content):
        content["annotations"][number]["segmentation"] = outline

    data = read_coco(change(write_instances(tmp_path, sizes=((24, 36),)), edit), "train")
    with pytest.raises(DataError) as error:
        keep_learnable_objects(data, MASKS, strict=False)
    assert "1 annotation has faulty masks" in str(error.value)
    assert f"0.png: annotation {number + 1}: " in str(error.value)


def test_masks_that_would_fill_the_memory_are_refused(drawn, monkeypatch):
    record = read_coco(drawn, "train").records[0]
    monkeypatch.setattr(instances, "MAX_MASK_PIXELS", 3 * 24 * 36 - 1)
    with pytest.raises(DataError, match="masks of its 3 objects of 36x24 pixels need more than"):
        read_instances(record, MASKS)


def test_keypoints_beside_the_image_are_not_labeled(tmp_path):
    def outside(content):
        keypoints = content["annotations"][0]["keypoints"]
        keypoints[0], keypoints[7], keypoints[9] = -0.5, 24.5, 36

    root = change(write_instances(tmp_path, sizes=((24, 36),)), outside)
    found = read_instances(read_coco(root, "train").records[0], POINTS, 5).keypoints[0]
    assert not found[:3].any()  # the second one was none
    assert found[3, 0] == 36 and found[3, 2] == 2  # the end of the last pixel is inside


# Names of keypoints.


def test_left_and_right_are_told_from_names():
    names = ("nose", "left_eye", "RightEye", "L Hip", "r-hip", "tail left", "wrist_r", "wrist_l")
    mirrored = Categories(("a",), (1,), names).mirrored_keypoints
    # "left_eye" and "RightEye" are one pair in words; the tail has no other side.
    assert mirrored == (0, 2, 1, 4, 3, 5, 7, 6)
    alike = Categories(("a",), (1,), ("left eye", "Left_Eye", "right eye")).mirrored_keypoints
    assert alike == (0, 1, 2)


def test_keypoints_survive_json_and_are_left_out_where_there_are_none():
    with_keypoints = Categories(("a",), (1,), ("x", "y"), ((0, 1),))
    state = json.loads(json.dumps(with_keypoints.to_dict()))
    assert Categories.from_dict(state) == with_keypoints
    assert Categories(("a",), (1,)).to_dict() == {"names": ["a"], "ids": [1]}
    with pytest.raises(DataError, match=r"skeleton must join keypoints 0 \.\. 1, got \[\(0, 2\)\]"):
        Categories(("a",), (1,), ("x", "y"), ((0, 2),))


def test_generated_scenes_have_masks_and_keypoints(tiny_scenes):
    for split in ("train", "val"):
        data = read_detection(tiny_scenes, split, keypoints=True)
        found = keep_learnable_objects(data, ("boxes", "masks", "keypoints"), strict=True)
        assert len(found.categories.keypoints) == 13
        assert sorted(found.categories.mirrored_keypoints) == list(range(13))
        for record in found.records:
            objects = read_instances(record, ("masks", "keypoints"), 13)
            np.testing.assert_array_equal(objects.boxes, masks_to_boxes(objects.masks))
            assert (objects.keypoints[..., 2] > 0).any(1).all()
    data = keep_learnable_objects(read_detection(tiny_scenes, "train"), MASKS, strict=True)
    assert sum(len(r.boxes) for r in data.records) > 0


def test_real_outlines_agree_with_their_boxes(shared_data):
    data = keep_learnable_objects(
        read_detection(shared_data / "coco_tiny", "val2017"), MASKS, strict=False
    )
    overlap = []
    for record in data.records[:40]:
        objects = read_instances(record, MASKS)
        found = masks_to_boxes(objects.masks)
        overlap += list(np.abs(found - objects.boxes).max(1))
    # Slivers of polygons have no pixel: a few boxes reach farther than the masks.
    assert len(overlap) > 50 and np.mean(np.array(overlap) <= 1.5) > 0.95


def test_boxes_of_masks():
    mask = rectangle(20, 30, np.random.default_rng(0))
    y, x = mask.nonzero()
    (box,) = masks_to_boxes(mask[None])
    assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert masks_to_boxes(np.zeros((1, 4, 4), np.uint8)).tolist() == [[0, 0, 0, 0]]
    assert masks_to_boxes(np.zeros((0, 4, 4), np.uint8)).shape == (0, 4)
