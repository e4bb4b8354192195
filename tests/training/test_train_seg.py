"""The segmentation command: what it writes, what it says, how it refuses, its experiments."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from locations import PROJECT
from long_cases import first_now
from PIL import Image
from tiny_runs import differences, files_below
from tiny_segmenters import UNET_ARGS, segmentation_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.inference import predict
from densenet_backbones.inference.model_file import read_weights
from densenet_backbones.training import running
from densenet_backbones.training.arguments import SEGMENTATION_FORM, list_configs
from densenet_backbones.training.cli import train_seg
from densenet_backbones.training.report import name_command
from densenet_backbones.training.tasks import task

CONFIGS = list_configs(SEGMENTATION_FORM)

PROMISED = [
    *("config.yaml", "environment.json", "log.txt", "metrics.csv", "model.safetensors"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *("pictures/train_batch_0.png", "pictures/train_batch_1.png", "pictures/training_curves.png"),
    *("pictures/predictions_step_000003.png", "pictures/predictions_step_000006.png"),
    *("evaluation/table.txt", "evaluation/metrics.json", "evaluation/iou.csv"),
    *("evaluation/confusion_matrix.csv", "evaluation/confusion_matrix.png"),
    "evaluation/predictions.png",
]


def test_a_training_writes_all_that_it_promises(tiny_segmentation):
    assert set(PROMISED) <= set(files_below(tiny_segmentation))
    for name in PROMISED:
        if name.endswith(".png"):
            with Image.open(tiny_segmentation / name) as picture:
                assert len(np.unique(np.asarray(picture.convert("L")))) > 5, name
    log = (tiny_segmentation / "log.txt").read_text()
    assert "unet: 13,065 parameters, 0.01 GMAC at 64x64." in log
    assert (tiny_segmentation / "evaluation/table.txt").read_text() in log
    assert "Trained segmenter:" in log and "dsod" not in log
    assert f"{name_command('predict')} " in log and f"{name_command('export')} " in log


def rows_of(file):
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def test_metrics_have_a_row_a_step_and_an_evaluation_an_epoch(tiny_segmentation):
    rows = rows_of(tiny_segmentation / "metrics.csv")
    trained = [row for row in rows if row["train/loss"]]
    evaluated = [row for row in rows if row["val/mIoU"]]
    assert [int(row["step"]) for row in trained] == [0, 1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in evaluated] == [2, 5]
    for row in trained:
        parts = float(row["train/cross_entropy"]) + float(row["train/dice"])
        assert float(row["train/loss"]) == pytest.approx(parts, rel=1e-5)
    assert all(row["val/boundary_F"] and row["val/pixel_accuracy"] for row in evaluated)


def test_the_report_is_that_of_the_best_checkpoint(tiny_segmentation):
    found = json.loads((tiny_segmentation / "evaluation/metrics.json").read_text())
    rows = rows_of(tiny_segmentation / "metrics.csv")
    best = max(float(row["val/mIoU"]) for row in rows if row["val/mIoU"])
    assert found["numbers"]["mIoU"] == pytest.approx(best, rel=1e-6)
    assert found["images"] == 7 and len(found["classes"]) == 7
    # the same matrix in both files, and IoU by hand from it
    text = list(csv.reader((tiny_segmentation / "evaluation/confusion_matrix.csv").open()))
    matrix = np.array([[int(cell) for cell in row[1:]] for row in text[1:]])
    assert matrix.tolist() == found["confusion_matrix"] and matrix.sum() > 7 * 40 * 40
    assert text[0][1:] == [row[0] for row in text[1:]] == [c["name"] for c in found["classes"]]
    hits = matrix.diagonal()
    iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
    assert [c["iou"] for c in found["classes"]] == pytest.approx(iou)
    per_class = rows_of(tiny_segmentation / "evaluation/iou.csv")
    assert [float(row["iou"]) for row in per_class] == pytest.approx(iou)


def test_the_slim_file_has_the_best_weights(tiny_segmentation):
    state = torch.load(tiny_segmentation / "checkpoints/best.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "densenet_backbones.segmenter"} <= set(state)
    best = {name.removeprefix("model."): w for name, w in state["state_dict"].items()}
    assert differences(read_weights(tiny_segmentation / "model.safetensors"), best) == []


def test_config_yaml_is_the_same_experiment(tiny_segmentation, capsys):
    with pytest.raises(SystemExit) as end:
        train_seg(["--config", str(tiny_segmentation / "config.yaml"), "--print_config"])
    assert end.value.code == 0
    written = yaml.safe_load((tiny_segmentation / "config.yaml").read_text())
    assert yaml.safe_load(capsys.readouterr().out) == written
    assert written["model"]["args"] == UNET_ARGS


@pytest.mark.long
def test_masks_with_several_classes_a_pixel(tiny_scenes, tmp_path):
    """COCO's instances as a multilabel task, from training to evaluation and prediction."""
    run = tmp_path / "run"
    several = ("--data.task", "multilabel", "--data.layout", "coco_instances")
    train_seg(segmentation_arguments(tiny_scenes, *several, "--run-dir", str(run), epochs=1))
    found = json.loads((run / "evaluation/metrics.json").read_text())
    classes = len(found["classes"])
    assert found["task"] == "multilabel" and np.shape(found["confusion_matrix"]) == (classes, 2, 2)
    rows = rows_of(run / "evaluation/confusion_matrix.csv")
    assert len(rows) == classes and list(rows[0])[1:4] == [
        *("true_negative", "false_positive", "false_negative"),
    ]
    assert not (run / "evaluation/confusion_matrix.png").exists()
    out = tmp_path / "out"
    image = str(next((tiny_scenes / "val").iterdir()))
    predict.main([str(run / "model.safetensors"), image, "--out", str(out), "--device", "cpu"])
    (row,) = json.loads((out / "predictions.json").read_text())
    assert len(row["masks"]) == classes
    for number, file in enumerate(row["masks"]):
        labels = np.asarray(Image.open(file))
        pixels = [c["pixels"] for c in row["classes"] if c["label"] == number]
        assert int(labels.sum()) == sum(pixels)


@pytest.mark.long
def test_one_class_against_the_rest(tiny_masks, tmp_path):
    """Folders of images and masks of 0 and 1 as a binary task: a model of one logit."""
    for split in ("train", "val"):
        for record in read_segmentation(tiny_masks, split).records[:4]:
            for folder in ("images", "masks"):
                (tmp_path / "data" / folder / split).mkdir(parents=True, exist_ok=True)
            Image.open(record.path).save(tmp_path / f"data/images/{split}/{record.name}.png")
            mask = record.read_mask()
            there = np.where(mask == 255, mask, mask > 0).astype(np.uint8)
            Image.fromarray(there).save(tmp_path / f"data/masks/{split}/{record.name}.png")
    (tmp_path / "data/classes.yaml").write_text("classes: [ground, object]\n")
    run = tmp_path / "run"
    binary = ("--data.task", "binary", "--data.layout", "folders", "--run-dir", str(run))
    train_seg(segmentation_arguments(tmp_path / "data", *binary, epochs=1))
    found = json.loads((run / "evaluation/metrics.json").read_text())
    assert found["task"] == "binary" and np.shape(found["confusion_matrix"]) == (2, 2)
    assert [c["name"] for c in found["classes"]] == ["ground", "object"]
    assert read_weights(run / "model.safetensors")["net.classifier.weight"].shape[0] == 1
    assert (run / "evaluation/confusion_matrix.png").is_file()


@pytest.mark.long
@pytest.mark.usefixtures("empty_figures")
def test_two_images_are_learnt_by_heart(tiny_masks, tmp_path, monkeypatch):
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    options = ("--overfit", "2", "--batch-size", "2", "--ema_decay", "null")
    steps = ("--trainer.check_val_every_n_epoch", "40", "--model.optimizer.lr", "0.02")
    run = ("--run-dir", str(tmp_path / "run"))
    train_seg(segmentation_arguments(tiny_masks, *options, *steps, *run, epochs=40))
    rows = rows_of(tmp_path / "run/metrics.csv")
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 40
    assert losses[-1] < 0.4 * losses[0]


def test_weights_of_other_classes_are_taken_where_they_fit(
    tiny_segmentation, tiny_masks, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "VOC"
    shutil.copytree(tiny_masks, root)
    monkeypatch.setattr(running, "fit", lambda started: None)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    (root / "labelmap.txt").write_text(relabelled((root / "labelmap.txt").read_text()))
    weights = ("--init-from", str(tiny_segmentation / "model.safetensors"))
    run = ("--run-dir", str(tmp_path / "run"))
    train_seg(segmentation_arguments(root, *weights, *run))
    said = capsys.readouterr().out
    assert "tensors taken" in said
    assert "left out: net.classifier.weight: (7, 8, 1, 1), the model's is (8, 8, 1, 1)" in said


def relabelled(text):
    """A map of one class more."""
    return text.rstrip("\n") + "\ncomet:1,2,3::\n"


# -- wrong usage -----------------------------------------------------------------------------------


@pytest.fixture
def refused(refused_command, tmp_path, monkeypatch):
    """Runs `train_seg` in an empty folder, where nothing must be written."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        found = refused_command(train_seg, *argv)
        assert not list(tmp_path.iterdir())
        return found

    return run


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--model.los.terms", "{}"), "did you mean '--model.loss"),
        (("--model.args", '{"atention": true}'), "did you mean '--model.args.attention'?"),
        (("--config", "dsod300_voc"), "there is no file dsod300_voc"),
        (("--config", "fcdensenet57_camvid"), "did you mean 'fcdensenet56_camvid'?"),
        (("--data.augmentation", "ssd"), "'full_size', 'none' or list ('[a, b]'), got ssd"),
        (("--epochs", "0"), "(--epochs) must be given, at least 1: "),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(argv, expected, refused):
    code, message = refused(*argv)
    assert code == 2
    assert expected in message and "<class" not in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--model.segmenter", "unett"), "no segmenter is called 'unett'; did you mean 'unet'?"),
        (("--model.segmenter", "smp:Unnet"), "has no 'Unnet'; did you mean 'Unet'?"),
        (
            ("--model.segmenter", "smp:Unet", "--model.args", '{"encoder": "x"}'),
            "smp:Unet has no argument 'encoder'",
        ),
        (
            ("--model.args", '{"backbone": "densenet12_features"}'),
            "no backbone is called 'densenet12_features'; did you mean 'densenet121_features'?",
        ),
        (("--model.loss", '{"terms": {"dise": 1}}'), "model.loss: terms must be one or more of"),
        (("--model.loss.label_smoothing", "1"), "model.loss: label_smoothing must be in [0, 1)"),
        (("--model.optimizer.layer_decay", "2"), "layer_decay must lie in (0, 1], got 2"),
        (("--model.boundary_tolerance", "1"), "boundary_tolerance must lie in (0, 1) or be null"),
        (("--data", "nowhere"), "nowhere"),
        (("--data.val_split", "test"), "test"),
        (("--overfit", "100"), "overfit_images is 100, but the data has only 12 training images"),
        (("--data.crop", "[8, 8]"), "data.crop must be (H, W), each at least 32"),
    ],
)
def test_wrong_values_are_one_line_before_anything_is_written(argv, expected, refused, tiny_masks):
    code, message = refused(*segmentation_arguments(tiny_masks, *argv))
    assert code == 1
    assert expected in message


def test_a_detectors_checkpoint_is_not_gone_on_from(tiny_run, tiny_masks, capsys):
    with pytest.raises(SystemExit) as end:
        checkpoint = str(tiny_run / "checkpoints/last.ckpt")
        train_seg(segmentation_arguments(tiny_masks, "--ckpt_path", checkpoint))
    assert end.value.code == 1
    assert "there is no densenet_backbones.segmenter" in capsys.readouterr().err


def test_help_is_a_page_about_segmentation(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        train_seg(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert 20 <= len(text.splitlines()) <= 40
    assert "segmentation model" in text and "densenet list" in text and "dsod" not in text


# -- shipped experiments ---------------------------------------------------------------------------


def test_every_config_file_is_shipped():
    folder = PROJECT / "configs" / "seg"
    files = {name.removesuffix(".yaml") for name in os.listdir(folder) if name.endswith(".yaml")}
    assert set(CONFIGS) == files and "quickstart" in files


SMALLER = {
    "unet": {**UNET_ARGS, "weights_backbone": None},
    "fcdensenet56": {"growth_rate": 2, "block_config": [1] * 6, "num_init_features": 4},
    "fcdensenet103": {"growth_rate": 2, "block_config": [1] * 6, "num_init_features": 4},
    "smp:DeepLabV3Plus": {"encoder_weights": None, "decoder_channels": 8},
    "smp:Unet": {"encoder_weights": None, "encoder_name": "resnet18"},
}


@pytest.mark.parametrize("name", first_now(dict.fromkeys(["quickstart", *CONFIGS])))
def test_every_shipped_config_runs(name, tiny_masks, tmp_path, monkeypatch, capsys):
    """One batch of each on drawn scenes; small, and without weights from the net."""
    monkeypatch.chdir(tmp_path)
    written = yaml.safe_load(CONFIGS[name].read_text())
    segmenter = written["model"]["segmenter"]
    small = [
        f"--model.args.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in SMALLER[segmenter].items()
    ]
    train_seg(
        [
            *("--config", name, "--data", str(tiny_masks), *small, "--dry-run"),
            *("--data.layout", "voc", "--data.crop", "[64, 64]", "--trainer.accelerator", "cpu"),
            *("--batch-size", "2", "--data.num_workers", "0", "--data.val_split", "val"),
        ]
    )
    said = capsys.readouterr().out
    assert "Dry run done" in said and f"{segmenter}: " in said
    assert not (tmp_path / "runs").exists()


def test_a_norm_of_a_single_value_gets_a_sentence(tiny_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    segmenter = {"encoder_weights": None, "encoder_name": "resnet18", "decoder_channels": 8}
    small = ("--model.segmenter", "smp:DeepLabV3Plus", "--model.args", json.dumps(segmenter))
    with pytest.raises(SystemExit) as end:
        train_seg(segmentation_arguments(tiny_masks, *small, "--batch-size", "1", epochs=1))
    assert end.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "sees one value of each channel" in error and "--batch-size of 2 or more" in error


@pytest.mark.parametrize(
    ("segmenter", "args", "options", "on"),
    [
        ("smp:Unet", SMALLER["smp:Unet"], (), True),
        ("unet", UNET_ARGS, ("--memory", "none"), False),
    ],
)
def test_kernels_run_what_they_know_of_nets_without_dense_blocks_too(
    segmenter, args, options, on, tiny_masks, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    asked = []
    inner = task.use_compiled_convolutions
    monkeypatch.setattr(task, "use_compiled_convolutions", lambda on: asked.append(on) or inner(on))
    net = ("--model.segmenter", segmenter, "--model.args", json.dumps(args), *options)
    train_seg([*segmentation_arguments(tiny_masks, *net, epochs=1), "--dry-run"])
    assert asked and set(asked) == {on}


@pytest.mark.parametrize(("name", "power"), [("median", 1.0), ("sqrt_median", 0.5)])
def test_class_weights_come_from_the_training_masks(name, power, tiny_masks, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(running, "fit", kept.append)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    run_dir = ("--run-dir", str(tmp_path / "r"))
    weighed = ("--model.loss.class_weights", f"{name}_frequency", *run_dir)
    train_seg(segmentation_arguments(tiny_masks, *weighed))
    (started,) = kept
    weights = started.model.loss.class_weights
    records = started.datamodule.train_set.records
    masks = [record.read_mask() for record in records]
    shares = []
    for label in range(7):
        there = [mask for mask in masks if (mask == label).any()]
        labelled = sum(int((mask != 255).sum()) for mask in there)
        shares.append(sum(int((mask == label).sum()) for mask in there) / labelled)
    expected = (np.median(shares) / np.array(shares)) ** power
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert not [name for name in started.model.state_dict() if not name.startswith("model.")]


def test_the_best_weights_are_those_of_the_highest_miou(tiny_segmentation):
    state = read_checkpoint(tiny_segmentation / "checkpoints/last.ckpt")
    found = [s for key, s in state["callbacks"].items() if "val/mIoU" in key]
    rows = rows_of(tiny_segmentation / "metrics.csv")
    best = max(float(row["val/mIoU"]) for row in rows if row["val/mIoU"])
    assert [float(s["best_model_score"]) for s in found] == pytest.approx([best], rel=1e-5)
