"""Names of classes, files and folders reach the terminal as text, whatever they hold."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from locations import PROJECT
from PIL import Image
from rich.console import Console

from densenet_backbones.checkpoints.__main__ import main as inspect
from densenet_backbones.data import files
from densenet_backbones.data.mask_samples import MaskClasses, MaskRecord, SegmentationSet
from densenet_backbones.data.samples import Categories, DetectionSet, ImageRecord, Problem
from densenet_backbones.data.scenes.__main__ import main as draw_scenes
from densenet_backbones.messages import show_controls
from densenet_backbones.metrics.coco import CocoMetric
from densenet_backbones.metrics.segmentation import ClassScore, SegmentationEvaluation
from densenet_backbones.reporting import console, detection_report, plots, segmentation_report
from densenet_backbones.training import report

NAMES = ("[/red]", "[x]", ":cat:", "\x1b[31mred", "bell\a\x9b31m")
SHOWN = ("[/red]", "[x]", ":cat:", "\\x1b[31mred", "bell\\x07\\x9b31m")
FOLDER = "[/2024] :dog: \x1b[2J"
FOLDER_SHOWN = "[/2024] :dog: \\x1b[2J"


def assert_shown(text, expected=SHOWN):
    """Every name is there as it is, and nothing that a terminal obeys."""
    missing = [name for name in expected if name not in text]
    assert not missing, text
    assert show_controls(text) == text


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "[x].png")
    return folder


@pytest.fixture
def detection(folder):
    box, empty = np.array([[1, 1, 9, 9]], np.float32), np.zeros(1, bool)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}
    annotation |= {"area": 64, "iscrowd": 0}
    path = folder / "[x].png"
    label = np.array([1])
    record = ImageRecord(1, path, 32, 32, box, label, empty, (annotation,), np.array([0]))
    problem = Problem(str(path), "annotation [/red]", "\x1b[31mwrong", "left out")
    return DetectionSet(FOLDER, (record,), Categories.from_names(NAMES), (problem,))


def test_lines_and_their_copy_in_the_log(tmp_path, capsys):
    console.log_to(tmp_path / "log.txt")
    try:
        for name in NAMES:
            console.say(name, style="green")
            console.say(f"a line about {name}\nand the next")
    finally:
        console.log_to(None)
    printed, logged = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    assert printed == logged
    assert_shown(printed)
    assert len(printed.splitlines()) == 3 * len(NAMES)


def test_errors(capsys):
    with pytest.raises(SystemExit):
        console.fail(" ".join(NAMES) + " \ud800 \u202e", 1)
    assert_shown(capsys.readouterr().err, (*SHOWN, "\\ud800", "\\u202e"))


def test_tables_of_detection(detection, tmp_path, capsys):
    console.say(detection_report.tabulate_data(detection, detection))
    assert_shown(capsys.readouterr().out, (*SHOWN, FOLDER_SHOWN))
    metric = CocoMetric(detection.ground_truth(), detection.categories)
    box = torch.tensor([[1.0, 1, 9, 9]])
    prediction = {"image_id": 1, "boxes": box, "scores": torch.ones(1)}
    metric.update([prediction | {"labels": torch.ones(1, dtype=torch.int64)}])
    metric.compute()
    detection_report.write_evaluation(metric, detection, tmp_path / "out")
    assert_shown(capsys.readouterr().out)
    assert_shown((tmp_path / "out" / "table.txt").read_text())


def test_tables_of_segmentation(folder, capsys):
    path = folder / "[x].png"
    mask = SimpleNamespace(read=lambda: np.zeros((32, 32), np.uint8), files=(path,), rule="[x]")
    ids = tuple(range(len(NAMES)))
    classes = MaskClasses(NAMES, tuple((i, i, i) for i in ids), ids)
    data = SegmentationSet(FOLDER, (MaskRecord(1, path, 32, 32, mask, "[x]"),), classes)
    console.say(segmentation_report.tabulate_data(data, data))
    assert_shown(capsys.readouterr().out, (*SHOWN, FOLDER_SHOWN))
    scores = tuple(ClassScore(name, 1, 1, 1, 1, 1) for name in NAMES)
    matrix = np.eye(len(NAMES), dtype=np.int64)
    evaluation = SegmentationEvaluation("multiclass", 1, {"mIoU": 1.0}, scores, matrix)
    console.say(segmentation_report.format_segmentation_table(evaluation))
    assert_shown(capsys.readouterr().out)


def test_report_of_a_training(folder, detection, monkeypatch, capsys):
    nothing = lambda *args, **options: None  # noqa: E731
    monkeypatch.setattr(report, "read_checkpoint", lambda path: {"state_dict": {}})
    monkeypatch.setattr(report, "save_model", nothing)
    paths = SimpleNamespace(path=folder, checkpoints=folder, evaluation=folder, pictures=folder)
    paths.slim, paths.resume_from = folder / "model.safetensors", folder / "last.ckpt"
    task = SimpleNamespace(load_state_dict=nothing, write_evaluation=nothing, model=None)
    task.spec, task.use = SimpleNamespace(kind="detector"), "Detect"
    task.suggest_config, task.tool = lambda: ("[x]", "[/red]"), "train_det"
    task.tabulate_data = lambda data: detection_report.tabulate_data(detection, detection)
    task.remark_on = lambda data: NAMES
    monkeypatch.setattr(report, "describe_plan", lambda *args: ())
    data = SimpleNamespace(train_set=detection, val_set=detection)
    trainer = SimpleNamespace(loggers=[], validate=nothing, max_epochs=1)
    progress = {"epoch_progress": {"current": {"processed": 1}}}
    resumed = {"loops": {"fit_loop": progress}, "global_step": 3}
    report.print_plan(task, data, trainer, paths, resumed)
    text = capsys.readouterr().out
    assert_shown(text, (*SHOWN, f"{FOLDER_SHOWN}/[x].png", "annotation [/red]", "\\x1b[31mwrong"))
    report.report_results(task, data, trainer, paths)
    text = capsys.readouterr().out
    # Commands are quoted, so that a shell takes a path with blanks and brackets as one word.
    assert_shown(text, [f"{FOLDER_SHOWN}/[x].png'", f"{FOLDER_SHOWN}/model.safetensors'"])


def test_progress_bars(monkeypatch, capsys):
    def make_console(**options):
        return Console(force_terminal=True, color_system=None, width=120, **options)

    monkeypatch.setattr(files, "Console", make_console)
    for name, shown in zip(NAMES, SHOWN, strict=True):
        text = f"Reading {name}"
        assert list(files.track_progress([1, 2], text, from_count=1)) == [1, 2]
        assert f"Reading {shown}" in capsys.readouterr().err


def test_small_commands(folder, capsys):
    assert inspect([str(folder / "none.safetensors")]) == 2
    assert_shown(capsys.readouterr().err, [FOLDER_SHOWN])
    root = str(folder / "scenes")
    draw_scenes([root, "--train", "1", "--val", "1", "--size", "64", "--quiet"])
    printed = capsys.readouterr()
    assert_shown(printed.out, [FOLDER_SHOWN])
    assert_shown(printed.err, [])


def test_plots(tmp_path, recwarn):
    plots.plot_confusion(np.eye(5), NAMES, tmp_path / "matrix.png", background=None)
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]


def test_one_place_makes_consoles():
    """Rich's own consoles and its markup are for nobody else; the progress bar has its column."""
    owners = {"reporting/console.py", "data/files.py"}
    root = PROJECT / "densenet_backbones"
    users = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                named = {alias.name for alias in node.names}
                if named & {"Console", "print", "inspect", "escape", "Prompt", "Panel"}:
                    users.add(Path(path).relative_to(root).as_posix())
    assert users == owners
