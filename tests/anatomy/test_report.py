"""The report on a model, its picture of priors against boxes, and the list of costs."""

import json

import numpy as np
import pytest
import torchvision
import yaml
from PIL import Image
from tiny_runs import files_below

from densenet_backbones.anatomy.boxes_of_data import measure_boxes
from densenet_backbones.anatomy.measuring import measure_model
from densenet_backbones.anatomy.opening import OpenedModel, open_model
from densenet_backbones.anatomy.registered import KINDS, list_costs
from densenet_backbones.anatomy.report import main, write_report
from densenet_backbones.data.categories import Categories
from densenet_backbones.inference.classifier import ClassifierSpec
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import build_registered, save_model
from densenet_backbones.torchvision_models import SEGMENTERS


def write_coco(folder, boxes):
    """A split of one 200x200 image with boxes (x, y, w, h)."""
    (folder / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(folder / "train/a.png")
    entries = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for n, b in enumerate(boxes, start=1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": entries,
    }
    (folder / "annotations/instances_train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def small_boxes(tmp_path_factory):
    """Tall boxes far smaller than any prior of the defaults."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, 180, (60, 2)).tolist()
    boxes = [[x, y, 5 + n % 3, 12 + n % 5] for n, (x, y) in enumerate(places)]
    return write_coco(tmp_path_factory.mktemp("small"), boxes)


def test_a_run_is_reported_as_its_model_is(tiny_run, tiny_scenes, tmp_path, capsys):
    main([str(tiny_run), "--data", str(tiny_scenes), "--out", str(tmp_path / "r")])
    assert sorted(files_below(tmp_path / "r")) == ["report.json", "report.png"]
    report = json.loads((tmp_path / "r/report.json").read_text())
    model = load(tiny_run).model
    assert report["parameters"] == sum(p.numel() for p in model.parameters())

    levels = [(lv["channels"], lv["stride"]) for lv in report["levels"]]
    assert levels == [(lv.channels, lv.stride) for lv in model.backbone.levels]
    stages = {row["name"]: row for row in report["stages"]}
    block = model.backbone.get_submodule("denseblock2")
    assert stages["denseblock2"]["parameters"] == sum(p.numel() for p in block.parameters())
    assert set(report["memory"]["modes"]) >= {"none", "shared", "layer"}
    assert report["boxes"]["now"]["best_possible_recall"] > 0.9
    said = capsys.readouterr().out
    assert "denseblock4" in said and "best possible recall" in said


@pytest.mark.parametrize("name", ["dsod_tiny", "ssd300", "retinanet_fpn"])
def test_fitted_boxes_are_accepted_and_better(name, small_boxes, tmp_path):
    net = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
    sizes = {"ssd300": {"image_size": 128}, "retinanet_fpn": {"min_size": 200, "max_size": 200}}
    args = {**net, **sizes.get(name, {})}
    config = {"model": {"detector": name, "args": args}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    before = measure_boxes(open_model(str(tmp_path / "c.yaml")), str(small_boxes))
    assert before["fitted"]["coverage"] > before["now"]["coverage"]
    # The lines that are printed, pasted into the config.
    pasted = yaml.safe_load(before["config"])
    config["model"]["args"] |= pasted["model"]["args"]
    (tmp_path / "better.yaml").write_text(yaml.safe_dump(config))
    after = measure_boxes(open_model(str(tmp_path / "better.yaml")), str(small_boxes))
    assert after["now"] == before["fitted"]
    assert after["now"]["missed"] < before["now"]["missed"]
    torchvision.models.get_model(name, num_classes=2, **config["model"]["args"])


def test_a_config_is_reported_with_the_classes_of_the_data(small_boxes, tmp_path):
    report = write_report("dsod_tiny", data=str(small_boxes), out=tmp_path)
    assert len(report["boxes"]["classes"]) == 1
    built = torchvision.models.get_model("dsod_tiny", num_classes=2)
    assert report["parameters"] == sum(p.numel() for p in built.parameters())


def test_classifiers_and_segmenters_have_reports(tmp_path):
    report = write_report("densenet40bc_k12", batch=2, budget=2**30, out=tmp_path / "a")
    assert report["parameters"] == 176_122 and report["size"] == [32, 32]
    assert [level["stride"] for level in report["levels"]] == [1, 1, 2, 4]
    modes = report["memory"]["modes"].values()
    assert all(row["largest_batch"] * row["saved_bytes"] / 2 <= 1.1 * 2**30 for row in modes)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_are_measured(name):
    blocks = [1] * 6 if name.startswith("fc") else [1, 1, 1, 1]
    small = {"growth_rate": 4, "block_config": blocks, "num_init_features": 8}
    opened = OpenedModel(name, "segmenter", build_registered("segmenter", name, 3, small))
    report = measure_model(opened, (64, 64), batch=2, budget=None)
    saved = [row["saved_bytes"] for row in report["memory"]["modes"].values()]
    assert report["memory"]["of"] == "model" and max(saved) > min(saved) > 0


def test_a_trained_classifier_of_gray_has_a_report(tmp_path):
    classes = Categories.from_names(["dark", "light"])
    args = {"growth_rate": 4, "block_config": [1, 1], "image_size": 24, "in_chans": 1}
    spec = ClassifierSpec("densenet40_k12", args, classes)
    save_model(tmp_path / "model.safetensors", spec, spec.build())
    report = write_report(str(tmp_path / "model.safetensors"), out=tmp_path / "report")
    assert report["size"] == [24, 24] and report["trained"]
    assert report["macs"] > sum(row["macs"] for row in report["stages"][:-1]) > 0


def test_every_registered_name_has_costs():
    kinds = {
        "backbones": ["densenet40bc_k12_features", "dsod_smallest_features"],
        "detectors": ["dsod_tiny", "ssd300", "retinanet_fpn", "maskrcnn_fpn"],
        "segmenters": ["fcdensenet56", "unet"],
    }
    rows = {row[0]: row for kind, names in kinds.items() for row in list_costs(kind, names)}
    _, parameters, _, size, strides = rows["dsod_tiny"]
    assert (parameters, size, strides) == (1_987_768, (160, 160), (8, 16, 32, 64, 128))
    assert all(macs > 0 for _, _, macs, _, _ in rows.values())
    assert set(KINDS) == set(kinds) and all(set(kinds[kind]) <= set(KINDS[kind]) for kind in kinds)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "give a MODEL"),
        (["densenet121", "--list"], 2, "give a MODEL"),
        (["densenet121", "--size", "0"], 2, "--size must be"),
        (["densenet121", "--batch", "0"], 2, "--batch"),
        (["fcos_fpn", "--data", "nowhere"], 1, "no priors or anchors"),
        (["densenet40_k12", "--size", "2"], 1, "pixels or more"),
    ],
)
def test_wrong_words_are_refused(refused_command, words, code, sentence):
    ended, error = refused_command(main, *words)
    assert ended == code and sentence in error
