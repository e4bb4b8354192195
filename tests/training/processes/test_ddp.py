"""Training on two processes, started as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from locations import PROJECT
from tiny_runs import training_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import evaluate

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("empty_figures"),
    pytest.mark.skipif(os.name != "posix", reason="signals and gloo as on Linux"),
]


def start(tiny_scenes, folder, *more, epochs=1):
    """`tools/train_det.py` on two processes; its output goes to a file beside the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(PROJECT / "tools" / "train_det.py")),
        *training_arguments(tiny_scenes, epochs=epochs),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--batch-size", "3"),
        *("--run-dir", str(folder), *more),
    ]
    output = (folder.parent / "output.txt").open("w")
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )


def output_of(folder):
    return (folder.parent / "output.txt").read_text()


def scores_per_image(folder):
    found = {}
    for row in json.loads((folder / "results.json").read_text()):
        found.setdefault(row["image_id"], []).append(row["score"])
    return {image_id: sorted(scores) for image_id, scores in found.items()}


def test_two_processes_train_and_evaluate_every_image_once(tiny_run, tiny_scenes, tmp_path):
    folder = tmp_path / "work" / "run"
    weights = ("--init-from", str(tiny_run / "model.safetensors"))
    assert start(tiny_scenes, folder, *weights).wait(240) == 0, output_of(folder)
    said = output_of(folder)
    assert said.count("tensors taken") == 1 and "sync_dist" not in said
    assert "6 images a step, 1 epoch" in said  # the batch of both
    assert said.count("Best weights") == 1 and said.count("Output goes to") == 1
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 2  # 12 images, 6 a step
    found = json.loads((folder / "evaluation/metrics.json").read_text())
    assert found["coco"]["images"] == found["voc"]["images"] == 7  # 4 and 3, none twice
    out = tmp_path / "alone"
    evaluate.main(
        [
            *(str(folder / "checkpoints/best.ckpt"), "--data", str(tiny_scenes)),
            *("--out", str(out), "--batch-size", "3", "--workers", "0"),
            *("--accelerator", "cpu", "--devices", "1"),
        ]
    )
    alone = json.loads((out / "metrics.json").read_text())
    assert alone == found
    assert found["coco"]["numbers"]["AR100"] > 0  # equal numbers that say something
    one, both = scores_per_image(out), scores_per_image(folder / "evaluation")
    assert one.keys() == both.keys() and len(one) == 7
    # batches are made up differently, and with them the order in which sums are taken
    assert all(one[image_id] == pytest.approx(both[image_id], abs=1e-5) for image_id in one)


def test_a_termination_signal_stops_both_at_one_step(tiny_scenes, tmp_path):
    folder = tmp_path / "work" / "run"
    process = start(tiny_scenes, folder, epochs=1000)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline, output_of(folder)
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # to the first process alone, as a scheduler does
        assert process.wait(120) == 143, output_of(folder)
    finally:
        process.kill()
    said = output_of(folder)
    assert "--resume go on" in said and "Traceback" not in said
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] > 0
