"""Trainings and evaluations say what is wrong with the data as a whole, or refuse it."""

import random
import shutil

import numpy as np
import pytest
import torch
from instance_sets import change, write_instances
from mask_sets import some_masks, write_camvid, write_voc
from tiny_runs import training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.data.checks.contents import refuse_unlearnable
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.training import evaluate
from densenet_backbones.training.cli import train_det, train_seg

pytestmark = pytest.mark.usefixtures("empty_figures")


def write_parts(root, edit=None):
    for split in ("train", "val"):
        write_instances(root, split=split)
        if edit:
            change(root, edit, f"instances_{split}")
    return root


def crowd(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


def test_a_detector_is_not_trained_on_nothing(tmp_path, refused_command):
    root = write_parts(tmp_path / "data", crowd)
    run = tmp_path / "run"
    code, line = refused_command(train_det, *training_arguments(root, "--run-dir", str(run)))
    assert code == 1 and "all 32 annotations are crowd regions" in line
    assert not run.exists()


def test_a_segmenter_is_not_trained_on_masks_of_0_and_255(tmp_path, refused_command):
    found = {n: np.where(m == 1, 255, 0).astype(np.uint8) for n, m in some_masks().items()}
    for split in ("train", "val"):
        write_camvid(tmp_path / "data", found, split)
    run = tmp_path / "run"
    arguments = segmentation_arguments(tmp_path / "data", "--run-dir", str(run))
    names = ("--data.classes", "[background,crack]")
    code, line = refused_command(train_seg, *arguments, *names)
    assert code == 1 and "{name: 'crack', id: 255}] in " in line
    assert not run.exists()


def test_what_is_wrong_is_said_before_training_and_before_evaluating(
    tmp_path, tiny_run, tiny_scenes, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    allowed = ("--data.allow_shared_images", "true")
    train_det(training_arguments(write_parts(tmp_path / "data"), "--dry-run", *allowed))
    text = capsys.readouterr().out
    said = "warning: data/val: evaluated images that are training images too: 8 of 8 ("
    assert said in text and text.index(said) < text.index("parameters")
    assert "warning" not in (tiny_run / "log.txt").read_text()
    # The evaluated file alone is looked at where there is no training.
    root = change(shutil.copytree(tiny_scenes, tmp_path / "scenes"), crowd, "instances_val")
    arguments = ["--data", str(root), "--out", str(tmp_path / "out"), "--workers", "0"]
    evaluate.main([str(tiny_run / "model.safetensors"), *arguments])
    text = capsys.readouterr().out
    said = "instances_val.json: its 7 images have no object that counts, so its scores are"
    assert said in text and text.index(said) < text.index("COCO bbox") and "shared" not in text


@pytest.mark.parametrize("data_type", [DetectionData, SegmentationData])
def test_checks_change_nothing(data_type, tmp_path):
    """No random number is drawn, and the sets stay what they are: same seed, same bits."""
    for split in ("train", "val"):
        write_voc(tmp_path / "m", some_masks(), split)
    write_parts(tmp_path / "d")
    data = data_type(str(tmp_path / ("d" if data_type is DetectionData else "m")))
    parts = data.train_set, data.val_set
    records = [part.records for part in parts]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    refuse_unlearnable(parts[0])
    assert len(list(remark_on_data(*parts))) >= 1
    assert random.getstate() == states[0]
    assert str(np.random.get_state()) == str(states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [part.records for part in (data.train_set, data.val_set)] == records
