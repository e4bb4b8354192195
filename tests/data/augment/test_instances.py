"""Flips, scales and large-scale jitter: boxes, masks and keypoints go where the pixels go."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instance_sets import OTHER_SIDE, images_with_objects, numbered

from densenet_backbones.data.augment.instances import (
    JITTER,
    SCALES,
    InstanceAugmentation,
    Placement,
    keep_visible,
)
from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.instances import Instances, unlabel_outside

FILL = (200.0, 100.0, 50.0)
KEYS = st.tuples(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))


def mirror(height, width, mirrored=True):
    size = height, width
    return Placement(size, size, (0, 0), size, mirrored)


@st.composite
def windows(draw, source):
    """A window of an image that is not scaled, some of it beyond the image."""
    top, left = draw(st.integers(0, source[0] - 1)), draw(st.integers(0, source[1] - 1))
    canvas = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    return Placement(source, source, (top, left), canvas, draw(st.booleans()))


def equal(first, second):
    for name in ("boxes", "labels", "masks", "keypoints"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@settings(max_examples=60)
@given(images_with_objects())
def test_mirroring_twice_changes_nothing(case):
    image, objects = case
    there = mirror(*image.shape[:2])
    np.testing.assert_array_equal(there.place_image(there.place_image(image, FILL), FILL), image)
    np.testing.assert_array_equal(
        there.place_masks(there.place_masks(objects.masks)), objects.masks
    )
    np.testing.assert_array_equal(
        there.place_boxes(there.place_boxes(objects.boxes)), objects.boxes
    )
    once = there.place_keypoints(objects.keypoints, OTHER_SIDE)
    np.testing.assert_array_equal(there.place_keypoints(once, OTHER_SIDE), objects.keypoints)


@settings(max_examples=60)
@given(images_with_objects())
def test_masks_and_boxes_are_mirrored_with_their_pixels(case):
    image, objects = case
    there = mirror(*image.shape[:2])
    pixels, masks = there.place_image(image, FILL), there.place_masks(objects.masks)
    for before, after in zip(objects.masks, masks, strict=True):
        found = np.sort(pixels[after > 0].astype(int) @ [1, 256, 0])
        np.testing.assert_array_equal(found, np.flatnonzero(before))
    np.testing.assert_array_equal(there.place_boxes(objects.boxes), masks_to_boxes(masks))


@settings(max_examples=60)
@given(images_with_objects(), st.data())
def test_keypoints_follow_their_pixels_into_a_window(case, data):
    image, objects = case
    height, width = image.shape[:2]
    window = data.draw(windows((height, width)))
    pixels, placed = (
        window.place_image(image, FILL),
        window.place_keypoints(objects.keypoints, OTHER_SIDE),
    )
    assert pixels.shape == (*window.canvas, 3)
    (top, left), (rows, columns) = window.corner, window.visible_size
    for before, after in zip(objects.keypoints, placed, strict=True):
        if window.mirrored:
            after = after[list(OTHER_SIDE)]  # back to the sides of before
        for (x, y, seen), (new_x, new_y, still) in zip(before, after, strict=True):
            if not seen or not (left <= x <= left + columns and top <= y <= top + rows):
                assert (new_x, new_y, still) == (0, 0, 0)
                continue
            assert still == seen
            if x % 1 == 0 or y % 1 == 0:  # between two pixels
                continue
            color = pixels[int(new_y), int(new_x)]
            np.testing.assert_array_equal(color, image[int(y), int(x)])


@settings(max_examples=60)
@given(images_with_objects(), st.data())
def test_a_window_cuts_masks_and_boxes_as_it_cuts_the_image(case, data):
    image, objects = case
    window = data.draw(windows(image.shape[:2]))
    pixels, masks = window.place_image(image, FILL), window.place_masks(objects.masks)
    (top, left), (rows, columns) = window.corner, window.visible_size
    part = slice(top, top + rows), slice(left, left + columns)
    border = np.ones(window.canvas, bool)
    border[:rows, :columns] = False
    step = -1 if window.mirrored else 1
    assert (pixels[:, ::step][border] == FILL).all()
    np.testing.assert_array_equal(pixels[:, ::step][:rows, :columns], image[part])
    for before, after in zip(objects.masks, masks, strict=True):
        np.testing.assert_array_equal(after[:, ::step][:rows, :columns], before[part])
        assert not after[:, ::step][border].any()
    # A box that is cut may be larger than what remains of the mask, never smaller.
    cut, tight = window.place_boxes(objects.boxes), masks_to_boxes(masks)
    there = (tight[:, 2:] > tight[:, :2]).all(1)
    assert (cut[there, :2] <= tight[there, :2]).all() and (cut[there, 2:] >= tight[there, 2:]).all()
    start = window.canvas[1] - columns if window.mirrored else 0
    assert (cut >= (start, 0, start, 0)).all()
    assert (cut <= (start + columns, rows) * 2).all()


@settings(max_examples=60)
@given(images_with_objects(), st.integers(1, 80), st.integers(1, 80), st.booleans())
def test_scaled_masks_stay_in_their_scaled_boxes(case, height, width, mirrored):
    image, objects = case
    there = Placement(image.shape[:2], (height, width), (0, 0), (height, width), mirrored)
    boxes, tight = (
        there.place_boxes(objects.boxes),
        masks_to_boxes(there.place_masks(objects.masks)),
    )
    found = (tight[:, 2:] > tight[:, :2]).all(1)  # thin ones may vanish
    # Half a pixel, and OpenCV's 16 bits of a factor of up to 40.
    assert (tight[found, :2] > boxes[found, :2] - 0.55).all()
    assert (tight[found, 2:] < boxes[found, 2:] + 0.55).all()


def test_doubling_doubles_everything():
    image, masks = numbered(3, 5), np.zeros((1, 3, 5), np.uint8)
    masks[0, 1:3, 2:4] = 1
    there = Placement((3, 5), (6, 10), (0, 0), (6, 10), False)
    expected = masks.repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(there.place_masks(masks), expected)
    np.testing.assert_array_equal(there.place_boxes(masks_to_boxes(masks)), [[4, 2, 8, 6]])
    keypoints = np.array([[[2.5, 1.5, 2], [0, 0, 0]]], np.float32)
    np.testing.assert_array_equal(there.place_keypoints(keypoints, (0, 1)), keypoints * [2, 2, 1])
    assert there.place_image(image, FILL).shape == (6, 10, 3)


def test_small_images_are_averages():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    there = Placement((64, 64), (16, 16), (0, 0), (16, 16), False)
    assert (there.place_image(stripes, FILL) == 100).all()


# The presets.


@settings(max_examples=60)
@given(images_with_objects(), KEYS, st.booleans())
def test_jitter_gives_one_size_and_boxes_tight_around_the_masks(case, key, with_masks):
    image, objects = case
    before = pickle.dumps((image, objects))
    objects = objects if with_masks else Instances(objects.boxes, objects.labels)
    jitter = InstanceAugmentation("lsj", size=(20, 28), other_side=OTHER_SIDE, fill=FILL)
    pixels, found = jitter(image, objects, key)
    assert pixels.shape == (20, 28, 3) and pixels.flags["C_CONTIGUOUS"]
    assert found.boxes.dtype == np.float32
    assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [28, 20] * 2).all()
    assert list(found.labels) == sorted(set(found.labels)) and set(found.labels) <= {1, 2, 3, 4}
    if with_masks:
        assert found.masks.shape == (len(found), 20, 28) and found.masks.dtype == np.uint8
        np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))
        again = unlabel_outside(found.keypoints, (20, 28))
        np.testing.assert_array_equal(again, found.keypoints)
        assert pickle.dumps((image, objects)) == before
    twice = pickle.loads(pickle.dumps(jitter))(image, objects, key)
    np.testing.assert_array_equal(twice[0], pixels)
    equal(twice[1], found)


def drawn(augmentation, source, count=400):
    return [augmentation.draw_placement(source, np.random.default_rng(n)) for n in range(count)]


def test_jitter_scales_from_a_tenth_to_twice_the_size_that_fits():
    placements = drawn(InstanceAugmentation("lsj", size=(600, 1000)), (300, 1000))
    scales = np.array([p.scaled[1] / 1000 for p in placements])
    assert JITTER == (0.1, 2.0)
    assert 0.1 <= scales.min() < 0.15 and 1.95 < scales.max() <= 2.0
    assert abs(scales.mean() - 1.05) < 0.06
    large = [p for p in placements if p.scaled[1] > 1100]
    places = np.array([p.corner[1] / (p.scaled[1] - 1000) for p in large])
    assert places.min() < 0.03 and places.max() > 0.97 and abs(places.mean() - 0.5) < 0.06
    assert all(p.corner == (0, 0) for p in placements if p.scaled[1] <= 1000)
    assert 0.43 < np.mean([p.mirrored for p in placements]) < 0.57


def test_scales_are_those_of_the_models_shortest_side():
    for shortest, expected in ((800, range(640, 801, 32)), (100, range(80, 101, 4))):
        scale = InstanceAugmentation("multiscale", shortest=shortest, longest=4000)
        for source in ((480, 640), (640, 480)):
            found = drawn(scale, source)
            assert {min(p.scaled) for p in found} == set(expected)
            ratios = [max(p.scaled) / min(p.scaled) for p in found]
            assert np.allclose(ratios, 4 / 3, atol=0.02)
            assert all(p.canvas == p.scaled and p.corner == (0, 0) for p in found)
    assert len(SCALES) == 6
    longest = drawn(InstanceAugmentation("multiscale"), (300, 1000))
    assert {p.scaled for p in longest} == {(400, 1333)}


def test_flips_happen_half_of_the_time_and_change_nothing_else():
    flip = InstanceAugmentation("flip", other_side=OTHER_SIDE)
    image = numbered(12, 9)
    masks = np.zeros((1, 12, 9), np.uint8)
    masks[0, 3, 2] = 1
    keypoints = np.zeros((1, 5, 3), np.float32)
    keypoints[0, 1] = 2.5, 3.5, 1
    # An object thinner than a pixel stays, and so does a box that is not tight.
    objects = Instances(np.array([[0.0, 1.0, 0.25, 9.0]], np.float32), np.ones(1), masks, keypoints)
    count = 0
    for n in range(200):
        pixels, found = flip(image, objects, (0, n))
        mirrored = np.array_equal(pixels, image[:, ::-1])
        assert mirrored or np.array_equal(pixels, image)
        count += mirrored
        assert found.boxes.tolist() == [[8.75, 1, 9, 9] if mirrored else [0, 1, 0.25, 9]]
        assert found.masks[0].nonzero() == (3, 6 if mirrored else 2)
        expected = (2, [6.5, 3.5, 1]) if mirrored else (1, [2.5, 3.5, 1])
        assert found.keypoints[0, expected[0]].tolist() == expected[1]
        assert not np.delete(found.keypoints[0], expected[0], 0).any()
    assert 75 < count < 125


@pytest.mark.parametrize("preset", ["flip", "multiscale", "lsj"])
def test_images_without_objects(preset):
    augment = InstanceAugmentation(preset, shortest=20, size=(16, 16), other_side=OTHER_SIDE)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    masks, keypoints = np.zeros((0, 12, 9), np.uint8), np.zeros((0, 5, 3), np.float32)
    pixels, found = augment(numbered(12, 9), Instances(*none, masks, keypoints), (1,))
    assert found.boxes.shape == (0, 4) and found.keypoints.shape == (0, 5, 3)
    assert found.masks.shape == (0, *pixels.shape[:2])


def test_objects_remain_where_enough_of_them_does():
    boxes = np.array([[0, 0, 2, 9], [0, 0, 3, 3], [4, 4, 4, 8]], np.float32)
    kept = keep_visible(Instances(boxes, np.arange(3)), 3)
    assert kept.labels.tolist() == [1]
    assert keep_visible(Instances(boxes, np.arange(3)), 0).labels.tolist() == [0, 1]
    masks = np.zeros((2, 5, 5), np.uint8)
    masks[1, 1:3, 4] = 1
    kept = keep_visible(Instances(boxes[:2], np.arange(2), masks), 1)
    assert kept.boxes.tolist() == [[4, 1, 5, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "ssd"}, r"must be one of \('flip', 'multiscale', 'lsj'\), got 'ssd'"),
        ({"shortest": 0}, "sides must be at least 1 pixel, got 0 and 1333"),
        ({"size": (0, 5)}, r"size must be \(H, W\), each at least 1, got \(0, 5\)"),
        ({"min_side": -1}, "min_side must be at least 0 pixels, got -1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InstanceAugmentation(**{"preset": "lsj", **options})


def test_wrong_images_and_keys_are_refused():
    flip, none = InstanceAugmentation("flip"), Instances(np.zeros((0, 4)), np.zeros(0))
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got \(4, 5\) uint8"):
        flip(np.zeros((4, 5), np.uint8), none, (0,))
    with pytest.raises(ValueError, match="key must hold whole numbers of at least 0"):
        flip(numbered(4, 5), none, (-1,))
