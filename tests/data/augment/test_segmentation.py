"""Augmentation of images with their masks."""

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_backbones.data.augment.segmentation import (
    CROPPING,
    ScaleCrop,
    SegmentationAugmentation,
)

PRESETS = ("light", "scale_crop", "fcdensenet_crop", "full_size", "none")
FILL = (123.0, 117.0, 104.0)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def labels(height, width, values=(0, 3, 9, 254), seed=1):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))


@settings(max_examples=150)
@given(st.sampled_from(PRESETS), sizes, sizes, st.integers(0, 2**32 - 1))
def test_mask_values_are_copied_never_mixed(preset, size, crop, seed):
    image, mask = picture(*size), labels(*size)
    before = image.copy(), mask.copy()
    augmented, moved = SegmentationAugmentation(preset, crop)(image, mask, (seed,))
    assert set(np.unique(moved)) <= {*np.unique(mask).tolist(), 255}
    assert augmented.dtype == moved.dtype == np.uint8 and augmented.flags.c_contiguous
    assert augmented.shape == (*moved.shape, 3)
    assert moved.shape == (crop if preset in CROPPING else size)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@settings(max_examples=60)
@given(st.sampled_from(["fcdensenet_crop", "full_size", "none"]), sizes, sizes, st.integers(0, 99))
def test_image_and_mask_move_together(preset, size, crop, seed):
    """The image repeats the mask; what is beside it has the mean color and is ignored."""
    mask = labels(*size)
    image = np.repeat(mask[..., None], 3, 2)
    augmented, moved = SegmentationAugmentation(preset, crop)(image, mask, (seed,))
    beside = moved == 255
    np.testing.assert_array_equal(augmented[~beside], np.repeat(moved[~beside][:, None], 3, 1))
    assert (augmented[beside] == FILL).all()
    expected = max(crop[0] * crop[1] - min(crop[0], size[0]) * min(crop[1], size[1]), 0)
    assert beside.sum() == (expected if preset == "fcdensenet_crop" else 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2.0))
def test_scaled_images_and_masks_stay_aligned(seed, scale):
    """A wide ramp of 16 steps: the image's interpolated value lies within a step of the mask's."""
    steps = np.repeat(np.arange(16, dtype=np.uint8), 8)
    mask = np.repeat(steps[None], 96, 0)
    image = np.repeat((mask * 10)[..., None], 3, 2)
    augmentation = SegmentationAugmentation("fcdensenet_crop", (64, 64))
    augmentation.pipeline.transforms[0] = ScaleCrop((64, 64), (scale, scale))
    augmented, moved = augmentation(image, mask, (seed,))
    inside = moved != 255
    apart = np.abs(augmented[..., 0].astype(int) - moved.astype(int) * 10)[inside]
    assert apart.max() <= 10 and (apart == 0).mean() > 0.5
    # No shift to one side: differences come in both directions alike.
    assert abs((augmented[..., 0].astype(int) - moved.astype(int) * 10)[inside].mean()) < 0.8


def test_scales_and_places_cover_their_ranges():
    crop = SegmentationAugmentation("scale_crop", (100, 100)).pipeline.transforms[0]
    image = picture(200, 400)
    seen = []
    original = crop.get_params_dependent_on_data

    def recorded(params, data):
        seen.append(original(params, data)["axes"])
        return {"axes": seen[-1]}

    crop.get_params_dependent_on_data = recorded
    augmentation = SegmentationAugmentation("scale_crop", (100, 100))
    augmentation.pipeline.transforms[0] = crop
    for n in range(400):
        augmentation(image, labels(200, 400), (n,))
    taken = np.array([[axis[:3] for axis in axes] for axes in seen])  # (400, 2, 3)
    scale = taken[:, 0, 2] / taken[:, 0, 1]
    assert 0.495 <= scale.min() < 0.51 and 1.9 < scale.max() <= 2.01
    assert abs(scale.mean() - 1.25) < 0.06
    share = taken[:, 1, 0] / (400 - taken[:, 1, 1])
    assert share.min() < 0.02 and share.max() > 0.98 and abs(share.mean() - 0.5) < 0.05


def test_small_images_lie_in_the_middle():
    mask = labels(20, 30)
    _, moved = SegmentationAugmentation("fcdensenet_crop", (40, 50))(picture(20, 30), mask, (3,))
    rows, columns = np.nonzero(moved != 255)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 10, 39)
    assert sorted(moved[moved != 255]) == sorted(mask.ravel())


def test_presets_do_what_they_say():
    image = cv2.GaussianBlur(picture(60, 80), (0, 0), 3)
    mask = labels(60, 80)
    flipped = 0
    for n in range(60):
        augmented, moved = SegmentationAugmentation("full_size")(image, mask, (n,))
        flip = not np.array_equal(augmented, image)
        flipped += flip
        np.testing.assert_array_equal(augmented, image[:, ::-1] if flip else image)
        np.testing.assert_array_equal(moved, mask[:, ::-1] if flip else mask)
    assert 18 < flipped < 42
    same, kept = SegmentationAugmentation("none")(image, mask, (0,))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(kept, mask)
    for preset, least in (("light", 2), ("scale_crop", 6)):
        changes = [
            np.abs(
                SegmentationAugmentation(preset, (60, 80))(image, mask, (n,))[0].mean((0, 1))
                - image.mean((0, 1))
            ).mean()
            for n in range(30)
        ]
        assert np.mean(changes) > least


@pytest.mark.parametrize("preset", PRESETS)
def test_the_key_decides_everything(preset):
    image, mask = picture(60, 80), labels(60, 80)
    first, other = (SegmentationAugmentation(preset, (32, 32)) for _ in range(2))
    expected = [first(image, mask, (0, 1, n)) for n in range(8)]
    for n in reversed(range(8)):
        for one, same in zip(other(image, mask, (0, 1, n)), expected[n], strict=True):
            np.testing.assert_array_equal(one, same)
    travelled = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(travelled(image, mask, (0, 1, 3))[0], expected[3][0])
    if preset != "none":
        assert len({picture.tobytes() for picture, _ in expected}) > 1


@settings(max_examples=40)
@given(st.sampled_from(PRESETS), sizes, st.integers(1, 90), st.integers(0, 99))
def test_channels_move_as_one_mask_does(preset, size, count, seed):
    mask = labels(*size, values=range(count))
    planes = np.stack([(mask == c).astype(np.uint8) for c in range(count)])
    augmentation = SegmentationAugmentation(preset, (16, 24))
    image, moved = augmentation(picture(*size), planes, (seed,))
    same, single = augmentation(picture(*size), mask, (seed,))
    np.testing.assert_array_equal(image, same)
    beside = single == 255
    for c in range(count):
        np.testing.assert_array_equal(moved[c], np.where(beside, 255, single == c))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "strong"}, "augmentation must be one of .* got 'strong'"),
        ({"size": (0, 3)}, r"size must be \(H, W\), each at least 1, got \(0, 3\)"),
        ({"fill": (0, 0, 256)}, "fill must be three numbers in 0..255"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationAugmentation(**arguments)
    with pytest.raises(ValueError, match="scale must be rising bounds above 0"):
        ScaleCrop((3, 3), (0.0, 1.0))


@pytest.mark.parametrize(
    ("image", "mask", "key", "message"),
    [
        (picture(3, 4)[..., 0], labels(3, 4), (0,), r"image must be \(H, W, 3\) uint8"),
        (picture(3, 4), labels(3, 4).astype(int), (0,), r"mask must be \(H, W\) or \(K, H, W\)"),
        (picture(3, 4), labels(4, 3), (0,), r"mask \(4, 3\) and image \(3, 4, 3\) differ in size"),
        (picture(3, 4), labels(3, 4), (-1,), "key must hold whole numbers of at least 0"),
    ],
)
def test_other_arrays_are_refused(image, mask, key, message):
    with pytest.raises(ValueError, match=message):
        SegmentationAugmentation("light", (8, 8))(image, mask, key)
