"""Objects pasted from one image on another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instance_sets import images_with_objects

from densenet_backbones.data.augment.copy_paste import paste_objects
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.instances import Instances

SIZE = (18, 22)


@st.composite
def jittered(draw):
    image, objects = draw(images_with_objects())
    jitter = InstanceAugmentation("lsj", size=SIZE, other_side=(0, 2, 1, 4, 3))
    return jitter(image, objects, (draw(st.integers(0, 10**6)),))


@settings(max_examples=80)
@given(jittered(), jittered(), st.integers(0, 10**6))
def test_pasted_pixels_are_the_other_images_and_masks_know_it(first, second, seed):
    image, objects = first
    other_image, other = second
    other.labels = other.labels + 100
    pixels, found = paste_objects(image, objects, other_image, other, np.random.default_rng(seed))
    pasted = found.labels > 100
    cover = found.masks[pasted].any(0)
    np.testing.assert_array_equal(pixels[cover], other_image[cover])
    np.testing.assert_array_equal(pixels[~cover], image[~cover])
    assert not (found.masks[~pasted] & cover).any()
    np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    chosen = np.isin(other.labels, found.labels)
    np.testing.assert_array_equal(found.masks[pasted], other.masks[chosen])
    np.testing.assert_array_equal(found.keypoints[pasted], other.keypoints[chosen])
    left = objects.masks * ~cover
    seen = left.any((1, 2))
    np.testing.assert_array_equal(found.labels[~pasted], objects.labels[seen])
    np.testing.assert_array_equal(found.masks[~pasted], left[seen])
    points, before = found.keypoints[~pasted], objects.keypoints[seen]
    np.testing.assert_array_equal(points[..., :2], before[..., :2])
    under = cover[
        np.minimum(before[..., 1].astype(int), SIZE[0] - 1),
        np.minimum(before[..., 0].astype(int), SIZE[1] - 1),
    ]
    expected = np.where(under & (before[..., 2] == 2), 1, before[..., 2])
    np.testing.assert_array_equal(points[..., 2], expected)


def one_object(label, columns):
    masks = np.zeros((1, 4, 6), np.uint8)
    masks[:, 1:3, columns] = 1
    return Instances(masks_to_boxes(masks), np.array([label]), masks)


def pasted(objects, other, count=200):
    white = np.full((4, 6, 3), 255, np.uint8)
    for n in range(count):
        yield paste_objects(white // 2, objects, white, other, np.random.default_rng(n))


def test_an_object_is_pasted_half_of_the_time():
    results = list(pasted(one_object(1, slice(0, 2)), one_object(2, slice(4, 6))))
    counts = [len(found) for _, found in results]
    assert set(counts) == {1, 2} and 80 < sum(c == 2 for c in counts) < 120
    for image, found in results:
        assert (image == 255).sum() == (12 if len(found) == 2 else 0)
        assert found.keypoints is None


def test_what_is_covered_is_cut_and_what_is_gone_is_left_out():
    for _, found in pasted(one_object(1, slice(1, 4)), one_object(2, slice(3, 6))):
        if 2 in found.labels:
            assert found.boxes.tolist() == [[1, 1, 3, 3], [3, 1, 6, 3]]
    for _, found in pasted(one_object(1, slice(1, 4)), one_object(2, slice(0, 6))):
        assert found.labels.tolist() in ([1], [2])


def test_nothing_is_pasted_from_an_image_without_objects():
    objects = one_object(1, slice(1, 4))
    for image, found in pasted(objects, objects.select(np.zeros(1, bool)), 3):
        assert (image == 127).all() and found is objects


def test_images_of_two_sizes_are_refused():
    objects = one_object(1, slice(1, 4))
    with pytest.raises(ValueError, match=r"images must have one shape, got \(4, 6, 3\) and \(5, "):
        paste_objects(
            np.zeros((4, 6, 3)), objects, np.zeros((5, 6, 3)), objects, np.random.default_rng(0)
        )
