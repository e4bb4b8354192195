"""Segmentation on two processes, started as a launcher starts it."""

import json
import os

import pytest
from forked_processes import run_on_two
from locations import PROJECT
from tiny_segmenters import segmentation_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import evaluate

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("empty_figures"),
    pytest.mark.skipif(os.name != "posix", reason="gloo as on Linux"),
]


def test_two_processes_evaluate_every_image_once_and_equal_one(
    tiny_segmentation, tiny_masks, tmp_path
):
    folder = tmp_path / "run"
    words = [
        PROJECT / "tools" / "train_seg.py",
        *segmentation_arguments(tiny_masks, epochs=1),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--batch-size", "3"),
        *("--init-from", str(tiny_segmentation / "model.safetensors"), "--run-dir", str(folder)),
    ]
    codes, said = run_on_two(words, tmp_path / "said.txt"), (tmp_path / "said.txt").read_text()
    assert codes == [0, 0], said
    assert "6 images a step, 1 epoch" in said
    assert said.count("Best weights") == 1
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 2  # 12 images, 6 a step
    both = json.loads((folder / "evaluation/metrics.json").read_text())
    assert both["images"] == 7  # 4 and 3, none twice
    evaluate.main(
        [
            *(str(folder / "checkpoints/best.ckpt"), "--data", str(tiny_masks)),
            *("--out", str(tmp_path / "alone"), "--batch-size", "3", "--workers", "0"),
            *("--accelerator", "cpu", "--devices", "1"),
        ]
    )
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert alone == both
    assert both["numbers"]["pixel_accuracy"] > 0
