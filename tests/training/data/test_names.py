"""Classes and keypoints are matched by name, whatever ids and orders the files give them."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_runs import DETECTOR_ARGS

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Source
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.metrics.coco_truth import COCO_SIGMAS, choose_sigmas
from densenet_backbones.reporting import detection_report
from densenet_backbones.training.tasks.detection import DetectionTask

pytestmark = pytest.mark.usefixtures("empty_figures")

CLASSES = ("ant", "bee", "cat", "dog")
POINTS = ("head", "left_leg", "right_leg", "tail")
LIMITS = {
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
}


def write_part(root, split, ids, points=None, listed=None, used=CLASSES, images=3):
    """Write a part of a COCO data set.

    Args:
        root: Folder of the data set.
        split: Name of the part.
        ids: Id of each class, by name.
        points: Names of the keypoints, in the file's order; None for boxes alone.
        listed: Names in the order in which the file lists them; None lists those with ids.
        used: Names of the classes that have objects.
        images: Number of images; each shows one object of each class used.
    """
    categories = [{"id": ids[name], "name": name} for name in listed or ids]
    if points:
        categories = [{**entry, "keypoints": list(points)} for entry in categories]
    entries, annotations = [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for n, (image, name) in enumerate(itertools.product(range(images), used)):
        x, y = 24 * CLASSES.index(name) if name in CLASSES else 0, 10 * image
        entry = {"id": n + 1, "image_id": image + 1, "category_id": ids[name], "iscrowd": 0}
        entry |= {"bbox": [x, y, 20, 30], "area": 600}
        if points:
            # A keypoint lies where its name says, in whatever order the file has them.
            spots = {p: (x + 4 * k, y + 6 * k, 2) for k, p in enumerate(sorted(points))}
            entry["keypoints"] = [value for p in points for value in spots[p]]
            entry["num_keypoints"] = len(points)
        annotations.append(entry)
    for image in range(images):
        file = f"{split}{image}.png"
        if not (root / split / file).exists():
            Image.new("RGB", (100, 64)).save(root / split / file)
        entries.append({"id": image + 1, "file_name": file, "width": 100, "height": 64})
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return content


def find_by_name(content, categories, kind):
    """Return the objects of a file as detections of a model that has other classes' order."""
    names = {entry["id"]: entry for entry in content["categories"]}
    detections = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        x, y, w, h = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4).T
        labels = [categories.names.index(names[a["category_id"]]["name"]) + 1 for a in own]
        detection = {
            "image_id": image["id"],
            "boxes": torch.stack((x, y, x + w, y + h), 1),
            "labels": torch.tensor(labels),
            "scores": torch.linspace(0.9, 0.8, len(own)),
        }
        if kind == "keypoints":
            places = [
                dict(zip(names[a["category_id"]]["keypoints"], _rows(a), strict=True)) for a in own
            ]
            rows = [[place[name] for name in categories.keypoints] for place in places]
            detection["keypoints"] = torch.tensor(rows, dtype=torch.float64)
        detections.append(detection)
    return detections


def _rows(annotation):
    return np.array(annotation["keypoints"], float).reshape(-1, 3).tolist()


def make_task(data, kind="boxes"):
    """A task of the data's classes; keypoints are those of a detector that is not built."""
    task = DetectionTask("dsod_tiny", DETECTOR_ARGS, categories=data.categories)
    if kind == "keypoints":
        task.target_types = ("boxes", "keypoints")
        task.spec.args["num_keypoints"] = len(data.categories.keypoints)
    return task


def evaluate_perfect(data, content, kind="boxes"):
    """Evaluate the objects of the file through the task's metric; returns it and the numbers."""
    task = make_task(data, kind)
    task.check_names(data)
    metric = task.make_metric(data)
    metric.update(find_by_name(content, data.categories, kind))
    return metric, metric.compute()


def read_data(root, kind="boxes", **options):
    target_types = ["boxes", "keypoints"] if kind == "keypoints" else ["boxes"]
    return DetectionData(str(root), num_workers=0, target_types=target_types, **options)


@st.composite
def numbered(draw, names):
    """Ids by name, in any order; 0 and sparse ones are among them."""
    ids = draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names), unique=True))
    return dict(zip(draw(st.permutations(names)), ids, strict=True))


@pytest.mark.parametrize("kind", ["boxes", "keypoints"])
@settings(max_examples=25, **LIMITS)
@given(drawn=st.data())
def test_perfect_detections_are_perfect_whatever_the_ids(kind, drawn, tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    points = {
        split: tuple(drawn.draw(st.permutations(POINTS))) if kind == "keypoints" else None
        for split in ("train", "val")
    }
    write_part(root, "train", drawn.draw(numbered(CLASSES)), points["train"])
    # The evaluated file lists some of the classes, and perhaps one more without objects.
    listed = drawn.draw(st.lists(st.sampled_from((*CLASSES, "eel")), min_size=1, unique=True))
    used = [name for name in listed if name in CLASSES]
    if not used:
        listed = used = [CLASSES[0]]
    ids = drawn.draw(numbered(listed))
    content = write_part(root, "val", ids, points["val"], used=used)
    data = read_data(root, kind)
    metric, numbers = evaluate_perfect(data, content, kind)
    aps = {name: value for name, value in numbers.items() if name.endswith(("AP", "AP50"))}
    assert aps and all(value == pytest.approx(1, abs=1e-9) for value in aps.values())
    counted = {row.name: row.objects for row in metric.evaluation.classes}
    assert counted == {name: 3 * (name in used) for name in data.categories.names}
    # Results have the file's own ids and order of keypoints, so that they fit it elsewhere.
    objects = sorted(content["annotations"], key=lambda a: (a["image_id"], a["bbox"]))
    results = sorted(metric.results, key=lambda r: (r["image_id"], r["bbox"]))
    for entry, result in zip(objects, results, strict=True):
        assert result["category_id"] == entry["category_id"]
        assert result.get("keypoints") == entry.get("keypoints")
    # Read back, they have the model's labels, and so the right names in pictures and tables.
    back = detection_report.group_by_image(metric.results, data.val_set.categories)
    for detection in find_by_name(content, data.categories, kind):
        own = back[detection["image_id"]]
        assert own["labels"].tolist() == detection["labels"].tolist()
        if kind == "keypoints":
            np.testing.assert_array_equal(own["keypoints"], detection["keypoints"])
    # Samples, which pictures of training show, have the model's labels and keypoints.
    for sample, detection in zip(
        data.make_evaluated_images(), find_by_name(content, data.categories, kind), strict=True
    ):
        assert sample.labels.tolist() == detection["labels"].tolist()
        if kind == "keypoints":
            np.testing.assert_array_equal(sample.keypoints, detection["keypoints"])


def test_results_fit_the_evaluated_file_in_pycocotools(tmp_path):
    points = ("tail", "head", "right_leg", "left_leg")
    write_part(tmp_path, "train", dict(zip(CLASSES, (1, 2, 3, 4), strict=True)), POINTS)
    content = write_part(tmp_path, "val", dict(zip(CLASSES, (4, 1, 9, 2), strict=True)), points)
    metric, _ = evaluate_perfect(read_data(tmp_path, "keypoints"), content, "keypoints")
    truth = COCO(str(tmp_path / "annotations/instances_val.json"))
    for kind in ("bbox", "keypoints"):
        judged = COCOeval(truth, truth.loadRes([dict(row) for row in metric.results]), kind)
        if kind == "keypoints":
            judged.params.kpt_oks_sigmas = np.full(4, 0.067)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        assert judged.stats[0] == pytest.approx(1)


def test_pictures_name_what_is_there(tmp_path, monkeypatch):
    write_part(tmp_path, "train", {"ant": 1, "bee": 2}, used=("ant", "bee"))
    content = write_part(tmp_path, "val", {"bee": 1, "ant": 2}, used=("ant", "bee"))
    data = read_data(tmp_path)
    metric, _ = evaluate_perfect(data, content)
    shown = []
    draw = detection_report.draw_beside_ground_truth

    def note(images, truth, found, names, **options):
        shown.extend(
            [sorted(names[label - 1] for label in side.labels) for side in (*truth, *found)]
        )
        for side in (*truth, *found):
            left = [names[int(label) - 1] for label in side.labels[np.argsort(side.boxes[:, 0])]]
            assert left == ["ant", "bee"]  # ants are drawn on the left
        return draw(images, truth, found, names, **options)

    monkeypatch.setattr(detection_report, "draw_beside_ground_truth", note)
    detection_report.write_evaluation(metric, data.val_set, tmp_path / "out")
    assert len(shown) == 6
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["category_id"] for row in results if row["bbox"][0] == 0} == {2}
    rows = json.loads((tmp_path / "out/metrics.json").read_text())["coco"]["classes"]
    assert {row["name"]: row["category_id"] for row in rows} == {"ant": 2, "bee": 1}


# -- names that do not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ids", "points", "expected"),
    [
        ("boxes", {"ant": 1, "eel": 2}, None, r"instances_val.json: has objects of 1 .*'eel'"),
        (
            "keypoints",
            {"ant": 1},
            ("head", "left_leg", "nose", "tail"),
            r"_val.json: its 4 .*'nose",
        ),
        ("keypoints", {"ant": 1}, ("head", "tail"), r"_val.json: its 2 keypoints .*are not the 4"),
        ("keypoints", {"ant": 1}, ("head", "tail", "tail", "left_leg"), r"_val.json: its 4 keyp"),
    ],
)
def test_other_names_are_one_error_before_training(kind, ids, points, expected, tmp_path):
    write_part(tmp_path, "train", {"ant": 1}, POINTS if kind == "keypoints" else None, used=["ant"])
    write_part(tmp_path, "val", ids, points, used=list(ids))
    with pytest.raises(DataError, match=expected):
        _ = read_data(tmp_path, kind).val_set


def test_keypoints_named_twice_have_no_other_order(tmp_path):
    write_part(tmp_path, "train", {"ant": 1}, ("tail", "tail", "head"), used=["ant"])
    write_part(tmp_path, "val", {"ant": 1}, ("tail", "head", "tail"), used=["ant"])
    with pytest.raises(DataError, match="keypoints are named twice"):
        _ = read_data(tmp_path, "keypoints").val_set


def test_a_model_is_not_evaluated_on_labels_of_other_names(tmp_path):
    """Data that was read without the model's names."""
    for root, order in ((tmp_path / "a", ("ant", "bee")), (tmp_path / "b", ("bee", "ant"))):
        for split in ("train", "val"):
            write_part(root, split, dict(zip(order, (1, 2), strict=True)), used=order)
    task = make_task(read_data(tmp_path / "a"))
    with pytest.raises(DataError, match=r"b/val: its classes are 'bee', 'ant', the model's are 'a"):
        task.check_names(read_data(tmp_path / "b"))
    data = read_data(tmp_path / "b")
    data.use_classes(task.spec.categories)
    task.check_names(data)


# -- several sources -------------------------------------------------------------------------------


@settings(max_examples=15, **LIMITS)
@given(drawn=st.data())
def test_sources_are_taken_together_by_name(drawn, tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    sources = []
    for name in ("a", "b"):
        points = tuple(drawn.draw(st.permutations(POINTS)))
        write_part(root / name, "train", drawn.draw(numbered(CLASSES)), points)
        sources.append((root / name, "train"))
    content = write_part(root / "a", "val", drawn.draw(numbered(CLASSES)), POINTS[::-1])
    data = read_data(
        root / "a", "keypoints", train=[Source(str(source[0]), source[1]) for source in sources]
    )
    assert len(data.train_set) == 6
    samples = [data.make_evaluated_images()[n] for n in range(3)]
    trained = read_detection(sources, keypoints=True)
    for n, record in enumerate(trained.records):
        # Both sources and the evaluated part show the same objects.
        alike = samples[n % 3]
        by_place = {
            tuple(box): label for box, label in zip(alike.boxes.tolist(), alike.labels, strict=True)
        }
        for box, label in zip(record.boxes.tolist(), record.labels, strict=True):
            assert by_place[tuple(box)] == label
        for annotation in record.annotations:
            place = [n for n, box in enumerate(alike.boxes) if box[0] == annotation["bbox"][0]]
            own = np.array(annotation["keypoints"]).reshape(-1, 3)
            np.testing.assert_array_equal(own, alike.keypoints[place[0]])
    _, numbers = evaluate_perfect(data, content, "keypoints")
    assert numbers["AP"] == numbers["keypoint_AP"] == pytest.approx(1)


def test_sources_of_other_keypoints_teach_boxes_alone(tmp_path):
    for name, points in (("a", POINTS), ("b", ("nose", "tail"))):
        write_part(tmp_path / name, "train", {"ant": 1}, points, used=["ant"])
    sources = [(tmp_path / name, "train") for name in ("a", "b")]
    assert read_detection(sources).categories.keypoints == ()
    with pytest.raises(DataError, match=r"b.annotations.instances_train.json: its 2 keypoints"):
        read_detection(sources, keypoints=True)


# -- constants of keypoints ------------------------------------------------------------------------


def test_constants_follow_the_names_of_keypoints(tmp_path):
    from pycocotools.cocoeval import Params

    np.testing.assert_allclose(list(COCO_SIGMAS.values()), Params("keypoints").kpt_oks_sigmas)
    order = random.Random(0).sample(list(COCO_SIGMAS), 17)
    write_part(tmp_path, "train", {"ant": 1}, tuple(COCO_SIGMAS), used=["ant"])
    write_part(tmp_path, "val", {"ant": 1}, tuple(order), used=["ant"])
    data = read_data(tmp_path, "keypoints")
    assert choose_sigmas(17, data.categories) is None
    assert choose_sigmas(17, data.val_set.categories) == [COCO_SIGMAS[name] for name in order]


def test_numbers_do_not_depend_on_the_order_of_keypoints(tmp_path):
    """Detections that are a little off, where the constants of the names matter."""
    numbers = []
    for n, order in enumerate((tuple(COCO_SIGMAS), tuple(reversed(COCO_SIGMAS)))):
        root = tmp_path / str(n)
        write_part(root, "train", {"ant": 1}, tuple(COCO_SIGMAS), used=["ant"])
        content = write_part(root, "val", {"ant": 1}, order, used=["ant"])
        data = read_data(root, "keypoints")
        metric = make_task(data, "keypoints").make_metric(data)
        detections = find_by_name(content, data.categories, "keypoints")
        for detection in detections:
            detection["keypoints"][..., 0] += torch.arange(17) / 3
        metric.update(detections)
        numbers.append(metric.compute())
    assert 0 < numbers[0]["keypoint_AP"] < 1
    assert numbers[0] == pytest.approx(numbers[1], nan_ok=True)


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(2, 3, 1), (30, 10, 20), (0, 2, 1)])
def test_voc_data_exported_to_coco_has_the_same_numbers(order, shared_data, tmp_path):
    voc = read_data(shared_data / "bccd", layout="voc")
    names = voc.categories.names
    # COCO's form of the evaluated images, with ids of its own and classes in their order.
    truth = voc.val_set.ground_truth()
    ids = dict(zip(voc.val_set.categories.ids, order, strict=True))
    truth["annotations"] = [
        {**a, "category_id": ids[a["category_id"]]} for a in truth["annotations"]
    ]
    truth["categories"] = [{"id": i, "name": n} for i, n in zip(order, names, strict=True)]
    truth["images"] = [
        {**i, "file_name": str(Path("JPEGImages", i["file_name"]))} for i in truth["images"]
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/val.json").write_text(json.dumps(truth))
    folder = voc.val_set.records[0].path.parent
    (tmp_path / "JPEGImages").symlink_to(folder)
    coco = read_data(tmp_path, layout="coco")
    coco.use_classes(voc.categories)
    task = make_task(voc)
    numbers = []
    for data in (voc, coco):
        task.check_names(data)
        metric = task.make_metric(data)
        for record in voc.val_set.records:
            boxes, labels = torch.from_numpy(record.boxes), torch.from_numpy(record.labels)
            row = {"image_id": record.image_id, "boxes": boxes, "labels": labels}
            metric.update([{**row, "scores": torch.ones(len(labels))}])
        numbers.append(metric.compute())
    assert numbers[0] == numbers[1] and numbers[0]["AP"] > 0.99
    assert {row["category_id"] for row in metric.results} == set(order)
