"""COCO's instances as masks: overlaps, crowds, channels, and outlines that cannot be drawn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import NAMES, masks, some_masks, write_coco
from pycocotools import mask as coco_mask

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco.masks import read_coco_masks
from densenet_backbones.data.readers.coco.outlines import draw_outline
from densenet_backbones.data.readers.coco.run_lengths import enclose_runs, parse_run_lengths
from densenet_backbones.data.scenes import annotations as forms


@settings(max_examples=30)
@given(masks())
def test_masks_come_back(tmp_path_factory, mask):
    root = write_coco(tmp_path_factory.mktemp("coco"), {"a": mask})
    (record,) = read_coco_masks(root, "train").records
    np.testing.assert_array_equal(record.read_mask(), mask)
    (record,) = read_coco_masks(root, "train", multilabel=True).records
    planes = record.read_mask()
    expected = np.stack([mask == 1, mask == 2]).astype(np.uint8)
    expected[0][mask == 255] = 255  # the crowd is of the first category
    np.testing.assert_array_equal(planes, expected)


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def with_objects(root, objects, size=(8, 10), categories=((5, "cat"), (10, "dog"))):
    """One image and its objects: (category id, outline, iscrowd)."""
    write_coco(root, {"a": np.zeros(size, np.uint8)})
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in categories]
    content["annotations"] = [
        {
            "id": n,
            "image_id": 0,
            "category_id": category,
            "bbox": [0, 0, 4, 2],
            "iscrowd": crowd,
            **({} if outline is None else {"segmentation": outline}),
        }
        for n, (category, outline, crowd) in enumerate(objects, start=1)
    ]
    path.write_text(json.dumps(content))
    return root


def first_mask(root, **options):
    return read_coco_masks(root, "train", **options).records[0].read_mask()


def test_classes_are_background_and_the_categories(tmp_path):
    data = read_coco_masks(write_coco(tmp_path, some_masks()), "train")
    assert (data.classes.names, data.classes.ids) == (NAMES, (0, 5, 10))
    assert [r.image_id for r in data.records] == [0, 7, 14]
    many = read_coco_masks(tmp_path, "train", multilabel=True)
    assert (many.classes.names, many.task) == (NAMES[1:], "multilabel")
    assert many.records[0].read_mask().shape == (2, 6, 9)


def test_the_smaller_object_lies_on_top_and_of_equals_the_later(tmp_path):
    table, cup = rectangle(0, 0, 8, 6), rectangle(2, 2, 3, 3)
    for order in ([(5, table, 0), (10, cup, 0)], [(10, cup, 0), (5, table, 0)]):
        mask = first_mask(with_objects(tmp_path, order))
        assert (mask == 2).sum() == 9 and (mask == 1).sum() == 48 - 9
    mask = first_mask(with_objects(tmp_path, [(5, cup, 0), (10, rectangle(3, 2, 3, 3), 0)]))
    assert mask[2].tolist() == [0, 0, 1, 2, 2, 2, 0, 0, 0, 0]


def test_crowds_lie_below_all_objects(tmp_path):
    crowd = np.zeros((8, 10), bool)
    crowd[:2, :4] = True
    objects = [(10, rectangle(0, 0, 10, 1), 0), (5, forms.encode_run_lengths(crowd), 1)]
    mask = first_mask(with_objects(tmp_path, objects))
    assert mask[0].tolist() == [2] * 10 and mask[1].tolist() == [255] * 4 + [0] * 6
    planes = first_mask(tmp_path, multilabel=True)
    assert planes[1].sum() == 10 and (planes[0] == 255).sum() == 8


def test_objects_of_two_classes_share_pixels_in_channels(tmp_path):
    objects = [(5, rectangle(0, 0, 4, 4), 0), (10, rectangle(2, 2, 4, 4), 0)]
    planes = first_mask(with_objects(tmp_path, objects), multilabel=True)
    assert planes.sum((1, 2)).tolist() == [16, 16] and planes.prod(0).sum() == 4


def test_objects_without_an_outline_are_ignored_and_reported(tmp_path):
    objects = [(5, None, 0), (10, rectangle(5, 5, 2, 2), 0), (10, [], 0)]
    data = read_coco_masks(with_objects(tmp_path, objects), "train")
    mask = data.records[0].read_mask()
    assert (mask == 255).sum() == 8 and (mask[:2, :4] == 255).all() and (mask == 2).sum() == 4
    assert [p.item for p in data.problems] == ["annotation 1", "annotation 3"]
    assert "the pixels of its box are ignored" in str(data.problems[0])
    with pytest.raises(DataError, match="strict reading found 2 faults"):
        read_coco_masks(tmp_path, "train", strict=True)
    with_objects(tmp_path, objects[:1])
    with pytest.raises(DataError, match="its 1 annotation has no 'segmentation', so it"):
        read_coco_masks(tmp_path, "train")


def test_a_category_of_the_background_is_the_background(tmp_path):
    categories = ((0, "ant"), (3, "background"))
    objects = [(0, rectangle(0, 0, 9, 7), 0), (3, rectangle(1, 1, 2, 2), 0)]
    data = read_coco_masks(with_objects(tmp_path, objects, categories=categories), "train")
    assert (data.classes.names, data.classes.ids) == (("background", "ant"), (3, 0))
    assert (data.records[0].read_mask() == 1).sum() == 63 - 4
    with_objects(tmp_path, [], categories=((0, "ant"),))
    assert read_coco_masks(tmp_path, "train").classes.ids == (-1, 0)


def test_classes_can_be_reordered(tmp_path):
    found = some_masks()
    write_coco(tmp_path, found)
    data = read_coco_masks(tmp_path, "train", classes=["dog", "cat", "background"])
    table = np.arange(256, dtype=np.uint8)
    table[:3] = 2, 1, 0
    np.testing.assert_array_equal(data.records[0].read_mask(), table[found["im0"]])


# --- outlines ------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(masks(2, ignored=False))
def test_every_form_of_an_outline_is_drawn(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    runs = forms.encode_run_lengths(mask.astype(bool))
    assert parse_run_lengths(text["counts"]) == runs["counts"] or mask.all()
    for form in (text, runs):
        np.testing.assert_array_equal(draw_outline(form, mask.shape, "here"), mask)
        assert enclose_runs(form["size"], form["counts"]) == coco_mask.toBbox(encoded).tolist()


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=30))
def test_compressed_run_lengths_are_read_as_cocoapi_writes_them(counts):
    # pycocotools has room for 6 characters a number, and writes 7 for a step of 30 bits.
    counts = counts + [0] * (len(counts) + 2)
    total = sum(counts)
    (encoded,) = coco_mask.frPyObjects([{"size": [1, total], "counts": counts}], 1, total)
    assert parse_run_lengths(encoded["counts"]) == counts


@given(st.binary(max_size=40))
def test_any_text_of_run_lengths_is_an_error_or_a_mask(counts):
    try:
        mask = draw_outline({"size": [3, 4], "counts": counts}, (3, 4), "here")
    except DataError:
        return
    assert mask.shape == (3, 4) and mask.dtype == bool


SHORT = {"size": [8, 10], "counts": "5"}  # pycocotools leaves the rest of the mask as it was
FAR = [[0, 0, 1e9, 0, 1e9, 1e9]]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[0, 0, 4, 4]], "at least 3 points .*, got 4 entries"),
        ([[0, 0, 4, 4, 1, 2, 3]], "got 7 entries"),
        ([[0, 0, 4, 4, "1", 2]], "must be a list of at least 3 points"),
        (FAR, r"has the coordinate 1000000000\.0, far outside its image of 10x8 pixels"),
        ([[0, 0, float("nan"), 4, 1, 2]], "far outside"),
        ([[0, 0, 10**400, 4, 1, 2]], "has the coordinate a whole number of more than 64 bits"),
        ([[0, 0, True, 4, 1, 2]], "must be a list"),
        (["text"], "must be a list of at least 3 points"),
        (SHORT, "do not add up to the 80 pixels of 10x8"),
        ({"size": [8, 10], "counts": "~~~"}, "do not add up"),
        ({"size": [8, 10], "counts": [90, -10]}, "do not add up"),
        ({"size": [9999999, 9999999], "counts": "0"}, r"are for the size \[9999999, 9999999\]"),
        ({"size": [10, 8], "counts": [80]}, r"are for the size \[10, 8\] \(H, W\), the image's is"),
    ],
)
def test_outlines_that_cannot_be_drawn_are_named(outline, message):
    with pytest.raises(DataError, match=message) as caught:
        draw_outline(outline, (8, 10), "file.json: annotation 4")
    assert str(caught.value).startswith("file.json: annotation 4: ")


def test_a_faulty_outline_is_named_when_its_mask_is_read(tmp_path):
    record = read_coco_masks(with_objects(tmp_path, [(5, FAR, 0)]), "train").records[0]
    with pytest.raises(DataError, match=r"instances_train2017\.json: annotation 1: a polygon"):
        record.read_mask()


def test_huge_images_are_refused_before_memory_is_asked_for(tmp_path):
    with_objects(tmp_path, [(5, rectangle(0, 0, 2, 2), 0)])
    path = tmp_path / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"width": 10', '"width": 1000000'))
    path.write_text(path.read_text().replace('"height": 8', '"height": 1000000'))
    with pytest.raises(DataError, match="image 0 is 1000000x1000000, more than"):
        read_coco_masks(tmp_path, "train")


# --- real data -----------------------------------------------------------------------------------


def test_real_masks_agree_with_pycocotools(shared_data):
    data = read_coco_masks(shared_data / "coco_tiny", "val", multilabel=True)
    content = json.loads((shared_data / "coco_tiny/annotations/instances_val2017.json").read_text())
    record = data.records[3]
    planes = record.read_mask()
    expected = np.zeros_like(planes)
    for crowd in (1, 0):
        for entry in content["annotations"]:
            if entry["image_id"] == record.image_id and entry["iscrowd"] == crowd:
                runs = coco_mask.frPyObjects(entry["segmentation"], record.height, record.width)
                runs = runs if isinstance(runs, dict) else coco_mask.merge(runs)
                channel = data.classes.ids.index(entry["category_id"])
                expected[channel][coco_mask.decode(runs) > 0] = 255 if crowd else 1
    np.testing.assert_array_equal(planes, expected)
    assert planes.any() and data.classes.num_classes == 80


def test_real_crowds_are_ignored(shared_data):
    data = read_coco_masks(shared_data / "coco_tiny", "train")
    assert (data.classes.num_classes, len(data), data.problems) == (81, 80, ())
    assert sum(o.label == 255 for r in data.records for o in r.mask.objects) == 6
    crowded = [r for r in data.records if any(o.label == 255 for o in r.mask.objects)]
    assert all((r.read_mask() == 255).any() for r in crowded)
