"""Kinds of a detector's errors: each is told from the others, and costs what TIDE says."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.metrics.error_kinds import IGNORED, KINDS, find_errors

NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)


def make_set(images, classes=3):
    """A set of images, each a list of (label, xywh) or (label, xywh, more keys)."""
    records = [
        ImageRecord(
            number,
            Path(f"{number}.png"),
            *(200, 200),
            *NOTHING,
            annotations=tuple(
                {"category_id": label, "bbox": [*map(float, box)], "iscrowd": 0, **dict(*more)}
                for label, box, *more in objects
            ),
        )
        for number, objects in enumerate(images, start=1)
    ]
    names = [f"class {n}" for n in range(1, classes + 1)]
    return DetectionSet("drawn", tuple(records), Categories.from_names(names))


def predict(*detections):
    """Detections (label, xywh, score) of one image."""
    labels, boxes, scores = zip(*detections, strict=True)
    boxes = np.array(boxes, float)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "labels": np.array(labels), "scores": np.array(scores)}


BOX = (10, 10, 40, 40)
OBJECTS = [(1, BOX), (2, (100, 10, 40, 40)), (1, (10, 100, 40, 40)), (3, (150, 150, 40, 40))]
DETECTIONS = [
    (1, BOX, 0.9),  # right
    (1, (12, 10, 40, 40), 0.8),  # the same object again
    (1, (100, 12, 40, 40), 0.7),  # a class 2
    (1, (10, 120, 40, 40), 0.6),  # IoU 1/3 with the second of class 1
    (3, (80, 10, 40, 40), 0.5),  # IoU 1/3 with the object of class 2
    (2, (150, 60, 40, 40), 0.4),  # nothing there
]


def test_each_kind_is_told_and_cured():
    result = find_errors(make_set([OBJECTS]), {1: predict(*DETECTIONS)})
    (image,) = result.images
    told = [KINDS[kind] if kind >= 0 else "right" for kind in image.kinds]
    in_order = ["right", "duplicate", "classification", "localization", "both", "background"]
    assert told == in_order
    assert {kind.name: kind.count for kind in result.kinds} == dict.fromkeys(KINDS, 1)
    # Only the object of class 3 is missed for good; from score .65 on the one of class 2 is, too.
    assert image.missed.tolist() == [False, False, False, True]
    assert image.count(0.0) == (1, 5, 3) and image.count(0.65) == (1, 2, 3)
    assert image.measure_f1(0.85) == pytest.approx(2 / 5)
    # Class 1 has half its objects at precision 1: 51 of 101 recalls; the others have none.
    assert result.ap == pytest.approx(51 / 101 / 3)
    cured = {kind.name: kind.lost_ap for kind in result.kinds}
    # As a right one of class 2 the detection is that class's only hit.
    assert cured["classification"] == pytest.approx(1 / 3)
    # The second object of class 1 comes fourth: precision 1/2 at the other 50 recalls.
    assert cured["localization"] == pytest.approx(50 / 101 / 2 / 3)


def test_ignored_objects_are_neither_missed_nor_mistakes():
    crowd, difficult = {"iscrowd": 1}, {"difficult": 1}
    part = make_set([[(1, (0, 0, 100, 100), crowd), (2, BOX, difficult), (1, (150, 150, 40, 40))]])
    found = predict((1, (10, 10, 20, 20), 0.9), (2, BOX, 0.8), (2, (50, 50, 30, 30), 0.7))
    result = find_errors(part, {1: found})
    assert result.images[0].kinds.tolist() == [IGNORED, IGNORED, KINDS.index("background")]
    assert result.images[0].count(0.0) == (0, 1, 1)


def test_images_without_objects_or_detections():
    part = make_set([[], [(1, BOX)], []])
    result = find_errors(part, {3: predict((1, BOX, 0.3))})
    assert [image.count(0.0) for image in result.images] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert [image.measure_f1(0.0) for image in result.images] == [1.0, 0.0, 0.0]
    assert result.ap == 0.0
    assert np.isnan(find_errors(make_set([[]]), {}).ap)


def test_detections_of_a_class_without_objects_are_mistakes_and_no_class_of_the_mean():
    stray = predict((1, BOX, 0.9), (3, (150, 150, 40, 40), 0.8))
    result = find_errors(make_set([[(1, BOX)]]), {1: stray})
    assert result.images[0].count(0.0) == (1, 1, 0)
    assert result.ap == 1.0


def test_a_class_that_is_missed_counts_until_its_objects_are_taken_away():
    result = find_errors(make_set([OBJECTS[:2]]), {1: predict((1, BOX, 0.9))})
    assert result.ap == 0.5
    assert {kind.name: kind.lost_ap for kind in result.kinds}["missed"] == 0.5


def draw(seed, images=30, classes=4):
    """Objects, and detections near them by chance, of the right class more often than not."""
    generator = np.random.default_rng(seed)
    objects, predictions = [], {}
    for number in range(1, images + 1):
        count, more = int(generator.integers(1, 6)), int(generator.integers(1, 12))
        corners, sizes = generator.uniform(0, 80, (count, 2)), generator.uniform(10, 40, (count, 2))
        labels = generator.integers(1, classes + 1, count)
        boxes = np.hstack([corners, sizes])
        objects.append(list(zip(labels.tolist(), boxes.tolist(), strict=True)))
        near = generator.integers(0, count, more)
        shifts = generator.normal(0, 1, (more, 4)) * generator.choice([1.0, 4.0, 15.0], (more, 1))
        moved = boxes[near] + shifts
        moved[:, 2:] = moved[:, 2:].clip(3)
        others = generator.integers(1, classes + 1, more)
        told = np.where(generator.random(more) < 0.7, labels[near], others)
        rows = zip(told.tolist(), moved.tolist(), generator.random(more).tolist(), strict=True)
        predictions[number] = list(rows)
    return objects, predictions


def ask_tide(objects, predictions):
    """The same from tidecv, in percent: AP, (errors, AP lost) of each kind, AP lost by all."""
    tidecv = pytest.importorskip("tidecv", reason="compared with tidecv where it is installed")
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for number, boxes in enumerate(objects, start=1):
        for label, box in boxes:
            truth.add_ground_truth(number, label, box)
        for label, box, score in predictions[number]:
            found.add_detection(number, label, score, box)
    run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
    counts, lost = run.count_errors(), run.fix_main_errors()
    names = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), KINDS, strict=True))
    kinds = {names[kind.short_name]: (counts[kind], lost[kind]) for kind in lost}
    return run.ap, kinds, tuple(run.fix_special_errors().values())


def compare(objects, predictions):
    part = make_set(objects, classes=4)
    result = find_errors(part, {n: predict(*rows) for n, rows in predictions.items()})
    kinds = {kind.name: (kind.count, 100 * kind.lost_ap) for kind in result.kinds}
    return 100 * result.ap, kinds, (100 * result.wrong_ap, 100 * result.missed_ap)


# `ask_tide(*draw(0))` with tidecv 1.0.1.
TIDES = (
    21.047896,
    {
        "classification": (26, 10.239764),
        "localization": (43, 14.985682),
        "both": (19, 1.217541),
        "duplicate": (33, 1.059081),
        "background": (18, 2.023947),
        "missed": (32, 11.875567),
    },
    (26.229331, 21.950922),
)


def assert_same(found, expected):
    for part in (0, 2):
        assert found[part] == pytest.approx(expected[part], abs=1e-6)
    for name, (count, lost) in expected[1].items():
        assert found[1][name] == (count, pytest.approx(lost, abs=1e-6)), name


def test_the_numbers_are_tides():
    assert_same(compare(*draw(0)), TIDES)


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_numbers_are_tides_on_other_sets(seed):
    assert_same(compare(*draw(seed)), ask_tide(*draw(seed)))


def fill(box, size=200):
    """Run lengths of a rectangle, xywh in whole pixels."""
    mask = np.zeros((size, size), np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    return coco_mask.encode(mask)


def draw_whole(seed):
    """`draw` with boxes of whole pixels inside the image."""
    objects, predictions = draw(seed)

    def whole(box):
        x, y, w, h = (max(round(v), 0) for v in box)
        return x, y, max(w, 1), max(h, 1)

    objects = [[(label, whole(box)) for label, box in boxes] for boxes in objects]
    return objects, {
        n: [(label, whole(box), score) for label, box, score in rows]
        for n, rows in predictions.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_masks_that_fill_their_boxes_have_the_errors_of_the_boxes(seed):
    objects, predictions = draw_whole(seed)
    outlined = [[(k, box, {"segmentation": fill(box)}) for k, box in boxes] for boxes in objects]
    found = {
        n: predict(*rows) | {"masks": [fill(box) for _, box, _ in rows]}
        for n, rows in predictions.items()
    }
    part = make_set(outlined, classes=4)
    boxes, masks = find_errors(part, found), find_errors(part, found, masks=True)
    assert masks.to_dict() == boxes.to_dict()
    for one, other in zip(masks.images, boxes.images, strict=True):
        np.testing.assert_array_equal(one.kinds, other.kinds)


def test_a_mask_off_its_object_is_an_error_that_its_box_is_not():
    half = {"segmentation": [[10, 10, 30, 10, 30, 50, 10, 50]]}  # of the box
    part = make_set([[(1, BOX, half), (2, (100, 100, 20, 20))]])
    found = predict((1, BOX, 0.9)) | {"masks": [fill((30, 10, 20, 40))]}
    assert find_errors(part, {1: found}).images[0].kinds.tolist() == [-1]
    (image,) = find_errors(part, {1: found}, masks=True).images
    assert [KINDS[kind] for kind in image.kinds] == ["background"]
    # Without an outline the second object is neither found nor missed.
    assert image.counted.tolist() == [True, False] and image.missed.tolist() == [True, False]
    with pytest.raises(ValueError, match="1 box and 0 masks"):
        find_errors(part, {1: predict((1, BOX, 0.9))}, masks=True)
