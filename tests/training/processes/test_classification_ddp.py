"""Classification on two processes, started as a user starts it."""

import json
import os
import subprocess
import sys

import pytest
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
    command = [
        *(sys.executable, str(PROJECT / "tools" / "train_cls.py")),
        *classification_arguments(data, epochs=1),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--run-dir", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=480
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 images a step, 1 epoch" in done.stdout
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
