"""What a detector learns beside boxes, and what its evaluation is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from densenet_backbones.data.run_lengths import encode_masks
from densenet_backbones.data.samples import Categories, DetectionSet, ImageRecord
from densenet_backbones.metrics.coco_evaluation import evaluate_coco
from densenet_backbones.metrics.learned import (
    evaluated_truth,
    headline_of,
    keypoint_sigmas,
    learned_by,
    learned_by_name,
    with_keypoints,
)

POINTS = Categories(("dot",), (5,), ("left_end", "right_end"), ((0, 1),))


class Heads(nn.Module):
    """torchvision's RoI heads answer these two questions."""

    def __init__(self, masks, keypoints):
        super().__init__()
        self.has_mask, self.has_keypoint = lambda: masks, lambda: keypoints


def test_ours_say_it_and_torchvisions_show_it():
    model = nn.Module()
    assert learned_by(model) == ("boxes",)
    model.roi_heads = Heads(False, False)
    assert learned_by(model) == ("boxes",)
    model.roi_heads = Heads(True, False)
    assert learned_by(model) == ("boxes", "masks")
    model.roi_heads = Heads(False, True)
    assert learned_by(model) == ("boxes", "keypoints")
    model.target_types = ["boxes"]
    assert learned_by(model) == ("boxes",)


def test_a_name_tells_it_before_anything_is_built():
    assert learned_by_name("dsod300") == learned_by_name("fasterrcnn_fpn") == ("boxes",)
    assert learned_by_name("maskrcnn_densenet121_fpn_v2") == ("boxes", "masks")
    assert learned_by_name("KeypointRCNN_resnet50_fpn") == ("boxes", "keypoints")


def test_the_last_thing_learned_is_shown_last():
    assert headline_of(("boxes",)) == ("AP",)
    assert headline_of(("boxes", "masks")) == ("AP", "mask_AP")
    assert headline_of(("boxes", "keypoints")) == ("AP", "keypoint_AP")


def test_the_number_of_keypoints_is_the_datas():
    assert with_keypoints("keypointrcnn_fpn", {"a": 1}, POINTS) == {"a": 1, "num_keypoints": 2}
    assert with_keypoints("maskrcnn_fpn", {"a": 1}, POINTS) == {"a": 1}
    assert with_keypoints("keypointrcnn_fpn", {}, Categories(("x",), (1,))) == {}
    with pytest.raises(ValueError, match=r"num_keypoints is 17, .* has 2 keypoints \(left_end, "):
        with_keypoints("keypointrcnn_fpn", {"num_keypoints": 17}, POINTS)


def test_constants_of_keypoints():
    from pycocotools.cocoeval import Params

    assert keypoint_sigmas(17) is None
    assert keypoint_sigmas(3) == [0.067] * 3
    assert np.mean(Params("keypoints").kpt_oks_sigmas) == pytest.approx(0.067, abs=5e-4)


def square(x):
    mask = np.zeros((1, 40, 40), np.uint8)
    mask[0, 10:30, x : x + 10] = 1

    return encode_masks(torch.from_numpy(mask))[0]


def one_image(*objects, categories=POINTS):
    annotations = tuple(
        {
            "id": n,
            "image_id": 3,
            "category_id": 5,
            "bbox": [x, 10.0, 10.0, 20.0],
            "area": 200.0,
            "iscrowd": 0,
            **more,
        }
        for n, (x, more) in enumerate(objects, start=1)
    )
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    record = ImageRecord(3, Path("x.png"), 40, 40, *nothing, annotations)
    return DetectionSet("dots/val", (record,), categories)


def found(x, score=0.9, **more):
    row = {"image_id": 3, "category_id": 5, "score": score, "bbox": [x, 10.0, 10.0, 20.0]}
    return {**row, **more}


def test_an_object_without_a_mask_counts_neither_way():
    part = one_image((0, {"segmentation": square(0)}), (20, {}), (30, {"segmentation": []}))
    truth = evaluated_truth(part, ("boxes", "masks"))
    results = [found(x, segmentation=square(x)) for x in (0, 20, 30)]
    masks = evaluate_coco(truth, results, "segm")
    assert masks.numbers["AP"] == pytest.approx(1.0) and masks.classes[0].objects == 1
    boxes = evaluate_coco(truth, results, "bbox")
    assert boxes.numbers["AP"] == pytest.approx(1.0) and boxes.classes[0].objects == 3
    missed = evaluate_coco(truth, results[1:], "segm")
    assert missed.numbers["AP"] == 0
    wrong = [found(0, 0.5, segmentation=square(0)), found(8, 0.9, segmentation=square(8))]
    assert evaluate_coco(truth, wrong, "segm").numbers["AP"] < 0.6


def test_an_object_without_keypoints_counts_neither_way():
    points = [2.0, 12, 2, 8, 28, 2]
    part = one_image((0, {"keypoints": points, "num_keypoints": 2}), (20, {}))
    truth = evaluated_truth(part, ("boxes", "keypoints"), 2)
    moved = [v + 20 * (n % 3 == 0) for n, v in enumerate(points)]
    results = [found(0, keypoints=points), found(20, keypoints=moved)]
    sigmas = keypoint_sigmas(2)
    both = evaluate_coco(truth, results, "keypoints", keypoint_sigmas=sigmas)
    assert both.numbers["AP"] == pytest.approx(1.0) and both.classes[0].objects == 1
    assert evaluate_coco(truth, results, "bbox").classes[0].objects == 2


def test_a_set_without_any_is_refused():
    part = one_image((0, {}))
    for what, key in (("masks", "segmentation"), ("keypoints", "keypoints")):
        with pytest.raises(ValueError, match=f"dots/val: no object has a '{key}', so {what}"):
            evaluated_truth(part, ("boxes", what), 2)
    assert evaluated_truth(part, ("boxes",)) == part.ground_truth()
    assert evaluated_truth(one_image(), ("boxes", "masks"))["annotations"] == []
