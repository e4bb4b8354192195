import os
import pickle
import random
import subprocess
import sys
from collections import Counter

import albumentations as A
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from densenet_backbones.data.augment.detection import INTERPOLATIONS, Augmentation, WholeBoxCrop
from densenet_backbones.data.augment.ssd import (
    SAMPLERS,
    PhotometricDistort,
    SSDCrop,
    ZoomOut,
    compute_iou,
    has_center_inside,
)

PRESETS = ("ssd", "light", "none")


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def some_boxes(count, height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.7, (count, 2))
    sides = rng.uniform(0.05, 0.3, (count, 2))
    boxes = np.concatenate((corners, corners + sides), 1) * [width, height, width, height]
    return boxes.astype(np.float32), np.arange(1, count + 1)


@st.composite
def images_with_boxes(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    share = st.floats(0, 1, width=32)
    boxes = []
    for x, y, w, h in draw(st.lists(st.tuples(share, share, share, share), max_size=5)):
        x1, y1 = x * width, y * height
        boxes.append((x1, y1, x1 + w * (width - x1), y1 + h * (height - y1)))
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return picture(height, width), boxes, np.arange(len(boxes)) + 7


def seeded(transform, seed):
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


def boxes_only(transform, image, boxes):
    """Run one transform as part of a pipeline; labels are the boxes' row numbers."""
    pipeline = A.Compose(
        [transform], bbox_params=A.BboxParams(format="pascal_voc", label_fields=["rows"])
    )
    result = pipeline(image=image, bboxes=boxes, rows=np.arange(len(boxes)))
    rows = np.asarray(result["rows"], int).reshape(-1)
    return result["image"], np.asarray(result["bboxes"]).reshape(-1, 4), rows


# The seven-sampler crop.


@settings(max_examples=150)
@given(images_with_boxes(), st.integers(0, len(SAMPLERS) - 1), st.integers(0, 2**32 - 1))
def test_a_sampled_patch_meets_its_samplers_demand(case, sampler, seed):
    image, boxes, _ = case
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float64)
    height, width = image.shape[:2]
    crop = seeded(SSDCrop(), seed)
    patch = crop.sample(sampler, boxes, height, width)
    if sampler == 0:
        assert patch == (0, 0, width, height)
        return
    if patch is None:
        return
    x1, y1, x2, y2 = patch
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    least = SAMPLERS[sampler]
    best = 0.0
    for bx1, by1, bx2, by2 in boxes:  # the overlap again, one box at a time
        shared = max(min(x2, bx2) - max(x1, bx1), 0) * max(min(y2, by2) - max(y1, by1), 0)
        union = (x2 - x1) * (y2 - y1) + (bx2 - bx1) * (by2 - by1) - shared
        best = max(best, shared / union)
    assert best >= least - 1e-9


def test_patches_have_the_papers_sizes_and_shapes():
    crop = seeded(SSDCrop(trials=4000), 0)
    patches = crop._draw_patches(1000, 2000)
    shares = (patches[:, 2:] - patches[:, :2]) / [2000, 1000]
    scale = np.sqrt(shares.prod(1))
    ratio = shares[:, 0] / shares[:, 1]
    assert 0.295 <= scale.min() < 0.31 and 0.98 < scale.max() <= 1
    assert 0.495 <= ratio.min() < 0.55 and 1.9 < ratio.max() <= 2.02
    assert abs(scale.mean() - 0.65) < 0.02  # uniform in 0.3..1
    room = 1 - shares[:, 0]
    place = patches[room > 0.1, 0] / 2000 / room[room > 0.1]
    assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.02 and place.max() > 0.98


@settings(max_examples=150)
@given(images_with_boxes(), st.integers(0, 2**32 - 1))
def test_the_crop_keeps_exactly_the_boxes_with_their_center_inside(case, seed):
    image, boxes, _ = case
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 0.5).all(1)]
    crop = SSDCrop()
    patches = []
    original = crop.get_params_dependent_on_data

    def recorded(params, data):
        found = original(params, data)
        patches.append(found["crop_coords"])
        return found

    crop.get_params_dependent_on_data = recorded
    pipeline = A.Compose(
        [crop], bbox_params=A.BboxParams(format="pascal_voc", label_fields=["rows"])
    )
    seeded(pipeline, seed)
    result = pipeline(image=image, bboxes=boxes, rows=np.arange(len(boxes)))
    (x1, y1, x2, y2) = patches[0]
    np.testing.assert_array_equal(result["image"], image[y1:y2, x1:x2])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    edges = np.concatenate((centers - [x1, y1], centers - [x2, y2]), 1)
    assume(not (np.abs(edges) < 1e-3).any())  # float32 may round a center across the border
    inside = (centers > [x1, y1]).all(1) & (centers < [x2, y2]).all(1)
    rows = np.asarray(result["rows"], int).reshape(-1)
    np.testing.assert_array_equal(rows, np.flatnonzero(inside))
    expected = np.clip(boxes[inside] - [x1, y1, x1, y1], 0, [x2 - x1, y2 - y1] * 2)
    np.testing.assert_allclose(result["bboxes"].reshape(-1, 4), expected, atol=1e-3)


def test_every_sampler_that_finds_a_patch_is_taken_equally_often():
    # So many trials that every sampler finds a patch for one large box.
    crop, boxes = SSDCrop(trials=2000), np.array([[8.0, 6.0, 56.0, 42.0]])
    asked = Counter()
    original = crop.sample

    def recorded(sampler, *rest):
        patch = original(sampler, *rest)
        asked[sampler if patch is not None else None] += 1
        return patch

    crop.sample = recorded
    seeded(crop, 0)
    for _ in range(1400):
        data = {"bboxes": boxes / [64, 48, 64, 48]}
        crop.get_params_dependent_on_data({"shape": (48, 64, 3)}, data)
    counts = [asked[s] for s in range(len(SAMPLERS))]
    assert sum(counts) == 1400
    assert min(counts) > 130 and max(counts) < 270, counts  # 200 expected, deviation 13


def test_the_crop_leaves_an_image_without_objects_whole():
    image, boxes, rows = boxes_only(SSDCrop(), picture(), np.zeros((0, 4)))
    assert image.shape == (48, 64, 3) and len(boxes) == len(rows) == 0


def test_centers_on_the_border_count_as_inside():
    boxes = np.array([[0, 0, 4, 4], [8, 8, 12, 12], [9, 8, 12, 12.0]])
    assert has_center_inside(boxes, (2, 2, 10, 10)).tolist() == [True, True, False]


def test_overlaps_known_values():
    patches = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = np.array([[0, 0, 10, 5], [5, 0, 15, 10], [20, 20, 30, 30.0]])
    np.testing.assert_allclose(compute_iou(patches, boxes), [[0.5, 1 / 3, 0], [0, 0, 1]])


# Zoom-out and colors.


def test_zoom_out_puts_the_image_on_a_canvas_of_the_mean():
    image = picture()
    boxes, _ = some_boxes(4)
    ratios = []
    for seed in range(60):
        zoom = A.Compose(
            [ZoomOut(fill=(10, 20, 30), p=1)],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["rows"]),
        )
        seeded(zoom, seed)
        result = zoom(image=image, bboxes=boxes, rows=np.arange(4))
        canvas = result["image"]
        ratios.append(canvas.shape[0] / 48)
        moved = result["bboxes"]
        shift = moved[0, :2] - boxes[0, :2]
        x, y = np.rint(shift).astype(int)
        np.testing.assert_allclose(moved, boxes + np.tile(shift, 2), atol=1e-3)
        np.testing.assert_allclose(shift, (x, y), atol=1e-3)
        np.testing.assert_array_equal(canvas[y : y + 48, x : x + 64], image)
        outside = np.ones(canvas.shape[:2], bool)
        outside[y : y + 48, x : x + 64] = False
        assert (canvas[outside] == (10, 20, 30)).all()
    assert 1 <= min(ratios) < 1.3 and 3.7 < max(ratios) <= 4


def test_colors_without_amounts_stay():
    still = PhotometricDistort(0.0, (1.0, 1.0), (1.0, 1.0), 0.0)
    image = picture()
    np.testing.assert_array_equal(seeded(still, 3)(image=image)["image"], image)


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"brightness": 20}, lambda x: x + 20),
        ({"brightness": -200}, lambda x: x - 200),
        ({"contrast": 1.5}, lambda x: x * 1.5),
        ({"brightness": 100, "contrast": 0.5}, lambda x: np.minimum(x + 100, 255) * 0.5),
    ],
)
def test_brightness_and_contrast_act_on_each_value(amounts, expected):
    image = picture()
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    got = PhotometricDistort().apply(image, {**neutral, **amounts}, False, np.arange(3))
    wanted = np.clip(np.rint(expected(image.astype(float))), 0, 255)
    np.testing.assert_array_equal(got, wanted)


def test_hue_turns_the_color_circle_and_saturation_grays():
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    distort, order = PhotometricDistort(), np.arange(3)
    blue = distort.apply(red, {**neutral, "hue": -60.0}, False, order)
    assert (blue == (0, 0, 200)).all()  # -60 steps of 2 degrees wrap around to blue
    gray = distort.apply(red, {**neutral, "saturation": 0.0}, True, order)
    assert (gray == 200).all()
    assert (distort.apply(red, neutral, False, np.array([2, 1, 0])) == (0, 0, 200)).all()


def test_each_color_part_acts_half_of_the_time():
    distort = seeded(PhotometricDistort(shuffle=0.5), 0)
    drawn = [distort.get_params() for _ in range(1000)]
    for part, neutral in (("brightness", 0), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        share = np.mean([d["amounts"][part] != neutral for d in drawn])
        assert abs(share - 0.5) < 0.06, part
    both = np.mean([d["amounts"]["hue"] != 0 and d["amounts"]["contrast"] != 1 for d in drawn])
    assert abs(both - 0.25) < 0.05


# The whole augmentation.


@settings(max_examples=120)
@given(images_with_boxes(), st.sampled_from(PRESETS), st.integers(0, 2**40))
def test_results_are_valid_for_any_image(case, preset, key):
    image, boxes, labels = case
    before = image.copy()
    out, new_boxes, new_labels = AUGMENTATIONS[preset](image, boxes, labels, (key, 0))
    np.testing.assert_array_equal(image, before)
    assert out.shape == (40, 56, 3) and out.dtype == np.uint8 and out.flags.c_contiguous
    assert new_boxes.dtype == np.float32 and new_labels.dtype == np.int64
    assert new_boxes.shape == (len(new_labels), 4)
    assert (new_boxes >= 0).all() and (new_boxes <= [56, 40, 56, 40]).all()
    assert (new_boxes[:, 2:] - new_boxes[:, :2] >= 1).all()
    assert set(new_labels) <= set(labels) and len(set(new_labels)) == len(new_labels)
    assert (np.diff(new_labels) > 0).all()  # the given order


AUGMENTATIONS = {preset: Augmentation(preset, (40, 56)) for preset in PRESETS}


@pytest.mark.parametrize("preset", ["ssd", "light"])
def test_boxes_and_labels_follow_their_objects(preset):
    # Each object is a plain rectangle of one channel on black: it must be found where its box is.
    image = np.zeros((96, 128, 3), np.uint8)
    boxes = np.array([[8, 8, 40, 40], [60, 20, 100, 44], [30, 56, 70, 88]], np.float32)
    for channel, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        image[y1:y2, x1:x2, channel] = 255
    augment = Augmentation(preset, (120, 120), fill=(0, 0, 0))
    # The colors must stay as they are for this.
    augment.pipeline.transforms.pop()
    seen = Counter()
    for key in range(60):
        out, new_boxes, new_labels = augment(image, boxes, np.array([0, 1, 2]), (key,))
        for box, label in zip(new_boxes, new_labels, strict=True):
            columns = np.flatnonzero((out[..., label] > 127).any(0))
            rows = np.flatnonzero((out[..., label] > 127).any(1))
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            np.testing.assert_allclose(box, found, atol=2.5)
            seen[int(label)] += 1
    assert min(seen[c] for c in range(3)) > 20


def test_none_only_resizes():
    image = picture(48, 64)
    boxes, labels = some_boxes(3)
    out, new_boxes, new_labels = Augmentation("none", (96, 96))(image, boxes, labels, (0,))
    expected = cv2.resize(image, (96, 96), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(new_boxes, boxes * [1.5, 2, 1.5, 2], rtol=1e-5)
    np.testing.assert_array_equal(new_labels, labels)


@settings(max_examples=100)
@given(images_with_boxes(), st.integers(0, 2**32 - 1))
def test_a_whole_box_crop_cuts_no_box(case, seed):
    image, boxes, _ = case
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 1e-3).all(1)]
    crop = seeded(WholeBoxCrop(p=1), seed)
    height, width = image.shape[:2]
    data = {"bboxes": boxes / np.float32([width, height, width, height])}
    patch = crop.get_params_dependent_on_data({"shape": image.shape}, data)["crop_coords"]
    x1, y1, x2, y2 = patch
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert x2 - x1 >= width / 2 and y2 - y1 >= height / 2
    assert (boxes[:, :2] >= np.array([x1, y1]) - 1e-4).all()
    assert (boxes[:, 2:] <= np.array([x2, y2]) + 1e-4).all()


def test_whole_box_crops_vary_with_and_without_boxes():
    for boxes in (np.zeros((0, 4)), np.array([[0.4, 0.4, 0.6, 0.6]])):
        crop = seeded(WholeBoxCrop(p=1), 0)
        patches = [
            crop.get_params_dependent_on_data({"shape": (100, 200, 3)}, {"bboxes": boxes})
            for _ in range(100)
        ]
        patches = np.array([p["crop_coords"] for p in patches])
        assert (patches.min(0) <= [3, 2, 130, 65]).all()
        assert (patches.max(0) >= [70, 35, 197, 98]).all()


def test_light_keeps_every_box():
    boxes, labels = some_boxes(5)
    augment = Augmentation("light", (64, 64))
    for key in range(40):
        _, new_boxes, new_labels = augment(picture(), boxes, labels, (key,))
        np.testing.assert_array_equal(new_labels, labels)
        assert len(new_boxes) == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_the_key_alone_decides(preset):
    image = picture()
    boxes, labels = some_boxes(4)
    augment = Augmentation(preset, (32, 32))
    first = [augment(image, boxes, labels, (1, 2, i)) for i in range(12)]
    again = Augmentation(preset, (32, 32))
    for i in reversed(range(12)):  # another order, another object
        for a, b in zip(first[i], again(image, boxes, labels, (1, 2, i)), strict=True):
            np.testing.assert_array_equal(a, b)
    different = len({a[0].tobytes() for a in first})
    assert different == (1 if preset == "none" else 12)


@pytest.mark.parametrize("other", [(1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2), (1, 2, 3, 0)])
def test_every_part_of_the_key_counts(other):
    augment, image = Augmentation("ssd", (32, 32)), picture()
    boxes, labels = some_boxes(4)
    a, b = augment(image, boxes, labels, (1, 2, 3)), augment(image, boxes, labels, other)
    assert not np.array_equal(a[0], b[0])


def test_choices_are_independent_of_each_other():
    # With one stream per transform from the same seed, zoom-out and flip would come together.
    augment = Augmentation("ssd", (24, 32))
    choices = np.zeros((2, 2))
    pipeline = augment.pipeline
    pipeline.save_applied_params = True
    for key in range(600):
        augment(picture(), *some_boxes(2), (key,))
        names = {type(t).__name__: t for t in pipeline.transforms}
        zoomed, flipped = names["ZoomOut"].params, names["HorizontalFlip"].params
        choices[int(bool(zoomed)), int(bool(flipped))] += 1
        for transform in pipeline.transforms:
            transform.params = {}
    assert abs(choices.sum(1)[1] / 600 - 0.5) < 0.08
    assert abs(choices.sum(0)[1] / 600 - 0.5) < 0.08
    assert abs(choices[1, 1] / 600 - 0.25) < 0.07, choices


def test_ssd_resizes_with_every_interpolation():
    one_of = Augmentation("ssd").pipeline.transforms[2]
    assert [t.interpolation for t in one_of.transforms] == list(INTERPOLATIONS)


def test_degenerate_and_foreign_boxes_are_dropped_or_cut():
    boxes = np.array(
        [
            [10, 10, 10, 20],  # no width
            [30, 20, 20, 30],  # turned over
            [-20, -20, 20, 20],  # reaches out
            [70, 10, 90, 20],  # outside
            [np.nan, 0, 5, 5],
            [0, 0, np.inf, 48],
            [5, 5, 25, 25],
        ]
    )
    out = Augmentation("none", (48, 64))(picture(), boxes, np.arange(7), (0,))
    np.testing.assert_array_equal(out[2], [2, 6])
    np.testing.assert_allclose(out[1], [[0, 0, 20, 20], [5, 5, 25, 25]], atol=1e-4)


def test_small_results_are_dropped_below_min_side():
    boxes, labels = np.array([[0, 0, 3.5, 40], [10, 10, 20, 20]]), np.array([1, 2])
    for min_side, kept in ((0, [1, 2]), (1, [2]), (3, [])):
        augment = Augmentation("none", (12, 16), min_side=min_side)
        np.testing.assert_array_equal(augment(picture(), boxes, labels, (0,))[2], kept)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_boxes(preset):
    augment = Augmentation(preset, (32, 48))
    for key in range(10):
        for empty in (np.zeros((0, 4), np.float32), np.array([])):
            image, boxes, labels = augment(picture(), empty, np.zeros(0, np.int64), (key,))
            assert image.shape == (32, 48, 3)
            assert boxes.shape == (0, 4) and boxes.dtype == np.float32
            assert labels.shape == (0,) and labels.dtype == np.int64


@pytest.mark.parametrize("preset", PRESETS)
def test_pickled_copies_do_the_same(preset):
    augment, image = Augmentation(preset, (32, 32)), picture()
    boxes, labels = some_boxes(4)
    copy = pickle.loads(pickle.dumps(augment))
    for a, b in zip(
        augment(image, boxes, labels, (5,)), copy(image, boxes, labels, (5,)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "strong"}, "must be one of"),
        ({"size": (0, 300)}, "at least 1"),
        ({"size": (300,)}, r"\(H, W\)"),
        ({"fill": (0, 0, 256)}, r"0\.\.255"),
        ({"min_side": -1}, "at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda: ZoomOut(max_ratio=0.5), "at least 1"),
        (lambda: SSDCrop(scale=(0, 1)), r"\(0, 1\]"),
        (lambda: SSDCrop(ratio=(2, 0.5)), "above 0"),
        (lambda: SSDCrop(trials=0), "at least 1"),
        (lambda: WholeBoxCrop(least=0), r"\(0, 1\]"),
    ],
)
def test_bad_transform_arguments_are_refused(transform, message):
    with pytest.raises(ValueError, match=message):
        transform()


def test_bad_inputs_are_refused():
    augment, image = Augmentation("none", (8, 8)), picture()
    boxes, labels = some_boxes(2)
    with pytest.raises(ValueError, match="uint8"):
        augment(image.astype(np.float32), boxes, labels, (0,))
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        augment(image[..., 0], boxes, labels, (0,))
    with pytest.raises(ValueError, match="as many labels"):
        augment(image, boxes, labels[:1], (0,))
    with pytest.raises(ValueError, match="at least 0"):
        augment(image, boxes, labels, (0, -1))


def test_albumentations_is_told_not_to_ask_the_package_index():
    # Checked when albumentations is looked for, which is before it reads the variable; the import
    # is then given up, as it takes seconds.
    code = """
import importlib, os, sys
asked = []
class Finder:
    def find_spec(self, name, *rest):
        if name == "albumentations":
            asked.append(os.environ.get("NO_ALBUMENTATIONS_UPDATE"))
            raise ImportError
sys.meta_path.insert(0, Finder())
for module in ("augment.ssd", "augment.detection", "augment.segmentation", "augment.seeding"):
    try:
        importlib.import_module(f"densenet_backbones.data.{module}")
    except ImportError:
        pass
assert asked == ["1"] * 4, asked
"""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("preset", ["ssd", "light", "none"])
def test_no_crop_of_an_image_of_the_source_size_is_smaller_than_the_result(preset):
    augmentation = Augmentation(preset, (30, 40))
    height, width = augmentation.source_size
    crops = [t for t in augmentation.pipeline.transforms if isinstance(t, SSDCrop | WholeBoxCrop)]
    assert len(crops) == (preset != "none")
    boxes = np.array([[0.5, 0.5, 0.51, 0.51]])
    for crop in crops:
        seeded(crop, 0)
        for _ in range(300):
            given_ = {"params": {"shape": (height, width)}, "data": {"bboxes": boxes}}
            x1, y1, x2, y2 = crop.get_params_dependent_on_data(**given_)["crop_coords"]
            # Whole pixels are rounded down.
            assert x2 - x1 >= 40 - 1 and y2 - y1 >= 30 - 1
