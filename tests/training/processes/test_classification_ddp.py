"""Classification on two processes, started as a launcher starts it."""

import json
import os

import pytest
from forked_processes import run_on_two
from locations import PROJECT
from tiny_classifiers import classification_arguments, write_folders

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import evaluate

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("empty_figures"),
    pytest.mark.skipif(os.name != "posix", reason="gloo as on Linux"),
]


def test_two_processes_evaluate_every_image_once_and_equal_one(tmp_path):
    data, folder = write_folders(tmp_path / "data", count=5), tmp_path / "run"
    words = [
        PROJECT / "tools" / "train_cls.py",
        *classification_arguments(data, epochs=1),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--run-dir", str(folder)),
    ]
    codes, said = run_on_two(words, tmp_path / "said.txt"), (tmp_path / "said.txt").read_text()
    assert codes == [0, 0], said
    assert "8 images a step, 1 epoch" in said
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 2  # 15 images, 8 a step
    both = json.loads((folder / "evaluation/metrics.json").read_text())
    assert both["images"] == 15  # 8 and 7, none twice
    assert len((folder / "evaluation/predictions.csv").read_text().splitlines()) == 16
    evaluate.main(
        [
            *(str(folder / "checkpoints/best.ckpt"), "--data", str(data)),
            *("--out", str(tmp_path / "alone"), "--batch-size", "4", "--workers", "0"),
            *("--accelerator", "cpu", "--devices", "1"),
        ]
    )
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert alone["numbers"] == pytest.approx(both["numbers"], abs=1e-6)
