"""Evaluation, prediction and training on two processes, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from PIL import Image
from tiny_runs import signals_as_before, training_arguments

from densenet_backbones.training import evaluate, predict


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with signals_as_before():
        yield


def numbers_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_evaluate_gives_the_trainings_numbers_in_either_layout(tiny_run, tiny_scenes, capsys):
    model = str(tiny_run / "model.safetensors")
    evaluate.main([model, "--data", str(tiny_scenes), "--workers", "0", "--out", "coco"])
    ours = numbers_of(Path("coco"))["coco"]["numbers"]
    trained = numbers_of(tiny_run / "evaluation")["coco"]["numbers"]
    assert ours == pytest.approx(trained, abs=1e-6, nan_ok=True)
    evaluate.main([model, "--data", str(tiny_scenes / "VOC"), "--workers", "0", "--out", "voc"])
    assert "11-point" in capsys.readouterr().out
    by_name = {c["name"]: c["ap"] for c in numbers_of(Path("coco"))["voc"]["classes"]}
    voc = {c["name"]: c["ap"] for c in numbers_of(Path("voc"))["voc"]["classes"]}
    assert by_name.keys() == voc.keys()


def test_predict_writes_pictures_and_json(tiny_run, tiny_scenes):
    image = Image.effect_noise((90, 60), 40).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees when shown
    image.save("turned.jpg", exif=exif)
    arguments = [str(tiny_run / "model.safetensors"), "turned.jpg", str(tiny_scenes / "val")]
    predict.main([*arguments, "--score", "0.01", "--device", "cpu"])
    rows = json.loads(Path("predictions/predictions.json").read_text())
    assert len(rows) == 7 and (rows[0]["width"], rows[0]["height"]) == (60, 90)
    assert len(list(Path("predictions").glob("*.png"))) == 7
    for row in rows:
        for found in row["detections"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 < x2 <= row["width"] and 0 <= y1 < y2 <= row["height"]
            assert 0.01 <= found["score"] <= 1


def test_two_processes_train_and_count_every_image_once(tiny_scenes):
    arguments = training_arguments(tiny_scenes, "--run-dir", "run", epochs=1)
    arguments[arguments.index("--trainer.devices") + 1] = "2"
    tool = [sys.executable, str(PROJECT / "tools" / "train_det.py")]
    done = subprocess.run(
        [*tool, *arguments, "--trainer.strategy", "ddp"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    together = numbers_of(Path("run/evaluation"))["coco"]
    assert together["images"] == 6
    model = "run/model.safetensors"
    evaluate.main([model, "--data", str(tiny_scenes), "--workers", "0", "--out", "alone"])
    alone = numbers_of(Path("alone"))["coco"]
    assert alone["images"] == 6
    assert alone["numbers"] == pytest.approx(together["numbers"], abs=1e-6, nan_ok=True)
