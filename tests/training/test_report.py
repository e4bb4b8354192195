"""Last lines of a run: commands that fit this run, and that its tools take."""

import re
import shlex
from types import SimpleNamespace

import pytest

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import Problem
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.export import export
from densenet_backbones.inference import predict
from densenet_backbones.training import arguments, evaluate, report
from densenet_backbones.training.report import list_next_commands
from densenet_backbones.training.run_folder import RunFolder

PARSERS = {
    "predict": predict.make_parser,
    "export": export.make_parser,
    "evaluate": evaluate.make_parser,
    "train-det": arguments.make_parser,
    "train_det": arguments.make_parser,
}


def advise(data, path, scores=(), epochs_done=9, two_stages=False):
    task = SimpleNamespace(use="Detect", tool="train_det", monitor="val/AP")
    task.model = SimpleNamespace(**({"roi_heads": 1} if two_stages else {}))
    trainer = SimpleNamespace(max_epochs=9, current_epoch=epochs_done)
    evaluations = [{"epoch": n + 1, "numbers": {"AP": score}} for n, score in enumerate(scores)]
    rows = list(list_next_commands(task, data, trainer, RunFolder(path), evaluations))
    for _, command in rows:
        words = shlex.split(command)
        name = next(n for n in PARSERS if any(re.search(rf"\b{n}(\.py)?$", w) for w in words))
        start = next(n for n, w in enumerate(words) if re.search(rf"\b{name}(\.py)?$", w))
        parser = PARSERS[name]
        form = [arguments.DETECTION_FORM] if name.startswith("train") else []
        _, rest = parser(*form).parse_known_args(words[start + 1 :])
        assert rest in ([], ["--patience", "3"]), command
    return dict(rows)


@pytest.fixture
def data(tiny_scenes, tmp_path):
    root = tmp_path / "my photos"
    (root / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        (root / part).symlink_to(tiny_scenes / part)
        name = f"annotations/instances_{part}.json"
        (root / name).symlink_to(tiny_scenes / name)
    return DetectionData(str(root), num_workers=0)


def test_the_next_commands_are_those_of_this_run(data, tmp_path, tiny_scenes):
    path = tmp_path / "a run"
    plain = advise(data, path, (0.1, 0.3, 0.3))
    assert [*plain] == ["Detect:", "Export to ONNX, for use without this package:"]
    assert "'a run/" in plain["Detect:"].replace(str(tmp_path), "").replace("'/", "'")
    assert [*advise(data, path, two_stages=True)] == ["Detect:"]
    rising = advise(data, path, (0.1, 0.2, 0.3))["AP was still rising; train for longer:"]
    assert rising.endswith(" --resume --epochs 13")
    assert not any("rising" in line for line in advise(data, path, (0.1, 0.2, 0.3), epochs_done=4))
    assert any(
        "best at epoch 2 and fell to 0.200" in k for k in advise(data, path, (0.1, 0.3, 0.2))
    )
    # A test split, as soon as there is one; the quick start has no data of one's own.
    root = tmp_path / "my photos"
    (root / "test").symlink_to(tiny_scenes / "val")
    name = "annotations/instances_test.json"
    (root / name).symlink_to(tiny_scenes / "annotations/instances_val.json")
    assert any(command.endswith(" --split test") for command in advise(data, path).values())
    data.root = None
    assert [*advise(data, path)] == ["Detect:", "Train on photos of your own:"]


def test_faults_of_the_whole_are_told_once(capsys, monkeypatch):
    """The parts of data without splits have the problems of all of it."""
    whole, first, second = (Problem("a.json", item, "is odd", "left out") for item in "abc")
    train, val = (
        DetectionSet(f"data/{part}", (), Categories.from_names(["x"]), own)
        for part, own in (("train", (whole, first, first)), ("val", (second, whole)))
    )
    monkeypatch.setattr(report, "remark_on_data", lambda *parts: ())
    report.say_faults(train, val)
    assert capsys.readouterr().out.splitlines() == [
        "1 fault in data/train and data/val (data.strict refuses them):",
        f"  {whole}",
        "2 faults in data/train (data.strict refuses them):",
        f"  {first}",
        f"  {first}",
        "1 fault in data/val (data.strict refuses them):",
        f"  {second}",
    ]
    report.say_faults(train, train)
    report.say_faults(None, train)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "faults" in line] == [
        "3 faults in data/train (data.strict refuses them):",
        "3 faults in data/train:",
    ]
