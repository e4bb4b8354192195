"""Trainings on data as labelling tools leave it, by its path alone."""

import json

import pytest
from foreign_sets import LAYOUTS, write_layout
from tiny_runs import DETECTOR_ARGS, signals_as_before

from densenet_backbones.training.cli import train_det, train_seg

pytestmark = pytest.mark.usefixtures("empty_figures")

DETECTION = [
    *("--model.detector", "dsod_tiny", "--model.args", json.dumps(DETECTOR_ARGS)),
    *("--data.augmentation", "light"),
]
SEGMENTATION = [
    *("--model.segmenter", "unet", "--data.crop", "[32, 32]"),
    *("--model.args", json.dumps({"backbone_kwargs": DETECTOR_ARGS["backbone_kwargs"]})),
]
CHOSEN = ("zip", "yolo segment", "cvat", "roboflow voc", "tensorflow csv", "palette masks")


@pytest.mark.long
@pytest.mark.parametrize("name", CHOSEN)
def test_a_path_is_enough(name, tmp_path, monkeypatch, capsys):
    """Run with all of `LAYOUTS` for `CHOSEN` after a change: a second and a half each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    path = write_layout(name, tmp_path / "pets")
    holds = LAYOUTS[name].holds
    kinds = [(train_det, DETECTION)] * ("boxes" in holds)
    kinds += [(train_seg, SEGMENTATION)] * bool({"masks", "semantic"} & set(holds))
    for train, arguments in kinds:
        with signals_as_before():
            train(
                [
                    *("--data", str(path), "--dry-run", "--batch-size", "2"),
                    *("--data.num_workers", "0", "--trainer.accelerator", "cpu", *arguments),
                ]
            )
        printed = capsys.readouterr().out
        assert "\nData: " in printed and "Dry run done" in printed
