"""Names of classes, files and folders reach the terminal as text, whatever they hold."""

import ast
import csv
import io
import logging
import os
import subprocess
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from locations import PROJECT
from PIL import Image
from rich.console import Console
from rich.table import Table

from densenet_backbones.checkpoints.__main__ import main as inspect
from densenet_backbones.data import files
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import Problem
from densenet_backbones.data.mask_samples import MaskClasses, MaskRecord, SegmentationSet
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.scenes.__main__ import main as draw_scenes
from densenet_backbones.file_writing import save_csv
from densenet_backbones.messages import describe_error, print_lines, quote_word, show_controls
from densenet_backbones.metrics.coco import CocoMetric
from densenet_backbones.metrics.segmentation import ClassScore, SegmentationEvaluation
from densenet_backbones.reporting import console, detection_report, plots, segmentation_report
from densenet_backbones.reporting.pictures import draw_detections
from densenet_backbones.reporting.tables import render
from densenet_backbones.training import report

NAMES = ("[/red]", "[x]", ":cat:", "\x1b[31mred", "bell\a\x9b31m", "a\nb\tc", "\u202egnp.$x^2$")
SHOWN = (
    "[/red]",
    "[x]",
    ":cat:",
    "\\x1b[31mred",
    "bell\\x07\\x9b31m",
    "a\\nb\\tc",
    "\\u202egnp.$x^2$",
)
FOLDER = "[/2024] :dog: \x1b[2J\nnext"
FOLDER_SHOWN = "[/2024] :dog: \\x1b[2J\\nnext"


def assert_shown(text, expected=SHOWN):
    """Every name is there as it is, and nothing that a terminal obeys."""
    missing = [name for name in expected if name not in text]
    assert not missing, text
    assert all(show_controls(line) == line for line in text.splitlines()), text
    assert not [line for line in text.splitlines() if line.startswith(("b\\tc", "next"))], text


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
            console.say(f"a line about {name}", "and the next")
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
    task.describe_evaluated = lambda: task.spec
    task.tool, task.monitor = "train_det", "val/AP"
    task.tabulate_data = lambda data: detection_report.tabulate_data(detection, detection)
    task.remark_on = lambda data: NAMES
    monkeypatch.setattr(report, "describe_plan", lambda *args: ())
    data = SimpleNamespace(train_set=detection, val_set=detection, root=None, lines=(), notes=())
    trainer = SimpleNamespace(loggers=[], validate=nothing, max_epochs=1)
    progress = {"epoch_progress": {"current": {"processed": 1}}}
    resumed = {"loops": {"fit_loop": progress}, "global_step": 3}
    report.print_plan(task, data, trainer, paths, resumed)
    text = capsys.readouterr().out
    assert_shown(text, (*SHOWN, f"{FOLDER_SHOWN}/[x].png", "annotation [/red]", "\\x1b[31mwrong"))
    report.report_results(task, data, trainer, paths)
    text = capsys.readouterr().out
    # Commands are quoted, so that a shell takes a path with blanks and brackets as one word.
    folder_quoted = FOLDER_SHOWN.replace("\\n", "\\x0a")
    assert_shown(text, [f"{folder_quoted}/[x].png'", f"{folder_quoted}/model.safetensors'"])


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
    names = (*NAMES, "_hidden", "long " * 60)
    file = tmp_path / "matrix.png"
    plots.plot_confusion(np.eye(len(names)), names, file, background=None)
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]
    with Image.open(file) as picture:  # a long name takes a part of the picture only
        assert picture.width < 2 * picture.height + 1000 < 4000


def test_pictures():
    image, box = np.zeros((64, 64, 3), np.uint8), np.array([[1, 30, 60, 60]])
    for name in (*NAMES, "long " * 60):
        drawn = draw_detections(image, box, np.array([1]), [name])
        shown = draw_detections(image, box, np.array([1]), [show_controls(name)])
        assert np.array_equal(drawn, shown)


def test_long_names_keep_the_rows_of_a_table(capsys):
    table = Table("class")
    table.add_column("AP", no_wrap=True)
    for name in ("n" * 300, "cat"):
        table.add_row(name, "0.123")
    lines = render([table]).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("n" * 50 in line and "0.123" in line for line in lines)
    assert sum("0.123" in line for line in lines) == 2


def test_tables_for_spreadsheets(tmp_path):
    names = (*NAMES, 'comma, "quote"', "=1+1")
    scores = tuple(ClassScore(name, 1, 1, 1, 1, 1) for name in names)
    evaluation = SegmentationEvaluation(
        "multiclass", 1, {"mIoU": 1.0}, scores, np.eye(len(names), dtype=np.int64)
    )
    file = tmp_path / "matrix.csv"
    save_csv(file, segmentation_report.tabulate_confusion(evaluation))
    with file.open(newline="", encoding="utf-8") as rows:
        head, *body = csv.reader(rows)
    assert head[1:] == [row[0] for row in body] == list(names)


@pytest.mark.parametrize("name", [*NAMES, "it's", "back\\slash", os.fsdecode(b"\xff.jpg"), "a b"])
def test_a_shell_takes_a_printed_path_as_it_is(name, tmp_path):
    command = f"printf %s {quote_word(name)}"
    assert show_controls(command) == command
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_terminals_without_the_letters():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_lines("Straße", "[x]", file=file)
    assert file.buffer.getvalue() == b"Stra\\xdfe\n[x]\n"


def test_warnings_and_logs_of_libraries(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    console.quiet_libraries()
    text = warnings.formatwarning(UserWarning("\n  a\n  b\x1b[31m"), UserWarning, "file.py", 3)
    assert text == "warning: a b\\x1b[31m\n"
    record = logging.LogRecord("l", logging.INFO, "f", 1, "from %s", ("a\n\x1b[2J",), None)
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").filter(record)
    assert record.getMessage() == "from a\\n\\x1b[2J"


def test_damaged_tags_are_no_warnings_without_a_file_s_name():
    console.quiet_libraries()
    with warnings.catch_warnings(record=True) as said:
        for module in ("PIL.TiffImagePlugin", "lightning.pytorch"):
            warnings.warn_explicit(module, UserWarning, "a.py", 1, module=module)
    assert [str(warning.message) for warning in said] == ["lightning.pytorch"]
    assert not logging.getLogger("tifffile").isEnabledFor(logging.ERROR)


def test_what_the_engine_says_of_a_stop_and_a_resumption_is_said_once(capsys):
    console.quiet_libraries()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    stopped = "\nDetected KeyboardInterrupt, attempting graceful shutdown ..."
    going_on = ("Restoring states from the", "Restored all states", "Found current_model_state in")
    for text in (stopped, *going_on, "GPU failed"):
        record = logging.LogRecord("l", logging.INFO, "f", 1, text, (), None)
        assert bool(logger.filter(record)) == (text == "GPU failed")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "a/b"), "a/b: no space left on device; remove"),
        (OSError(40, "Too many levels of symbolic links", b"a"), "a: too many levels of symbolic"),
        (IsADirectoryError(21, "Is a directory", "x"), "x: is a directory; it is a folder"),
        (KeyError(), "KeyError"),
    ],
)
def test_errors_of_the_system(error, sentence):
    assert describe_error(error).startswith(sentence)


def list_python_files():
    for folder in ("densenet_backbones", "heads", "tools", "configs"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            yield path.relative_to(PROJECT).as_posix(), ast.parse(path.read_text())


def name_call(node):
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_one_place_prints():
    """All that is printed goes through `print_lines` and `say`, parsers of arguments included.

    Rich's own consoles and its markup are for nobody else; the progress bar has its column.
    """
    forbidden = {"print", "sys.stdout.write", "sys.stderr.write", "argparse.ArgumentParser"}
    owners = {"densenet_backbones/messages/sentences.py"}
    consoles = {"densenet_backbones/reporting/console.py", "densenet_backbones/data/files.py"}
    rich_names = {"Console", "print", "inspect", "escape", "Prompt", "Panel"}
    printing, using = [], set()
    for path, tree in list_python_files():
        for node in ast.walk(tree):
            place = f"{path}:{getattr(node, 'lineno', 0)}"
            if name_call(node) in forbidden and path not in owners:
                printing.append(place)
            if name_call(node).startswith("logging.") and path not in consoles:
                printing.append(place)
            if name_call(node).split(".")[-1] == "track":  # rich's reads its text as markup
                printing += [place] * any(isinstance(a, ast.JoinedStr) for a in node.args)
            names = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) else set()
            if names & rich_names and (node.module or "").startswith("rich"):
                using.add(path)
            if isinstance(node, ast.Import) and any(a.name.startswith("rich") for a in node.names):
                using.add(path)
    assert not printing
    assert using == consoles
