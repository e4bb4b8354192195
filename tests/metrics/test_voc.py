"""VOC's average precision: published numbers, a slow reference, the rules one by one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.metrics import voc
from densenet_backbones.metrics.voc import evaluate_voc, voc_average_precision
from densenet_backbones.reporting.tables import format_voc_table

CATEGORIES = Categories(("ant", "bee"), (4, 9))


def record(image_id, objects):
    """An image with objects (x1, y1, x2, y2, label, difficult)."""
    annotations = tuple(
        {
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "category_id": CATEGORIES.id_of_label(label),
            "difficult": int(difficult),
        }
        for x1, y1, x2, y2, label, difficult in objects
    )
    nothing = np.zeros(0)
    return ImageRecord(image_id, Path("x"), 99, 99, nothing, nothing, nothing, annotations)


def found(*rows):
    """Detections (x1, y1, x2, y2, label, score)."""
    rows = np.array(rows, float).reshape(-1, 6)
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype(int), "scores": rows[:, 5]}


def part_of(*images):
    records = tuple(record(i, objects) for i, objects in enumerate(images, start=1))
    return DetectionSet("test", records, CATEGORIES)


def ap(part, predictions, **options):
    return evaluate_voc(part, predictions, **options).classes[0].ap


def test_the_published_numbers(shared_data):
    folder = shared_data / "odm_voc_ap_sample/samples/sample_2"
    records, predictions = [], {}
    for number, file in enumerate(sorted((folder / "groundtruths").iterdir()), start=1):
        objects = [
            tuple(map(float, line.split()[1:])) for line in file.read_text().splitlines() if line
        ]
        records.append(record(number, [(x, y, x + w, y + h, 1, 0) for x, y, w, h in objects]))
        lines = (folder / "detections" / file.name).read_text().splitlines()
        values = [tuple(map(float, line.split()[1:])) for line in lines if line]
        predictions[number] = found(*[(x, y, x + w, y + h, 1, s) for s, x, y, w, h in values])
    part = DetectionSet("sample_2", tuple(records), CATEGORIES)
    result = evaluate_voc(part, predictions, 0.3, inclusive=True)
    (only, _), curve = result.classes, []
    assert only.objects == 15
    assert f"{100 * only.ap11:.2f}" == "26.84"
    # "24.56 %" is 0.0666 + 0.04446222 + 0.11428095 + 0.02026638 = 0.24560955 in the project's
    # README: recalls and precisions cut after four digits. The curve is the same; uncut it has
    # the area 1/15 + 2/3 * 1/15 + 3/7 * 4/15 + 7/23 * 1/15 = 24.57 %.
    for exact in (only.recall, only.precision):
        curve.append(np.floor(exact * 1e4) / 1e4)
    assert voc_average_precision(*curve) == pytest.approx(0.24560955, abs=1e-12)
    assert only.ap == pytest.approx((1 + 2 / 3 + 4 * 3 / 7 + 7 / 23) / 15, abs=1e-12)
    assert result.mean_ap == only.ap  # the other class has no objects


coordinates = st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
truths = st.lists(st.tuples(coordinates, st.integers(1, 2), st.booleans()), max_size=4)
detections = st.lists(st.tuples(coordinates, st.integers(1, 2), st.integers(0, 4)), max_size=6)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(truths, detections), min_size=1, max_size=4),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_equal_to_the_development_kit_line_by_line(images, threshold, inclusive, count_difficult):
    part = part_of(*[[(*box, label, d) for box, label, d in truth] for truth, _ in images])
    predictions = {
        i: found(*[(*box, label, score / 4) for box, label, score in rows])
        for i, (_, rows) in enumerate(images, start=1)
    }
    result = evaluate_voc(
        part, predictions, threshold, inclusive=inclusive, count_difficult=count_difficult
    )
    for label, got in enumerate(result.classes, start=1):
        recall, precision, objects = reference(images, label, threshold, inclusive, count_difficult)
        assert got.objects == objects
        if not objects:
            assert math.isnan(got.ap)
            assert math.isnan(got.ap11)
            continue
        assert got.recall.tolist() == recall
        assert got.precision.tolist() == precision
        eleven = [
            max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0)
            for t in np.linspace(0, 1, 11)
        ]
        assert got.ap11 == pytest.approx(sum(eleven) / 11)
        # VOCap.m: the envelope between sentinels, summed where the recall changes
        mrec, mpre = [0, *recall, 1], [0, *precision, 0]
        for i in range(len(mpre) - 2, -1, -1):
            mpre[i] = max(mpre[i], mpre[i + 1])
        area = sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))
        assert got.ap == pytest.approx(area)


def reference(images, label, threshold, inclusive, count_difficult):
    """VOCevaldet.m with loops; detections that do not count are left out of the curve."""
    extra = 1 if inclusive else 0
    objects = [
        [{"box": b, "difficult": d and not count_difficult, "taken": False} for b, c, d in truth
         if c == label]
        for truth, _ in images
    ]  # fmt: skip
    rows = [
        (score, image, box)
        for image, (_, found_there) in enumerate(images)
        for box, c, score in found_there
        if c == label
    ]
    rows.sort(key=lambda row: -row[0])
    total = sum(not o["difficult"] for image in objects for o in image)
    right, number, recall, precision = 0, 0, [], []
    for _, image, (x1, y1, x2, y2) in rows:
        best, choice = -1, None
        for o in objects[image]:
            a1, b1, a2, b2 = o["box"]
            w = min(x2, a2) - max(x1, a1) + extra
            h = min(y2, b2) - max(y1, b1) + extra
            overlap = 0
            if w > 0 and h > 0:
                area = (x2 - x1 + extra) * (y2 - y1 + extra) + (a2 - a1 + extra) * (b2 - b1 + extra)
                overlap = w * h / (area - w * h)
            if overlap > best:
                best, choice = overlap, o
        if choice is not None and best >= threshold:
            if choice["difficult"]:
                continue
            right += not choice["taken"]
            choice["taken"] = True
        number += 1
        recall.append(right / total if total else math.nan)
        precision.append(right / number)
    return recall, precision, total


@given(hnp.arrays(bool, st.integers(0, 30)), st.integers(0, 5))
def test_both_rules_stay_in_their_range(right, missed):
    if not right.sum() + missed:
        return
    recall = np.cumsum(right) / (right.sum() + missed)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    for points in ("all", 11):
        # sums of up to 30 float64 fractions: a rounding of the last digit is allowed
        assert 0 <= voc_average_precision(recall, precision, points) <= 1 + 1e-12
    if right.all() and len(right) and not missed:
        assert voc_average_precision(recall, precision) == pytest.approx(1, abs=1e-12)


def test_recall_is_compared_without_a_tolerance():
    # np.linspace(0, 1, 11)[3] is 0.30000000000000004: a recall of 3/10 does not reach it.
    eleven = voc_average_precision(np.array([0.1, 0.2, 0.3]), np.ones(3), 11)
    assert eleven == pytest.approx(3 / 11)
    assert voc_average_precision(np.array([0.1, 0.2, 0.3]), np.ones(3)) == pytest.approx(0.3)


BOX = (0, 0, 10, 10)


def test_duplicates_are_wrong_and_difficult_objects_do_not_count():
    one = part_of([(*BOX, 1, 0)])
    twice = {1: found((*BOX, 1, 0.9), (*BOX, 1, 0.8))}
    assert ap(one, twice) == 1
    assert evaluate_voc(one, twice).classes[0].precision.tolist() == [1, 0.5]
    both = part_of([(*BOX, 1, 0), (20, 20, 30, 30, 1, 1)])
    on_both = {1: found((20, 20, 30, 30, 1, 0.9), (*BOX, 1, 0.8))}
    assert evaluate_voc(both, on_both).classes[0].precision.tolist() == [1]
    assert evaluate_voc(both, on_both).classes[0].objects == 1
    assert evaluate_voc(both, on_both, count_difficult=True).classes[0].objects == 2
    crowd = DetectionSet(
        "crowd",
        (
            ImageRecord(
                1, Path("x"), 99, 99, *[np.zeros(0)] * 3,
                ({"bbox": [0, 0, 10, 10], "category_id": 4, "iscrowd": 1},),
            ),
        ),
        CATEGORIES,
    )  # fmt: skip
    for count in (False, True):  # a crowd is no object that could be counted
        result = evaluate_voc(crowd, {1: found((*BOX, 1, 0.9))}, count_difficult=count).classes[0]
        assert (result.objects, len(result.scores)) == (0, 0)


def test_a_detection_belongs_to_the_object_it_overlaps_most_even_if_that_is_taken():
    part = part_of([(0, 0, 10, 10, 1, 0), (0, 0, 10, 14, 1, 0)])
    predictions = {1: found((*BOX, 1, 0.9), (0, 0, 10, 11, 1, 0.8))}
    result = evaluate_voc(part, predictions, 0.5).classes[0]
    assert result.recall.tolist() == [0.5, 0.5]  # 10/11 with the first, 11/14 with the second


def test_inclusive_pixels_are_the_same_box_in_another_frame():
    # VOC's file: xmin 5, xmax 8 is four pixels; as read: 4 to 8.
    as_read = part_of([(4, 4, 8, 8, 1, 0)])
    in_file = part_of([(5, 5, 8, 8, 1, 0)])
    for x2 in range(5, 12):
        read = found((4, 4, x2, 8, 1, 1))
        file = found((5, 5, x2, 8, 1, 1))
        for threshold in (0.4, 0.5, 0.75, 0.8):
            assert ap(as_read, {1: read}, iou_threshold=threshold) == ap(
                in_file, {1: file}, iou_threshold=threshold, inclusive=True
            )


def test_boxes_without_area_overlap_nothing():
    empty = np.array([[3.0, 3.0, 3.0, 9.0]])
    assert voc._iou(empty, empty, 0.0).tolist() == [0.0]
    assert voc._iou(empty, empty, 1.0).tolist() == [1.0]  # a column of pixels


def test_images_can_be_chosen_and_tensors_given():
    part = part_of([(*BOX, 1, 0)], [(*BOX, 1, 0)])
    row = {
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
    }
    assert ap(part, {1: row}) == 0.5
    assert ap(part, {1: row}, image_ids=[1]) == 1
    assert evaluate_voc(part, {1: row}, image_ids=[1]).images == 1
    assert math.isnan(evaluate_voc(part, {}, image_ids=[]).mean_ap)


def test_thousands_of_images_in_seconds():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (4000, 20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 50, (4000, 20, 2))], axis=2)
    part = part_of(*[[(*box, 1, 0) for box in image[:3]] for image in boxes])
    predictions = {
        i: {"boxes": image, "labels": np.ones(20, int), "scores": rng.random(20)}
        for i, image in enumerate(boxes, start=1)
    }
    result = evaluate_voc(part, predictions).classes[0]
    assert len(result.scores) == 80_000
    assert result.recall[-1] == 1


def test_the_text_and_json_forms():
    result = evaluate_voc(part_of([(*BOX, 1, 0)]), {1: found((*BOX, 1, 0.9))})
    text = format_voc_table(result)
    assert "VOC AP at IoU 0.5, 1 image" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[4:] if line.split()}
    assert rows["ant"] == ["1", "1.000", "1.000"]
    assert rows["bee"] == ["0", "-", "-"]
    assert rows["mean"] == ["1", "1.000", "1.000"]
    state = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert state["mean_ap"] == 1
    assert state["classes"][1] == {"name": "bee", "objects": 0, "ap": None, "ap11": None}


def test_errors_name_the_item_and_the_fix():
    part = part_of([(*BOX, 1, 0)])
    one = found((*BOX, 1, 0.9))
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \(0, 1\], got 0"):
        evaluate_voc(part, {1: one}, 0)
    with pytest.raises(ValueError, match="image id 7 is not among the 1 image of 'test'"):
        evaluate_voc(part, {7: one})
    with pytest.raises(ValueError, match="image id 7 is not among"):
        evaluate_voc(part, {1: one}, image_ids=[7])
    with pytest.raises(ValueError, match=r"labels must lie in \[1, 2\]"):
        evaluate_voc(part, {1: one | {"labels": np.array([3])}})
    with pytest.raises(ValueError, match="1 box, 1 label and 2 scores"):
        evaluate_voc(part, {1: one | {"scores": np.ones(2)}})
