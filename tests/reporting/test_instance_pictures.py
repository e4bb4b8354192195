"""Drawn masks and keypoints: what can be measured in the pixels."""

import numpy as np
import pytest
import torch

from densenet_backbones.data.masks.run_lengths import encode_masks
from densenet_backbones.data.samples import Sample
from densenet_backbones.reporting.colors import get_class_color
from densenet_backbones.reporting.instance_pictures import (
    DrawnInstances,
    collect_annotations,
    draw_beside_ground_truth,
    draw_instances,
    select_confident,
)
from densenet_backbones.reporting.pictures import draw_detections

NAMES = ("ant", "bee")
SIDE = 240


def gray():
    return np.full((SIDE, SIDE, 3), 128, np.uint8)


def square(x1, y1, x2, y2):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def shown(*boxes, **more):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return DrawnInstances(boxes, np.ones(len(boxes), int), **more)


def tint(instance):
    """The gray of the image under the color of an instance."""
    return np.round(128 * 0.55 + 0.45 * np.array(get_class_color(instance + 1))).astype(np.uint8)


def test_boxes_alone_are_drawn_as_before():
    found = shown((20, 40, 90, 120), (100, 100, 200, 220), scores=np.array([0.9, 0.6]))
    expected = draw_detections(gray(), found.boxes, found.labels, NAMES, found.scores)
    assert (draw_instances(gray(), found, NAMES) == expected).all()


def test_masks_are_tinted_by_instance_and_outlined():
    image = gray()
    masks = [square(40, 60, 100, 160), square(140, 60, 200, 160)]
    found = shown((20, 40, 110, 180), (130, 40, 220, 180), masks=masks)
    result = draw_instances(image, found, NAMES)
    assert (image == 128).all()  # the image given is left alone
    for number, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        middle = result[rows.min() + 5 : rows.max() - 4, columns.min() + 5 : columns.max() - 4]
        assert (middle == tint(number)).all()
        edge = result[110, [columns.min(), columns.max()]]
        assert (edge == get_class_color(number + 1)).all()
    assert (tint(0) != tint(1)).any()  # one class, two instances
    assert (result[100:140, 112:128] == 128).all()  # nothing between them
    assert (result[60, 22:38] == 128).all()  # nor inside a box beside its mask


def test_codes_and_arrays_give_the_same_picture():
    mask = square(40, 60, 100, 160)
    codes = encode_masks(torch.from_numpy(mask)[None])
    as_array = draw_instances(gray(), shown((20, 40, 110, 180), masks=[mask]), NAMES)
    assert (draw_instances(gray(), shown((20, 40, 110, 180), masks=codes), NAMES) == as_array).all()


def test_the_surest_lies_on_top():
    masks = [square(60, 60, 160, 160)] * 2
    for scores, top in (((0.9, 0.6), 0), ((0.6, 0.9), 1)):
        found = shown((10, 10, 30, 30), (200, 200, 230, 230), masks=masks, scores=np.array(scores))
        result = draw_instances(gray(), found, NAMES)
        above = np.array(get_class_color(top + 1))
        below = tint(1 - top)
        assert (result[110, 110] == np.round(below * 0.55 + above * 0.45).astype(np.uint8)).all()


def test_masks_follow_the_size_of_the_picture():
    """Of an image shown at twice its size, the mask's edges are where they belong."""
    mask = square(40, 60, 100, 160)[: SIDE // 2 + 50, : SIDE // 2]
    found = shown((10, 10, 30, 30), masks=[mask[:120, :120]]).scale(2.0)
    result = draw_instances(gray(), found, NAMES)
    changed = (result != 128).any(axis=2)[70:]
    rows, columns = np.nonzero(changed)
    assert abs(rows.min() + 70 - 120) <= 2 and rows.max() + 70 == SIDE - 1
    assert abs(columns.min() - 80) <= 2 and abs(columns.max() - 199) <= 2
    assert found.boxes.tolist() == [[20, 20, 60, 60]]


def keypoints(*rows):
    return np.array(rows, float).reshape(1, -1, 3)


def test_keypoints_are_dots_joined_by_the_skeleton():
    points = keypoints((60, 60, 2), (180, 60, 2), (60, 180, 0), (180, 180, 1))
    found = shown((1, 1, 239, 239), keypoints=points)
    color = np.array(get_class_color(1))
    alone = draw_instances(gray(), found, NAMES)
    joined = draw_instances(gray(), found, NAMES, [(0, 1), (1, 2), (1, 3)])
    for result in (alone, joined):
        assert (result[60, 60] == color).all() and (result[60, 180] == color).all()
        assert (result[180, 60] == 128).all()  # not labelled
        assert (result[180, 180] == 255).all()  # hidden: hollow
    assert (alone[60, 120] == 128).all() and (alone[120, 180] == 128).all()
    for place in ((60, 120), (120, 180)):  # lines are smoothed, so nearly of the color
        assert np.abs(joined[place].astype(int) - color).max() < 40
    assert (joined[120, 120] == 128).all()  # no line to what is not there


def test_keypoints_far_outside_do_no_harm():
    points = keypoints((1e9, 60, 2), (-1e9, 1e9, 2))
    draw_instances(gray(), shown((1, 1, 90, 90), keypoints=points), NAMES, [(0, 1)])


def test_nothing_to_draw():
    empty = DrawnInstances(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), [], np.zeros((0, 3, 3)))
    assert (draw_instances(gray(), empty, NAMES, [(0, 1)]) == 128).all()
    hidden = shown((20, 40, 110, 180), masks=[np.zeros((SIDE, SIDE), bool)])
    plain = draw_instances(gray(), shown((20, 40, 110, 180)), NAMES)
    assert (draw_instances(gray(), hidden, NAMES) == plain).all()


def test_a_sample_and_a_prediction_become_pictures():
    mask = square(40, 60, 100, 160)
    points = torch.tensor([[[60.0, 60, 1], [80, 80, 0]]])
    boxes, labels = torch.tensor([[20.0, 40, 110, 180]]), torch.tensor([2])
    sample = Sample(
        torch.zeros(3, SIDE, SIDE, dtype=torch.uint8),
        *(boxes, labels, 1, 0),
        masks=torch.from_numpy(mask)[None],
        keypoints=points,
    )
    truth = collect_annotations(sample)
    assert truth.scores is None and truth.labels.tolist() == [2]
    assert (truth.masks[0] == mask).all() and truth.keypoints.tolist() == points.tolist()
    found = select_confident(
        {
            "boxes": boxes.repeat(2, 1),
            "labels": labels.repeat(2),
            "scores": torch.tensor([0.4, 0.6]),
            "masks": encode_masks(torch.from_numpy(np.stack([mask * 0, mask]))),
            "keypoints": points.repeat(2, 1, 1),
        }
    )
    assert found.scores.tolist() == [pytest.approx(0.6)]
    assert len(found.masks) == 1 and found.keypoints[..., 2].tolist() == [[2, 2]]
    sheet = draw_beside_ground_truth([gray()], [truth], [found], NAMES)
    half = sheet.shape[1] // 2
    left, right = sheet[:, :half], sheet[:, half:]
    assert (left == tint(0)).all(axis=2).sum() > 1000 < (right == tint(0)).all(axis=2).sum()
