"""Masks and keypoints from the training command to evaluation and prediction."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_runs import RCNN_ARGS, files_below, instance_arguments, shallow_heads, signals_as_before

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.inference import predict
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_views import DetectionViews
from densenet_backbones.inference.merging.soft_nms import SoftNMS
from densenet_backbones.inference.model_file import read_model_file
from densenet_backbones.reporting import detection_report
from densenet_backbones.training import evaluate, running
from densenet_backbones.training.cli import train_det

KEYPOINTS = 13  # of the figures in the scenes


@pytest.fixture(scope="module", autouse=True)
def small_heads():
    with shallow_heads():
        yield


@pytest.fixture
def unplotted(monkeypatch):
    """Evaluations without their plots, which take most of the time."""
    for name in ("plot_pr_curves", "plot_confidence_curves", "plot_confusion", "draw_examples"):
        monkeypatch.setattr(detection_report, name, lambda *args: None)


def trained(detector, data, folder):
    with pytest.MonkeyPatch.context() as patch, signals_as_before():
        patch.chdir(folder)
        train_det(instance_arguments(data, detector, "--run-dir", "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def mask_run(tiny_scenes, tmp_path_factory, small_heads):
    return trained("maskrcnn_fpn", tiny_scenes, tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def keypoint_run(tiny_scenes, tmp_path_factory, small_heads):
    return trained("keypointrcnn_fpn", tiny_scenes, tmp_path_factory.mktemp("keypoints"))


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- training --------------------------------------------------------------------------------------


def test_masks_are_trained_evaluated_and_drawn(mask_run):
    rows = rows_of(mask_run)
    trained = [row for row in rows if row["train/loss"]]
    assert len(trained) == 6 and all(float(row["train/loss_mask"]) > 0 for row in trained)
    evaluated = [row for row in rows if row["val/mask_AP"]]
    assert [int(row["step"]) for row in evaluated] == [2, 5]
    assert all(row["val/AP"] and row["val/mask_AP50"] and row["val/APs"] for row in evaluated)
    assert {"evaluation/pr_curves.png", "evaluation/mask_pr_curves.png"} <= set(
        files_below(mask_run)
    )
    log = (mask_run / "log.txt").read_text()
    table = (mask_run / "evaluation/table.txt").read_text()
    assert table in log and "COCO bbox, 7 images" in table and "COCO segm, 7 images" in table
    assert " run/model.safetensors " in log and "--check-image" not in log  # predict, no export
    size = RCNN_ARGS["min_size"]  # the scenes are square
    assert f"GMAC at {size}x{size}." in log
    epoch = next(line for line in log.splitlines() if line.startswith("epoch 1/"))
    assert " AP " in epoch and " mask_AP " in epoch
    for name in ("pictures/train_batch_0.png", "evaluation/predictions.png"):
        with Image.open(mask_run / name) as picture:
            assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 500, name


@pytest.mark.usefixtures("empty_figures")
def test_the_best_weights_are_those_of_the_best_masks(mask_run, keypoint_run):
    for run, name in ((mask_run, "mask_AP"), (keypoint_run, "keypoint_AP")):
        state = read_checkpoint(run / "checkpoints/last.ckpt")
        monitors = [key for key in state["callbacks"] if "BestCheckpoint" in key]
        assert len(monitors) == 1 and f"'val/{name}'" in monitors[0]


def test_results_are_what_pycocotools_says_of_them(mask_run, tiny_scenes):
    numbers = json.loads((mask_run / "evaluation/metrics.json").read_text())
    truth = COCO(str(tiny_scenes / "annotations/instances_val.json"))
    results = json.loads((mask_run / "evaluation/results.json").read_text())
    assert results and all({"bbox", "segmentation"} <= r.keys() for r in results)
    for kind, key in (("bbox", "coco"), ("segm", "coco_segm")):
        without = {"segm": "bbox"}.get(kind)  # or areas of boxes would be those of masks
        rows = [{k: v for k, v in r.items() if k != without} for r in results]
        reference = COCOeval(truth, truth.loadRes(rows), kind)
        reference.evaluate(), reference.accumulate(), reference.summarize()
        found = numbers[key]["numbers"]
        assert found["AP"] == pytest.approx(reference.stats[0], abs=1e-12)
        assert found["AR100"] == pytest.approx(reference.stats[8], abs=1e-12)


def test_keypoints_are_trained_evaluated_and_drawn(keypoint_run):
    rows = rows_of(keypoint_run)
    assert all(float(row["train/loss_keypoint"]) >= 0 for row in rows if row["train/loss"])
    assert all(row["val/keypoint_AP"] and row["val/AP"] for row in rows if row["val/AP"])
    table = (keypoint_run / "evaluation/table.txt").read_text()
    assert "COCO keypoints, 7 images" in table and "COCO bbox, 7 images" in table
    spec, _ = read_model_file(keypoint_run / "model.safetensors", (DetectorSpec,))
    assert spec.args == {**RCNN_ARGS, "num_keypoints": KEYPOINTS}
    assert len(spec.categories.keypoints) == KEYPOINTS and spec.categories.skeleton
    results = json.loads((keypoint_run / "evaluation/results.json").read_text())
    assert results and all(len(r["keypoints"]) == 3 * KEYPOINTS for r in results)


def test_config_yaml_does_not_say_what_follows_from_the_detector(mask_run):
    config = (mask_run / "config.yaml").read_text()
    assert "maskrcnn_fpn" in config and "target_types" not in config


@pytest.mark.usefixtures("empty_figures")
def test_a_run_is_gone_on_with(mask_run, tiny_scenes, tmp_path, unplotted, capsys):
    run = shutil.copytree(mask_run, tmp_path / "run")
    with signals_as_before():
        train_det(["--run-dir", str(run), "--resume", "--epochs", "3"])
    said = capsys.readouterr().out
    assert "2 epochs done, step 6" in said
    assert [int(r["step"]) for r in rows_of(run) if r["val/mask_AP"]] == [2, 5, 8]


def test_overfitting_needs_no_priors(tiny_scenes, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(running, "fit", kept.append)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    run = ("--run-dir", str(tmp_path / "run"), "--overfit", "5")
    train_det(instance_arguments(tiny_scenes, "maskrcnn_fpn", *run))
    (started,) = kept
    data = started.datamodule
    assert len(data.train_set) == 5 and data.val_set is data.train_set
    assert data.target_types == ("boxes", "masks") == started.model.target_types
    assert all(len(record.boxes) for record in data.train_set.records)


def test_too_few_images_to_overfit_are_refused(tiny_scenes, tmp_path, refused_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = instance_arguments(tiny_scenes, "maskrcnn_fpn", "--overfit", "100")
    code, line = refused_command(train_det, *arguments)
    assert code == 1 and "training images with objects; ask for fewer" in line


def test_data_without_keypoints_is_refused(tiny_scenes, tmp_path, refused_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "scenes"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("VOC", "*keypoints*"))
    code, line = refused_command(train_det, *instance_arguments(root, "keypointrcnn_fpn"))
    assert code == 1 and "keypoints" in line
    assert not (tmp_path / "runs").exists()


# -- evaluate and predict --------------------------------------------------------------------------


def evaluated(run, data, out, *options):
    evaluate.main(
        [
            *(str(run / "model.safetensors"), "--data", str(data), "--out", str(out)),
            *("--batch-size", "4", "--workers", "0", "--accelerator", "cpu", "--devices", "1"),
            *options,
        ]
    )
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("run", ["mask_run", "keypoint_run"])
def test_evaluate_finds_the_numbers_of_the_training(run, request, tiny_scenes, tmp_path, unplotted):
    folder = request.getfixturevalue(run)
    found = evaluated(folder, tiny_scenes, tmp_path / "out")
    assert found == json.loads((folder / "evaluation/metrics.json").read_text())
    for name in ("results.json", "table.txt"):
        written = (tmp_path / "out" / name).read_bytes()
        assert written == (folder / "evaluation" / name).read_bytes()


@pytest.mark.usefixtures("empty_figures")
def test_evaluate_with_more_views_and_soft_nms(mask_run, tiny_scenes, tmp_path, unplotted):
    asked = ("--tta", "flip", "--tta-scales", "1,1.5", "--soft-nms", "gaussian")
    found = evaluated(mask_run, tiny_scenes, tmp_path / "out", *asked)
    assert found["coco_segm"]["images"] == 7
    results = json.loads((tmp_path / "out/results.json").read_text())
    detector = load(mask_run / "model.safetensors")
    detector.views = DetectionViews(True, (1.0, 1.5), SoftNMS("gaussian"))
    for record in read_detection(tiny_scenes, "val").records:
        mine = [r for r in results if r["image_id"] == record.image_id]
        expected = detector.predict(record.path, 0)
        assert 0 < len(mine) == len(expected) <= RCNN_ARGS["box_detections_per_img"]
        np.testing.assert_allclose([r["score"] for r in mine], expected.scores, rtol=1e-4)


def test_a_detector_gives_masks_as_codes_and_as_pixels(mask_run, tiny_scenes):
    record = read_detection(tiny_scenes, "val").records[0]
    detector = load(mask_run / "model.safetensors")
    found = detector.predict(record.path, 0)
    assert len(found) == len(found.masks) == 5 and found.keypoints is None
    with torch.inference_mode():
        image = torch.from_numpy(np.asarray(Image.open(record.path).convert("RGB")).copy())
        (plain,) = detector.model([image.permute(2, 0, 1) / 255])
    order = plain["scores"].argsort(descending=True, stable=True)
    for number, row in enumerate(order.tolist()):
        assert (found.decode_mask(number) == (plain["masks"][row, 0] > 0.5).numpy()).all()
    first = detector.predict(record.path, float(found.scores[1]))
    assert len(first) == len(first.masks) < 5


def predicted(run, out, image, *options):
    argv = [str(run / "model.safetensors"), str(image), "--out", str(out), "--score", "0"]
    predict.main([*argv, "--device", "cpu", *options])
    (row,) = json.loads((out / "predictions.json").read_text())
    return row


def test_predict_writes_masks(mask_run, tiny_scenes, tmp_path):
    record = read_detection(tiny_scenes, "val").records[0]
    row = predicted(mask_run, tmp_path / "out", record.path)
    expected = load(mask_run / "model.safetensors").predict(record.path, 0)
    assert [d["mask"] for d in row["detections"]] == expected.masks
    assert coco_mask.area(row["detections"][0]["mask"]) == expected.decode_mask(0).sum()
    assert "keypoints" not in row["detections"][0]
    with Image.open(row["picture"]) as picture:
        assert picture.size == (64, 64)


def test_predict_writes_keypoints(keypoint_run, tiny_scenes, tmp_path):
    record = read_detection(tiny_scenes, "val").records[0]
    row = predicted(keypoint_run, tmp_path / "out", record.path)
    expected = load(keypoint_run / "model.safetensors").predict(record.path, 0)
    assert expected.masks is None and expected.keypoints.shape == (5, KEYPOINTS, 3)
    for number, detection in enumerate(row["detections"]):
        points = np.array(detection["keypoints"])
        np.testing.assert_allclose(points[:, :2], expected.keypoints[number, :, :2], atol=0.006)
        np.testing.assert_allclose(points[:, 2], expected.keypoint_scores[number], atol=1e-4)
        assert "mask" not in detection
    turned = predicted(keypoint_run, tmp_path / "flip", record.path, "--tta", "flip")
    assert len(turned["detections"]) == 5


def test_boxes_have_no_pixels(tiny_run, tiny_scenes):
    found = load(tiny_run / "model.safetensors").predict(
        read_detection(tiny_scenes, "val").records[0].path, 0
    )
    assert found.masks is None is found.keypoints
    with pytest.raises(ValueError, match="gives boxes without masks; use a Mask R-CNN"):
        found.decode_mask(0)


def test_what_is_for_detectors_is_refused_for_segmenters(
    tiny_segmentation, tiny_masks, refused_command, tmp_path
):
    model = tiny_segmentation / "model.safetensors"
    image = next((tiny_masks / "JPEGImages").iterdir())
    for command, data in ((evaluate, ("--data", tiny_masks)), (predict, (image,))):
        code, line = refused_command(
            command.main, model, *data, "--tta", "flip", "--out", tmp_path / "out"
        )
        assert code == 1 and "are for detectors" in line
    assert not (tmp_path / "out").exists()
