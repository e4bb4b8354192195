"""Ground truth of boxes, masks and keypoints as COCO's evaluation is given it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.masks.run_lengths import encode_masks
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.metrics.coco_evaluation import evaluate_coco
from densenet_backbones.metrics.coco_truth import COCO_SIGMAS, choose_sigmas, complete_truth

POINTS = Categories(("dot",), (5,), ("left_end", "right_end"), ((0, 1),))


def test_constants_of_keypoints():
    from pycocotools.cocoeval import Params

    assert choose_sigmas(17) is None
    assert choose_sigmas(3) == [0.067] * 3
    published = Params("keypoints").kpt_oks_sigmas
    assert np.mean(published) == pytest.approx(0.067, abs=5e-4)
    assert list(COCO_SIGMAS.values()) == pytest.approx(published.tolist(), rel=1e-12)


def test_cocos_keypoints_in_another_order_keep_their_constants():
    names = tuple(sorted(COCO_SIGMAS))
    assert choose_sigmas(17, Categories(("person",), (1,), names)) == [
        COCO_SIGMAS[name] for name in names
    ]
    # The model's order is COCO's, the file's is not.
    positions = tuple(names.index(name) for name in COCO_SIGMAS)
    moved = Categories(("person",), (1,), tuple(COCO_SIGMAS), (), positions)
    assert choose_sigmas(17, moved) == [COCO_SIGMAS[name] for name in names]
    others = tuple(f"point {n}" for n in range(17))
    assert choose_sigmas(17, Categories(("person",), (1,), others)) is None


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
    truth = complete_truth(part, ("boxes", "masks"))
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
    truth = complete_truth(part, ("boxes", "keypoints"), 2)
    moved = [v + 20 * (n % 3 == 0) for n, v in enumerate(points)]
    results = [found(0, keypoints=points), found(20, keypoints=moved)]
    sigmas = choose_sigmas(2)
    both = evaluate_coco(truth, results, "keypoints", keypoint_sigmas=sigmas)
    assert both.numbers["AP"] == pytest.approx(1.0) and both.classes[0].objects == 1
    assert evaluate_coco(truth, results, "bbox").classes[0].objects == 2


def test_a_set_without_any_is_refused():
    part = one_image((0, {}))
    for what, key in (("masks", "segmentation"), ("keypoints", "keypoints")):
        with pytest.raises(ValueError, match=f"dots/val: no object has a '{key}', so {what}"):
            complete_truth(part, ("boxes", what), 2)
    assert complete_truth(part, ("boxes",)) == part.ground_truth()
    assert complete_truth(one_image(), ("boxes", "masks"))["annotations"] == []
