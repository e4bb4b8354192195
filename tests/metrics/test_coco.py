"""COCO's numbers: the published ones, pycocotools' own, and the same over processes."""

import contextlib
import copy
import io
import json
import math
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked_processes import start_beside
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densenet_backbones.data.categories import Categories
from densenet_backbones.metrics.coco import CocoMetric, format_coco_results
from densenet_backbones.metrics.coco_evaluation import evaluate_coco
from densenet_backbones.reporting.tables import format_table

BACKENDS = ("pycocotools", "faster_coco_eval")
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
CATEGORIES = Categories(("ant", "bee", "cat"), (3, 7, 90))  # sparse ids, as COCO's
SIDE = 200

# Printed by cocoapi for its own fake results (results/val2014_fake_eval_res.txt), with the six
# digits that pycocotools gives.
PUBLISHED = {
    "bbox": ".504581 .696973 .572982 .585626 .519400 .501398 "
    ".386813 .593680 .595353 .639811 .566421 .564291",
    "segm": ".319545 .562288 .298927 .387374 .310183 .326934 "
    ".268230 .415449 .416839 .469450 .376759 .381472",
}


def scene(seed, images=6, iou_type="bbox"):
    """Random ground truth and predictions with crowds, equal scores, misses and empty images."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for image_id in range(10, 10 + images):
        boxes, labels = [], []
        for _ in range(rng.integers(0, 6)):
            x, y = rng.integers(0, 150, 2)
            w, h = rng.integers(4, 50, 2) * rng.choice([1, 1, 3])
            box = np.clip([x, y, x + w, y + h], 0, SIDE - 1).astype(float)
            label = int(rng.integers(1, 4))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES.id_of_label(label),
                    "bbox": [*box[:2], *(box[2:] - box[:2])],
                    "area": float(np.prod(box[2:] - box[:2]) * rng.uniform(0.4, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": mask_of(box),
                    **keypoints_of(box, rng),
                }
            )
            for _ in range(rng.choice([0, 1, 1, 2])):
                moved = np.clip(box + rng.integers(-8, 9, 4), 0, SIDE - 1)
                boxes.append([*moved[:2], *np.maximum(moved[2:], moved[:2] + 1)])
                labels.append(label if rng.random() < 0.8 else int(rng.integers(1, 4)))
        n = len(boxes)
        prediction = {
            "image_id": image_id,
            "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
            "scores": torch.tensor(rng.integers(1, 6, n) / 8).float(),  # many are equal
            "labels": torch.tensor(labels).long(),
        }
        if iou_type == "segm":
            prediction["masks"] = [mask_of(np.array(box)) for box in boxes]
        if iou_type == "keypoints":
            points = [keypoints_of(np.array(box), rng)["keypoints"] for box in boxes]
            prediction["keypoints"] = torch.tensor(points, dtype=torch.float64).reshape(n, 17, 3)
        predictions.append(prediction)
    truth = {
        "images": [{"id": p["image_id"], "height": SIDE, "width": SIDE} for p in predictions],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": n} for i, n in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)
        ],
    }
    return truth, predictions


def mask_of(box):
    canvas = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x1, y1, x2, y2 = box.astype(int)
    canvas[y1:y2, x1:x2] = 1
    code = rle.encode(canvas)
    return {"size": [SIDE, SIDE], "counts": code["counts"].decode()}


def keypoints_of(box, rng):
    points = np.ones((17, 3))
    points[:, :2] = box[:2] + np.linspace(0, 1, 17)[:, None] * (box[2:] - box[:2])
    points[:, :2] += rng.normal(size=(17, 2)) * 2
    points[:, 2] = rng.integers(0, 3, 17)
    visible = int((points[:, 2] > 0).sum())
    return {"keypoints": points.flatten().tolist(), "num_keypoints": visible}


def reference(truth, results, iou_type):
    """pycocotools as its demo uses it; -1 where there is nothing to find."""
    keys = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
    rows = [
        {k: r[k] for k in ("image_id", "category_id", "score", keys[iou_type])} for r in results
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def minus_one(numbers):
    return [-1.0 if math.isnan(v) else v for v in numbers.values()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_published_table_to_every_digit(shared_data, iou_type, backend):
    truth = json.loads(
        (shared_data / "cocoapi_val2014_100/cocoapi/instances_val2014_100.json").read_text()
    )
    folder = shared_data / "cocoapi_val2014_100_published" / "results"
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    numbers = evaluate_coco(truth, results, iou_type, backend=backend).numbers
    assert list(numbers) == NAMES
    printed = " ".join(f"{v:.6f}".removeprefix("0") for v in numbers.values())
    assert printed == PUBLISHED[iou_type]


def test_the_published_table_through_the_metric(shared_data):
    folder = shared_data / "cocoapi_val2014_100/cocoapi"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    categories = Categories(
        tuple(c["name"] for c in truth["categories"]), tuple(c["id"] for c in truth["categories"])
    )
    by_image = {image["id"]: [] for image in truth["images"]}
    for result in results:
        by_image[result["image_id"]].append(result)
    metric = CocoMetric(truth, categories)
    for image_id, rows in by_image.items():
        boxes = torch.tensor([r["bbox"] for r in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([r["score"] for r in rows], dtype=torch.float64)
        labels = torch.tensor([categories.label_of_id(r["category_id"]) for r in rows]).long()
        metric.update([{"image_id": image_id, "boxes": boxes, "scores": scores, "labels": labels}])
    printed = " ".join(f"{v:.6f}".removeprefix("0") for v in metric.compute().values())
    assert printed == PUBLISHED["bbox"]


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["bbox", "segm", "keypoints"]), st.randoms())
def test_the_metric_equals_pycocotools(seed, iou_type, random):
    truth, predictions = scene(seed, iou_type=iou_type)
    results = format_coco_results(predictions, CATEGORIES)
    if not results:
        return  # pycocotools itself refuses an empty list
    expected = reference(truth, results, iou_type)
    random.shuffle(predictions)  # the order of images must not matter
    cut = random.randint(0, len(predictions))
    for backend in BACKENDS:
        metric = CocoMetric(truth, CATEGORIES, iou_type, backend)
        metric.update(predictions[:cut])
        metric.update(predictions[cut:])
        metric.update(predictions[:2])  # a padding sampler's repeats
        got = minus_one(metric.compute())
        if backend == "pycocotools":
            assert got == expected
        assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("further", ["segm", "keypoints"])
def test_several_types_are_evaluated_on_the_same_detections(further):
    prefix = {"segm": "mask_", "keypoints": "keypoint_"}[further]
    truth, predictions = scene(7, iou_type=further)
    metric = CocoMetric(truth, CATEGORIES, ("bbox", further))
    metric.update(predictions)
    got = metric.compute()
    expected = {}
    for kind, start in (("bbox", ""), (further, prefix)):
        alone = CocoMetric(truth, CATEGORIES, kind)
        alone.update(predictions)
        numbers = alone.compute()
        expected |= {f"{start}{name}": value for name, value in numbers.items()}
        assert same(metric.evaluations[kind].numbers, numbers)
    assert list(got) == list(expected) and same(got, expected)
    assert 0 < got[f"{prefix}AP"] < 1 and 0 < got["AP"] < 1
    assert metric.evaluation is metric.evaluations["bbox"]
    one = metric.results[0]
    assert {"bbox", "segmentation" if further == "segm" else "keypoints"} <= one.keys()


def test_a_metric_of_nothing_is_refused():
    with pytest.raises(ValueError, match="iou_type names nothing to evaluate"):
        CocoMetric(scene(0)[0], CATEGORIES, ())


def test_a_repeated_image_counts_once_with_its_first_predictions():
    truth, predictions = scene(3)
    metric = CocoMetric(truth, CATEGORIES)
    metric.update(predictions)
    alone = metric.compute()
    worse = [{**p, "boxes": p["boxes"] + 30} for p in predictions]
    metric.update(worse)
    assert same(metric.compute(), alone)
    assert metric.images == [p["image_id"] for p in predictions]
    metric.reset()
    metric.update(worse)
    assert metric.compute()["AP"] < alone["AP"]


def test_the_images_seen_are_the_images_evaluated():
    truth, predictions = scene(5, images=8)
    part = predictions[:3]
    blank = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    metric = CocoMetric(truth, CATEGORIES)
    metric.update(part)
    ids = {p["image_id"] for p in part}
    cut = {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in ids],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
    }
    assert minus_one(metric.compute()) == reference(cut, metric.results, "bbox")
    seen = metric.compute()["AR100"]
    assert metric.evaluation.images == 3
    # An image that was seen with nothing found in it counts: its objects are missed.
    metric.update([{**blank, "image_id": p["image_id"]} for p in predictions[3:]])
    assert metric.compute()["AR100"] < seen
    assert metric.evaluation.images == 8


@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_without_images_or_detections_nothing_breaks(iou_type):
    truth, predictions = scene(5, iou_type=iou_type)
    metric = CocoMetric(truth, CATEGORIES, iou_type)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert all(math.isnan(v) for v in metric.compute().values())
    nothing = [{k: v if k == "image_id" else v[:0] for k, v in p.items()} for p in predictions]
    metric = CocoMetric(truth, CATEGORIES, iou_type)
    metric.update(nothing)
    assert metric.compute()["AP"] == 0 and metric.results == []
    for backend in BACKENDS:
        none = evaluate_coco(truth, [], backend=backend)
        assert none.numbers["AP"] == none.numbers["AR100"] == 0
        objectless = evaluate_coco({**truth, "annotations": []}, [], backend=backend)
        assert math.isnan(objectless.numbers["AP"])


def test_inputs_stay_as_they_were_and_nothing_is_printed(capsys):
    truth, predictions = scene(8)
    results = format_coco_results(predictions, CATEGORIES)
    before = copy.deepcopy((truth, results))
    for backend in BACKENDS:
        evaluate_coco(truth, results, backend=backend)
    assert (truth, results) == before
    assert capsys.readouterr().out == ""
    json.dumps(results)


def test_annotation_ids_do_not_matter():
    truth, predictions = scene(8)
    results = format_coco_results(predictions, CATEGORIES)
    expected = evaluate_coco(truth, results).numbers
    for annotation in truth["annotations"]:
        annotation["id"] = 0  # pycocotools alone would keep one, and never count it as found
    assert same(evaluate_coco(truth, results).numbers, expected)


def test_classes_and_curves():
    truth, predictions = scene(8, images=12)
    evaluation = evaluate_coco(truth, format_coco_results(predictions, CATEGORIES))
    assert [c.name for c in evaluation.classes] == ["ant", "bee", "cat"]
    for name, number in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"), ("ar", "AR100")):
        mean = np.mean([getattr(c, name) for c in evaluation.classes])
        assert mean == pytest.approx(evaluation.numbers[number])
    assert evaluation.precision.shape == (2, 3, 101)
    assert evaluation.from_scores.shape == (2, 3, 99)
    assert np.nanmean(evaluation.precision[0]) == pytest.approx(evaluation.numbers["AP50"])
    assert np.nanmean(evaluation.precision[1]) == pytest.approx(evaluation.numbers["AP75"])
    assert (np.diff(evaluation.precision, axis=2) <= 0).all()
    objects = [a["category_id"] for a in truth["annotations"] if not a["iscrowd"]]
    assert [c.objects for c in evaluation.classes] == [objects.count(i) for i in CATEGORIES.ids]


def test_a_class_without_objects_has_no_curve():
    truth, predictions = scene(8, images=4)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 90]
    evaluation = evaluate_coco(truth, format_coco_results(predictions, CATEGORIES))
    for curves in (evaluation.precision, evaluation.from_scores):
        missing = [not np.isfinite(curves[:, n]).any() for n in range(3)]
        assert missing == [c.objects == 0 for c in evaluation.classes] and any(missing)
        assert (curves[np.isfinite(curves)] >= 0).all()


def test_the_text_and_json_forms():
    truth, predictions = scene(8)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 7]
    evaluation = evaluate_coco(truth, format_coco_results(predictions, CATEGORIES))
    text = format_table(evaluation)
    assert "COCO bbox, 6 images" in text
    assert f"{evaluation.numbers['AP50']:.3f}" in text
    bee = next(line for line in text.splitlines() if " bee " in line)
    assert bee.split() == ["bee", "0", "-", "-", "-", "-"]
    assert " bee " not in format_table(evaluation, classes=False)
    for category in truth["categories"]:
        category["name"] = f"[bold]:cat: {category['id']}"  # no markup, no codes: text
    text = format_table(evaluate_coco(truth, format_coco_results(predictions, CATEGORIES)))
    assert "[bold]:cat: 90" in text
    state = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert state["classes"][1]["ap"] is None
    assert state["numbers"]["AP"] == evaluation.numbers["AP"]


def test_errors_name_the_item_and_the_fix(monkeypatch):
    truth, predictions = scene(8)
    results = format_coco_results(predictions, CATEGORIES)
    one = predictions[0] | {
        "boxes": torch.ones(2, 4),
        "scores": torch.ones(2),
        "labels": torch.ones(2).long(),
    }
    metric = CocoMetric(truth, CATEGORIES)
    for change, message in (
        ({"image_id": 99}, "image_id 99 is not among the 6 images"),
        ({"labels": torch.tensor([1, 4])}, r"labels must lie in \[1, 3\]"),
        ({"labels": torch.tensor([0, 1])}, r"labels must lie in \[1, 3\]"),
        ({"boxes": torch.ones(3, 4)}, r"boxes must have the shape \(2, 4\)"),
        ({"scores": torch.tensor([1.0, math.nan])}, "scores holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update([one | change])
    with pytest.raises(ValueError, match="iou_type must be one of"):
        CocoMetric(truth, CATEGORIES, "box")
    with pytest.raises(ValueError, match="backend must be"):
        CocoMetric(truth, CATEGORIES, backend="torchmetrics")
    with pytest.raises(ValueError, match="category_id 1, the ground truth knows"):
        evaluate_coco(truth, [{**results[0], "category_id": 1}])
    with pytest.raises(ValueError, match="result 0 is of image 99"):
        evaluate_coco(truth, [{**results[0], "image_id": 99}])
    with pytest.raises(ValueError, match="result 0 has no 'segmentation'"):
        evaluate_coco(truth, results, "segm")
    with pytest.raises(ValueError, match="image_ids holds 4"):
        evaluate_coco(truth, results, image_ids=[4, 10])
    with pytest.raises(ValueError, match="no categories"):
        evaluate_coco({**truth, "categories": []}, [])
    with pytest.raises(ValueError, match="17 keypoints but there are 5 keypoint_sigmas"):
        CocoMetric(truth, CATEGORIES, "keypoints", keypoint_sigmas=[0.1] * 5)
    boxes_only = [{k: v for k, v in a.items() if k != "segmentation"} for a in truth["annotations"]]
    with pytest.raises(ValueError, match=r"annotation 1 of image \d+ has no 'segm"):
        CocoMetric({**truth, "annotations": boxes_only}, CATEGORIES, "segm")
    segm = CocoMetric(truth, CATEGORIES, "segm")
    small = {"size": [5, 5], "counts": "i0"}
    with pytest.raises(ValueError, match=r"masks must be 2 run-length codes of size \(200, 200\)"):
        segm.update([one | {"masks": [small, small]}])
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(ModuleNotFoundError, match="use backend 'pycocotools'"):
        CocoMetric(truth, CATEGORIES, backend="faster_coco_eval")


def same(a, b):
    return minus_one(a) == minus_one(b)


# --- two processes -----------------------------------------------------------------------------

SHARES = {
    "padded": ([0, 2, 4, 6], [1, 3, 5, 0]),  # what Lightning's sampler does with seven images
    "twice": ([0, 1, 2, 3, 4, 0], [5, 6, 4, 3]),
    "one has none": ([0, 1, 2, 3, 4, 5, 6], []),
}
TYPES = ("bbox", "segm", "keypoints")


def evaluate_on(rank, folder):
    dist.init_process_group(
        "gloo",
        f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),  # a test that fails in one process ends in the other
    )
    numbers = {}
    for iou_type in TYPES:
        truth, predictions = scene(1, images=7, iou_type=iou_type)
        for name, shares in SHARES.items():
            metric = CocoMetric(truth, CATEGORIES, iou_type)
            for i in shares[rank]:
                metric.update([predictions[i]])
            numbers[f"{iou_type} {name}"] = [minus_one(metric.compute()), len(metric.images)]
            assert len(metric.image_ids) == max(1, len(shares[rank]))  # local states are back
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(numbers, file)
    dist.destroy_process_group()


def child(_, folder):
    evaluate_on(1, folder)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # of the process without images
def test_two_processes_equal_one(tmp_path):
    other = start_beside(child, str(tmp_path))
    evaluate_on(0, tmp_path)
    assert other.join()
    for iou_type in TYPES:
        truth, predictions = scene(1, images=7, iou_type=iou_type)
        alone = CocoMetric(truth, CATEGORIES, iou_type)
        alone.update(predictions)
        expected = [minus_one(alone.compute()), 7]
        assert 0 < expected[0][0] < 1
        for rank in range(2):
            numbers = json.loads((tmp_path / f"{rank}.json").read_text())
            for name in SHARES:
                assert numbers[f"{iou_type} {name}"] == expected


def test_the_best_score_is_that_of_the_highest_mean_f1():
    """Two classes: all of the first are found at .8 and .6; below, there are false ones alone."""
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    images = [{"id": n, "file_name": "", "width": 100, "height": 100} for n in (1, 2)]
    box, other = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]
    pairs = [(1, 1), (2, 1), (1, 2)]
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "id": n, "iscrowd": 0, "area": 400.0}
        for n, (image, label) in enumerate(pairs, start=1)
    ]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    rows = [(1, 1, box, 0.8), (2, 1, box, 0.6), (1, 2, box, 0.655), (1, 1, other, 0.5)]
    rows += [(2, 2, other, 0.59), (2, 1, other, 0.3)]
    results = [
        {"image_id": image, "category_id": label, "bbox": place, "score": score}
        for image, label, place, score in rows
    ]
    assert evaluate_coco(truth, results).find_best_score() == (0.6, 1.0)
    assert evaluate_coco(truth, results[3:]).find_best_score() is None
    score, f1 = evaluate_coco(truth, results[:1]).find_best_score()
    assert (score, f1) == (0.8, pytest.approx((2 / 3) / 2, abs=0.01))


@pytest.mark.parametrize("backend", BACKENDS)
def test_false_detections_below_the_last_right_one_count_against_a_score(backend):
    """All of class 1 are found at .9, beside eight false ones down to .5; all of class 2 at .5."""
    box, other = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]
    images = [{"id": n, "file_name": "", "width": 100, "height": 100} for n in range(1, 5)]
    annotations = [
        {"image_id": image["id"], "category_id": label, "bbox": box, "id": 2 * image["id"] + label}
        for image in images
        for label in (1, 2)
    ]
    crowd = {"image_id": 1, "category_id": 1, "bbox": [0.0, 50, 50, 50], "id": 99, "iscrowd": 1}
    truth = {
        "images": images,
        "annotations": [crowd, *annotations],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    rows = [(n, 1, box, 0.9) for n in range(1, 5)] + [(n, 2, box, 0.5) for n in range(1, 5)]
    rows += [(n, 1, other, 0.5 + k / 10) for n in range(1, 5) for k in range(2)]
    rows += [(1, 1, [5.0, 60.0, 30.0, 30.0], 0.7)] * 2  # on the crowd: neither right nor wrong
    results = [
        {"image_id": image, "category_id": label, "bbox": place, "score": score}
        for image, label, place, score in rows
    ]
    evaluation = evaluate_coco(truth, results, backend=backend)
    assert evaluation.find_best_score() == (0.5, pytest.approx((2 * 4 / (12 + 4) + 1) / 2))
    precision, recall = evaluation.from_scores[:, 0]
    assert precision[[49, 59, 89, 90]] == pytest.approx([4 / 12, 4 / 8, 1, 0])
    assert recall[[49, 59, 89, 90]] == pytest.approx([1, 1, 1, 0])


@pytest.mark.parametrize(("false", "best"), [(7, 0.6), (14, 0.8)])
def test_of_scores_with_about_the_highest_f1_the_best_is_the_balanced_one(false, best):
    """100 objects, 84 found at .8, F1 .913 with a standard error of .028; 4 more at .6.

    With 7 false ones between F1 is .903 there, with 14 it is .871.
    """
    categories = [{"id": 1, "name": "a"}]
    images = [{"id": n, "file_name": "", "width": 100, "height": 100} for n in range(1, 101)]
    box, other = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": box, "id": n, "iscrowd": 0, "area": 400.0}
        for n in range(1, 101)
    ]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    rows = [(n, box, 0.8) for n in range(1, 85)]
    rows += [(n, other, 0.7) for n in range(1, 1 + false)] + [(n, box, 0.6) for n in range(85, 89)]
    results = [
        {"image_id": image, "category_id": 1, "bbox": place, "score": score}
        for image, place, score in rows
    ]
    score, f1 = evaluate_coco(truth, results).find_best_score()
    assert score == best
    expected = {0.6: 2 * 88 / (88 + false + 100), 0.8: 2 * 84 / (84 + 100)}
    assert f1 == pytest.approx(expected[best])


@example([(90, 0)] * 12 + [(20, 1)])
@given(
    st.lists(st.tuples(st.sampled_from(range(1, 100)), st.sampled_from((0, 0, 0, 1))), max_size=40)
)
def test_from_the_best_score_on_something_is_detected_rightly(detections):
    """One object in each of 5 images: F1 of one right among many is within an error of 0."""
    images = [{"id": n, "file_name": "", "width": 100, "height": 100} for n in range(5)]
    box, other = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": box, "id": n + 1, "iscrowd": 0, "area": 400.0}
        for n in range(5)
    ]
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }
    results = [
        {"image_id": n % 5, "category_id": 1, "bbox": box if right else other, "score": part / 100}
        for n, (part, right) in enumerate(detections)
    ]
    best = evaluate_coco(truth, results).find_best_score()
    if not any(right for _, right in detections):
        assert best is None
        return
    kept = [
        (n % 5, right) for n, (part, right) in enumerate(detections) if part >= 100 * best[0] - 0.5
    ]
    found = {image for image, right in kept if right}  # an object is found once
    assert best[1] == pytest.approx(2 * len(found) / (len(kept) + 5)) and found
