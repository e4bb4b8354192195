"""The training command: what it writes, what it says, and how it refuses."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from long_cases import first_now
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    DETECTOR_ARGS,
    PYRAMID_ARGS,
    RCNN_ARGS,
    differences,
    files_below,
    shallow_heads,
    training_arguments,
)

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.model_file import read_weights
from densenet_backbones.training import running
from densenet_backbones.training.arguments import list_configs
from densenet_backbones.training.cli import train_det

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, tiny_scenes):
    """Runs `train_det` in an empty folder; returns (exit code, its one line on stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        with pytest.raises(SystemExit) as end:
            train_det(list(argv))
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        lines = [line for line in lines if not line.startswith(("Seed set", "GPU available"))]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return end.value.code, lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """Runs `train_det` up to the training itself; returns what would be trained."""
    monkeypatch.chdir(tmp_path)
    kept = []
    monkeypatch.setattr(running, "fit", kept.append)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)

    def run(*argv):
        train_det(list(argv))
        return kept.pop()

    return run


# -- the quick start -------------------------------------------------------------------------------

PROMISED = [
    *("config.yaml", "environment.json", "log.txt", "metrics.csv", "model.safetensors"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *("pictures/train_batch_0.png", "pictures/train_batch_1.png", "pictures/training_curves.png"),
    *("pictures/predictions_step_000003.png", "pictures/predictions_step_000006.png"),
    *("evaluation/table.txt", "evaluation/metrics.json", "evaluation/results.json"),
    *("evaluation/pr_curves.png", "evaluation/confidence_curves.png"),
    *("evaluation/confusion_matrix.png", "evaluation/predictions.png"),
]


def test_a_training_writes_all_that_it_promises(tiny_run):
    assert set(PROMISED) <= set(files_below(tiny_run))
    for name in PROMISED:
        if name.endswith(".png"):
            with Image.open(tiny_run / name) as picture:
                assert len(np.unique(np.asarray(picture.convert("L")))) > 5, name
    log = (tiny_run / "log.txt").read_text()
    assert "dsod_tiny: 46,668 parameters" in log
    assert "Learning rate 0.01, not scaled to the batch." in log
    assert (tiny_run / "evaluation/table.txt").read_text() in log
    assert "tools/predict.py" in log or "densenet-predict" in log


def test_no_environment_variable_is_left_behind(tiny_run):
    assert not [
        name for name, value in os.environ.items() if str(tiny_run.name) in value.split("/")
    ]


def test_metrics_have_a_row_a_step_and_an_evaluation_an_epoch(tiny_run):
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["train/loss"]]
    evaluated = [row for row in rows if row["val/AP"]]
    assert [int(row["step"]) for row in trained] == [0, 1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in evaluated] == [2, 5]  # the report adds none
    for row in trained:
        parts = float(row["train/classification"]) + float(row["train/bbox_regression"])
        assert float(row["train/loss"]) == pytest.approx(parts, rel=1e-5)
    events = EventAccumulator(str(tiny_run)).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [0, 1, 2, 3, 4, 5]
    found = [e.value for e in events.Scalars("val/AP")]
    assert found == pytest.approx([float(row["val/AP"]) for row in evaluated], rel=1e-6)


def test_the_report_is_that_of_the_best_checkpoint(tiny_run, tiny_scenes, capsys):
    numbers = json.loads((tiny_run / "evaluation/metrics.json").read_text())
    with (tiny_run / "metrics.csv").open(newline="") as file:
        best = max(float(row["val/AP"]) for row in csv.DictReader(file) if row["val/AP"])
    truth = COCO(str(tiny_scenes / "annotations/instances_val.json"))
    reference = COCOeval(truth, truth.loadRes(str(tiny_run / "evaluation/results.json")), "bbox")
    reference.evaluate(), reference.accumulate(), reference.summarize()
    assert numbers["coco"]["numbers"]["AP"] == pytest.approx(best, rel=1e-6)
    assert numbers["coco"]["numbers"]["AP"] == pytest.approx(reference.stats[0], abs=1e-12)
    assert numbers["coco"]["numbers"]["AR100"] == pytest.approx(reference.stats[8], abs=1e-12)


def test_the_slim_file_has_the_best_weights(tiny_run):
    state = read_checkpoint(tiny_run / "checkpoints/best.ckpt")["state_dict"]
    best = {name.removeprefix("model."): weight for name, weight in state.items()}
    assert differences(read_weights(tiny_run / "model.safetensors"), best) == []


def test_checkpoints_need_no_pickled_code(tiny_run):
    for name in ("best", "last"):
        state = torch.load(tiny_run / f"checkpoints/{name}.ckpt", weights_only=True)
        assert {"state_dict", "optimizer_states", "densenet_backbones.detector"} <= set(state)


def test_config_yaml_is_the_same_experiment(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train_det(["--config", str(tiny_run / "config.yaml"), "--print_config"])
    assert end.value.code == 0
    written = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert yaml.safe_load(capsys.readouterr().out) == written
    assert written["model"]["args"] == DETECTOR_ARGS and written["trainer"]["max_epochs"] == 2


def test_a_second_run_leaves_the_first_alone(tiny_run, tiny_scenes, prepared, monkeypatch, capsys):
    monkeypatch.chdir(tiny_run.parents[1])
    before = files_below(tiny_run)
    config = str(tiny_run / "config.yaml")
    second = prepared("--config", config, "--run-dir", "runs/named").folder.path
    assert str(second) == "runs/named" and (tiny_run.parent / "named/config.yaml").is_file()
    assert str(prepared(*training_arguments(tiny_scenes)).folder.path) == "runs/quickstart-2"
    assert str(prepared("--config", config).folder.path) == "runs/quickstart-3"  # its run's name
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, "--run-dir", str(tiny_run)))
    assert end.value.code == 2
    assert "already holds files" in capsys.readouterr().err
    assert files_below(tiny_run) == before


def test_a_dry_run_writes_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_det(["--config", str(tiny_run / "config.yaml"), "--dry-run"])
    assert "Dry run done" in capsys.readouterr().out
    assert files_below(tmp_path) == {}


def test_a_dry_run_refuses_a_folder_that_the_run_could_not_write(tiny_run, tmp_path, refused):
    (tmp_path / "file").write_text("")
    words = ("--config", str(tiny_run / "config.yaml"), "--run-dir", str(tmp_path / "file/run"))
    before = files_below(tmp_path)
    errors = [refused(*words, *dry) for dry in ((), ("--dry-run",))]
    assert errors[0] == errors[1] and "not a directory" in errors[1][1]
    assert files_below(tmp_path) == before


def test_a_run_without_evaluation_or_detections_ends_well(tiny_scenes, tmp_path, capsys):
    options = ("--model.args.score_thresh", "1.0", "--trainer.check_val_every_n_epoch", "5")
    run_dir = tmp_path / "run"
    train_det(training_arguments(tiny_scenes, *options, "--run-dir", str(run_dir), epochs=1))
    assert json.loads((run_dir / "evaluation/results.json").read_text()) == []
    assert not (run_dir / "checkpoints/best.ckpt").exists()
    for name in ("predictions.png", "pr_curves.png", "confusion_matrix.png"):
        assert (run_dir / "evaluation" / name).is_file()
    assert "last.ckpt" in capsys.readouterr().out


# -- weights to start from -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def four_classes(tiny_scenes, tmp_path_factory):
    """The scenes with two of their six classes taken away."""
    root = tmp_path_factory.mktemp("four") / "scenes"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("panoptic*", "VOC"))
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"] = content["categories"][:4]
        kept = {category["id"] for category in content["categories"]}
        found = [a for a in content["annotations"] if a["category_id"] in kept]
        file.write_text(json.dumps({**content, "annotations": found}))
    return root


@pytest.mark.parametrize("name", ["", "model.safetensors", "checkpoints/best.ckpt"])
def test_weights_of_other_classes_are_taken_where_they_fit(
    name, tiny_run, four_classes, prepared, capsys
):
    started = prepared(*training_arguments(four_classes, "--init-from", str(tiny_run / name)))
    model, file = started.model.model, read_weights(find_model_file(tiny_run / name))
    own = model.state_dict()
    other = {key for key in file if file[key].shape != own[key].shape}
    assert other and all("head" in key for key in other)
    assert all(torch.equal(own[key], file[key]) for key in set(file) - other)
    assert not any(torch.equal(own[key], file[key]) for key in other)
    said = capsys.readouterr().out
    assert f"{len(file) - len(other)} of {len(own)} tensors taken" in said
    assert all(f"left out: {key}: " in said for key in other)
    assert "Little of " not in said
    assert (
        said in (started.folder.path / "log.txt").read_text()
        or "tensors taken" in (started.folder.path / "log.txt").read_text()
    )


@pytest.fixture(scope="module")
def renumbered(tiny_scenes, tmp_path_factory):
    """Return the scenes with other ids: in the same order of classes, and in the reversed one."""
    folders = []
    for name, number in (("shifted", lambda i: 10 * i), ("reversed", lambda i: 100 - i)):
        root = tmp_path_factory.mktemp("renumbered") / name
        shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("VOC", "panoptic*"))
        for split in ("train", "val"):
            file = root / f"annotations/instances_{split}.json"
            content = json.loads(file.read_text())
            for entry in content["categories"]:
                entry["id"] = number(entry["id"])
            for entry in content["annotations"]:
                entry["category_id"] = number(entry["category_id"])
            file.write_text(json.dumps(content))
        folders.append(root)
    return folders


def test_weights_of_classes_in_another_order_are_refused_with_the_order_to_give(
    tiny_run, renumbered, prepared, refused, capsys
):
    weights = ("--init-from", str(tiny_run / "model.safetensors"))
    names = load(tiny_run / "model.safetensors").categories.names
    code, message = refused(*training_arguments(renumbered[1], *weights))
    assert code == 1 and "model.safetensors: has the classes in the order 'circle'" in message
    order = message.rpartition("--data.classes ")[2].strip("'")
    assert json.loads(order) == list(names)
    started = prepared(*training_arguments(renumbered[1], *weights, "--data.classes", order))
    assert started.model.spec.categories.names == names
    started = prepared(*training_arguments(renumbered[0], *weights))
    assert "its classes are" not in capsys.readouterr().out


def test_as_many_other_classes_are_said(tiny_run, tiny_scenes, prepared, tmp_path, capsys):
    root = tmp_path / "renamed"
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("VOC", "panoptic*"))
    for file in (root / "annotations").glob("instances_*.json"):
        file.write_text(file.read_text().replace('"circle"', '"disk"'))
    weights = ("--init-from", str(tiny_run / "model.safetensors"))
    prepared(*training_arguments(root, *weights))
    assert "its classes are 'circle', " in capsys.readouterr().out


def test_a_run_goes_on_with_other_ids_but_not_with_another_order(
    tiny_run, renumbered, prepared, refused, tmp_path
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    resume = ("--run-dir", str(run), "--resume")
    assert prepared(*training_arguments(renumbered[0], *resume)).resumed
    code, message = refused(*training_arguments(renumbered[1], *resume))
    assert code == 2 and "the detector's categories was {'names': ['circle'" in message


def test_weights_of_a_pickled_model_are_refused(refused, tiny_scenes, tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    code, message = refused(*training_arguments(tiny_scenes, "--init-from", "model.pt"))
    assert code == 1
    assert "torch.nn.modules.linear.Linear" in message and "can run any program" in message
    assert not (tmp_path / "runs").exists()


def test_weights_of_which_none_fits_are_refused(refused, tiny_scenes, tmp_path):
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "model.pt")
    code, message = refused(*training_arguments(tiny_scenes, "--init-from", "model.pt"))
    assert code == 1
    assert "of its 1 weight none fits dsod_tiny; first: other.weight" in message


# -- wrong usage -----------------------------------------------------------------------------------


def _short(value):
    return " ".join(value)[:30] if isinstance(value, tuple) else ""


WRONG_USAGE = [
    (("--model.optimzer.lr", "0.1"), "did you mean '--model.optimizer.lr'?"),
    (("--data.bach_size=4",), "did you mean '--data.batch_size'?"),
    (("--batch-sise", "4"), "did you mean '--batch-size'?"),
    (("--run-dri", "x"), "did you mean '--run"),
    (("surplus",), "unrecognized arguments: surplus; write --data surplus"),
    (("epochs=3", "lr=1"), "unrecognized arguments: epochs=3 lr=1; write --epochs 3"),
    (("--model", "dsod_tiny"), "got dsod_tiny; its entries have options of their own: --model.de"),
    (("--cfg-options", "a=1"), "here each entry of a config is an option, such as --trainer."),
    (("--batch-size", "many"), "data.batch_size must be int or one of 'auto', got many"),
    (("--data", ""), "--data must be a path, got an empty word"),
    (("--epochs", "2.5"), "trainer.max_epochs must be int or null, got 2.5"),
    (("--data.augmentation", "heavy"), "must be one of 'ssd', 'light', 'flip', "),
    (("--model.args", "[1]"), "model.args must be dict ('{a: b}') or null, got [1]"),
    (("--data.drop", "a,b"), "data.drop must be list ('[a, b]'), got a,b"),
    (("--config", "dsod300_vok"), "did you mean 'dsod300_voc'? (shipped: dsod300_coco, "),
    (("--config", "none.yaml"), "there is no file none.yaml (shipped: "),
    (("--epochs", "0"), "(--epochs) must be given, at least 1: "),
    (("--epochs", "-1"), "(--epochs) must be given, at least 1: "),
    (("--resume", "--init-from", "x"), "give one of them"),
    (("--ckpt_path", "x", "--init-from", "x"), "give one of them"),
]


@pytest.mark.parametrize(("argv", "expected"), WRONG_USAGE, ids=_short)
def test_wrong_usage_is_one_line_and_exit_code_2(argv, expected, refused, tmp_path):
    code, message = refused(*argv)
    assert code == 2
    assert expected in message
    assert "<class" not in message and "usage:" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  optimiser: {lr: 1}\n", "did you mean 'model.optimizer.lr'?"),
        ("trainer:\n  max_epochs: ten\n", "trainer.max_epochs must be int or null, got ten"),
        ("model: [unclosed\n", "mine.yaml: not valid YAML"),
        ("modle: {detector: dsod_tiny}\n", "did you mean 'model"),
    ],
)
def test_a_wrong_config_file_is_one_line_too(text, expected, refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    code, message = refused("--config", "mine.yaml")
    assert code == 2
    assert expected in message
    assert files_below(tmp_path).keys() == {"mine.yaml"}


WRONG_DATA = [
    (("--model.args", '{"image_size": 64, "bbox_reg_weights": 1}'), "no argument 'bbox_reg_weigh"),
    (("--model.args", '{"image_size": "big"}'), "image_size must be int or Sequence, got big"),
    (("--model.detector", "dsod30"), "no detector is called 'dsod30'; did you mean 'dsod300'?"),
    (("--model.detector", "yolo"), "no detector is called 'yolo'; densenet list detectors names"),
    (("--data", "nowhere"), "nowhere: there is no such file or folder; check the path"),
    (("--data", "."), "has neither COCO's nor VOC's layout"),
    (("--data.val_split", "test"), "has no annotations/instances_test.json"),
    (("--overfit", "0"), "data.overfit_images must be at least 1, got 0"),
    (("--overfit", "100"), "overfit_images is 100, but the data has only "),
    (("--data.fraction", "0"), "data.fraction must lie in (0, 1], got 0"),
    (("--batch-size", "0"), "data.batch_size must be at least 1, got 0"),
    (("--data.num_workers", "-1"), "data.num_workers must be at least 0, got -1"),
    (("--data.seed", "-1"), "data.seed must be at least 0, got -1"),
    (("--model.optimizer", '{"name": "sgdd"}'), "there is no 'sgdd'; did you mean 'sgd"),
    (("--model.optimizer.lr", "-1"), "optimizer.lr must be at least 0 and finite, got -1"),
    (("--model.schedule.warmup", "1"), "schedule.warmup must lie in [0, 1), got 1"),
    (("--ema_decay", "1"), "ema_decay must lie in [0, 1), got 1"),
    (("--init-from", "nowhere.ckpt"), "nowhere.ckpt: there is no such file"),
]


@pytest.mark.parametrize(("argv", "expected"), WRONG_DATA, ids=_short)
def test_wrong_values_are_one_line_before_anything_is_written(
    argv, expected, refused, tiny_scenes, tmp_path
):
    code, message = refused(*training_arguments(tiny_scenes, *argv))
    assert code == 1
    assert expected in message
    assert not list(tmp_path.iterdir())


def test_a_run_dir_that_cannot_be_made_is_one_line(refused, tiny_scenes, tmp_path):
    (tmp_path / "file").touch()
    code, message = refused(*training_arguments(tiny_scenes, "--run-dir", "file/run"))
    assert code == 1
    assert "file/run" in message


def test_a_missing_device_is_one_line(refused, tiny_scenes):
    code, message = refused(*training_arguments(tiny_scenes, "--trainer.devices", "0"))
    assert code == 2
    assert "devices" in message


# -- help ------------------------------------------------------------------------------------------


def test_help_is_a_page(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        train_det(["--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 40
    assert max(map(len, lines)) <= 100
    words = ("--data", "--resume", "--init-from", "--dry-run", "--profile", "--help-all")
    for word in (*words, "quickstart"):
        assert any(word in line for line in lines), word


def test_help_all_lists_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        train_det(["--help-all"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--trainer.gradient_clip_val", "--model.schedule.warmup", "--data.scenes.size"):
        assert option in text, option


@pytest.mark.parametrize("name", list_configs())
def test_print_config_is_yaml_with_the_short_flags_in_it(name, capsys):
    with pytest.raises(SystemExit) as end:
        train_det(["--config", name, "--print_config", "--data", "x", "--epochs", "7"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["data"]["root"], printed["trainer"]["max_epochs"]) == ("x", 7)
    written = yaml.safe_load(list_configs()[name].read_text())
    assert printed["model"]["detector"] == written["model"]["detector"]


# -- shipped experiments ---------------------------------------------------------------------------


def test_every_config_file_is_shipped():
    import densenet_backbones

    folder = os.path.join(os.path.dirname(densenet_backbones.__file__), "..", "configs", "det")
    files = {name.removesuffix(".yaml") for name in os.listdir(folder) if name.endswith(".yaml")}
    assert set(list_configs()) == files and "quickstart" in files


SMALLER = {
    "retinanet": {**PYRAMID_ARGS, "out_channels": 32},
    "fcos": {**PYRAMID_ARGS, "out_channels": 64},
    "fasterrcnn": RCNN_ARGS,
    "maskrcnn": RCNN_ARGS,
    "keypointrcnn": RCNN_ARGS,
    "ssd300": {"weights_backbone": None, "backbone_kwargs": DETECTOR_ARGS["backbone_kwargs"]},
}


@pytest.mark.parametrize("name", first_now(dict.fromkeys(["quickstart", *list_configs()])))
def test_every_shipped_config_runs(name, tiny_scenes, tmp_path, monkeypatch, capsys):
    """One batch of each on drawn scenes; small, and without weights from the net."""
    monkeypatch.chdir(tmp_path)
    written = yaml.safe_load(list_configs()[name].read_text())
    kind = written["model"]["detector"].partition("_")[0]
    args = dict(SMALLER.get(kind, DETECTOR_ARGS))
    given = written["model"].get("args", {})
    if given.get("weights_backbone"):
        args["weights_backbone"] = None
    if "backbone" in given and not given["backbone"].endswith("_features"):
        del args["backbone_kwargs"]  # of our nets; others are run as they are
    small = [f"--model.args.{key}={json.dumps(value)}" for key, value in args.items()]
    with shallow_heads():
        train_det(
            [
                *("--config", name, "--data", str(tiny_scenes), *small, "--dry-run"),
                *("--batch-size", "2", "--data.num_workers", "0", "--data.val_split", "val"),
                *("--data.train_split", "train", "--trainer.accelerator", "cpu"),
            ]
        )
    said = capsys.readouterr().out
    assert "Dry run done" in said
    assert f"{written['model']['detector']}: " in said
