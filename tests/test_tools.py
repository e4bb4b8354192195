"""The tools as a user runs them: what a training leaves behind, evaluation, prediction, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import PROJECT
from PIL import Image
from tiny_runs import DETECTOR_ARGS, files_below, signals_as_before, training_arguments

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.training import evaluate, predict
from densenet_backbones.training.cli import train_det
from densenet_backbones.training.detector import KEY, load

CONFIGS = sorted((PROJECT / "configs" / "det").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with signals_as_before():
        yield


def numbers_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_training_leaves_what_the_readme_says(tiny_run):
    expected = [
        *("model.safetensors", "metrics.csv", "config.yaml", "environment.json", "log.txt"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("pictures/train_batch_0.png", "pictures/training_curves.png"),
        *("evaluation/table.txt", "evaluation/metrics.json", "evaluation/results.json"),
        *("evaluation/pr_curves.png", "evaluation/confusion_matrix.png"),
        "evaluation/predictions.png",
    ]
    missing = [name for name in expected if not (tiny_run / name).is_file()]
    assert not missing
    assert list(tiny_run.glob("events.out.tfevents.*"))
    assert list((tiny_run / "pictures").glob("predictions_step_*.png"))
    log = (tiny_run / "log.txt").read_text()
    assert "Train on your own" in log and "AP50" in log
    for file in tiny_run.rglob("*.png"):
        with Image.open(file) as image:
            image.load()


def test_checkpoints_need_no_pickle_and_describe_themselves(tiny_run):
    state = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert state[KEY]["name"] == "dsod_tiny" and state[KEY]["args"] == DETECTOR_ARGS
    assert "figure" in state[KEY]["categories"]["names"]


def test_both_files_predict_alike_and_as_the_evaluation_did(tiny_run, tiny_scenes):
    best = load(tiny_run / "checkpoints" / "best.ckpt")
    slim = load(tiny_run / "model.safetensors")
    results = json.loads((tiny_run / "evaluation" / "results.json").read_text())
    truth = json.loads((tiny_scenes / "annotations" / "instances_val.json").read_text())
    for entry in truth["images"]:
        file = tiny_scenes / "val" / entry["file_name"]
        first, second = best.predict(file, 0.0), slim.predict(file, 0.0)
        assert torch.equal(first.boxes, second.boxes) and first.names == second.names
        scores = sorted((r["score"] for r in results if r["image_id"] == entry["id"]), reverse=True)
        # float32 convolutions round differently in batches of another size
        torch.testing.assert_close(first.scores, torch.tensor(scores), atol=1e-5, rtol=1e-5)


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


def test_arrays_are_checked(tiny_run):
    detector = load(tiny_run / "model.safetensors")
    assert len(detector.predict(np.zeros((64, 64, 3), np.uint8), 1.0)) == 0
    with pytest.raises(ValueError, match="uint8 RGB"):
        detector.predict(np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        detector.predict(np.zeros((64, 64, 3), np.uint8), 2.0)


def test_files_that_are_no_detector_are_refused(tiny_run):
    torch.save({"weight": torch.zeros(1)}, "weights.pt")
    torch.save(torch.nn.Linear(1, 1), "module.pt")
    for name, reason in (("weights.pt", "no description"), ("module.pt", "refused")):
        with pytest.raises(CheckpointError, match=reason):
            load(name)
    with pytest.raises(CheckpointError, match="no such file"):
        load("absent.ckpt")


def test_init_from_takes_what_fits_other_classes(tiny_run, tiny_scenes, capsys):
    source = json.loads((tiny_scenes / "annotations" / "instances_train.json").read_text())
    (Path("two") / "annotations").mkdir(parents=True)
    kept = source["categories"][:2]
    ids = {c["id"] for c in kept}
    for split in ("train", "val"):
        os.symlink(tiny_scenes / split, Path("two") / split)
        part = json.loads((tiny_scenes / "annotations" / f"instances_{split}.json").read_text())
        part["categories"] = kept
        part["annotations"] = [a for a in part["annotations"] if a["category_id"] in ids]
        file = Path("two") / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(part))
    model = tiny_run / "model.safetensors"
    train_det(training_arguments("two", "--init-from", str(model), epochs=1))
    out = capsys.readouterr().out
    assert "Started from" in out and "left out: head." in out
    assert load("runs/quickstart/model.safetensors").categories.names == tuple(
        c["name"] for c in kept
    )


def test_nothing_is_overwritten(tiny_run, tiny_scenes, capsys):
    before = files_below(tiny_run)
    with pytest.raises(SystemExit) as stop:
        train_det(training_arguments(tiny_scenes, "--run-dir", str(tiny_run)))
    assert stop.value.code == 2 and "already holds files" in capsys.readouterr().err
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/mine.txt").write_text("kept")
    train_det(training_arguments(tiny_scenes, epochs=1))
    assert [f.name for f in Path("runs/quickstart").iterdir()] == ["mine.txt"]
    assert Path("runs/quickstart-2/model.safetensors").is_file()
    assert files_below(tiny_run) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data.batch_sizee", "3"], 2, "batch_size"),
        (["--data.batch_size", "four"], 2, "batch_size"),
        (["--config", "dsod300_vok"], 2, "dsod300_voc"),
        (["--data", "absent"], 1, "absent"),
        (["--model.detector", "dsod_tinny"], 1, "dsod_tiny"),
        (["--model.args", '{"image_sise": 3}'], 1, "image_size"),
        (["--resume", "--run-dir", "absent"], 2, "nothing to resume"),
        (["--data.fraction", "2"], 1, "fraction"),
    ],
)
def test_mistakes_get_one_sentence(arguments, code, said, tiny_scenes, capsys):
    given = arguments if "--data" in arguments else [*arguments, "--data", str(tiny_scenes)]
    with pytest.raises(SystemExit) as stop:
        train_det(given)
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == code
    assert len(error) == 1 and error[0].startswith("error: ") and said in error[0]
    assert not Path("runs").exists()


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as stop:
        train_det(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and len(lines) <= 40 and max(map(len, lines)) <= 100


def test_print_config_can_be_used_again(capsys):
    with pytest.raises(SystemExit):
        train_det(["--config", "dsod300_voc", "--epochs", "3", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_epochs"] == 3 and printed["model"]["detector"] == "dsod300"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_runs(config, tiny_scenes):
    content = yaml.safe_load(config.read_text())
    args = content["model"].get("args", {})
    small = {**args, "image_size": 96, "pretrained_backbone": False}
    widths = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
    small["backbone_kwargs"] = {**args.get("backbone_kwargs", {}), **widths}
    small["adapter_channels"] = [8, 8, 8]
    voc = content["data"].get("layout") == "voc"
    train_det(
        [
            *("--config", str(config), "--data", str(tiny_scenes / "VOC" if voc else tiny_scenes)),
            *("--model.args", json.dumps(small), "--batch-size", "2", "--data.num_workers", "0"),
            *("--trainer.accelerator", "cpu", "--dry-run"),
        ]
    )


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
