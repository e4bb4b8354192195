"""Names of folders, files and classes may hold anything, in every tool from data to export."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_runs import signals_as_before, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.export import export
from densenet_backbones.inference import predict
from densenet_backbones.inference.results.savers import SAVERS
from densenet_backbones.messages import show_controls
from densenet_backbones.training import evaluate
from densenet_backbones.training.cli import train_det, train_seg

FOLDER = "[/2024] :cat: {split} %s $x^2$ <b>'q\" \\ \u202e\x1b[31m a\nb #?*~"
FILES = ("[x].jpg", "a\nb.jpg", "{epoch}.jpg", "\udcff.jpg", "%s :cat:.jpg", "n.jpg")
NO_TEXT = os.fsdecode(b"\xff")
TEXTS = [name for name in FILES if show_controls(name) == name]  # JSON files may name these
CLASSES = (
    *("[/red]", "[x]", ":cat:", "\x1b[31m", "a\nb", "$x^2$", "<script>", "\u202egnp"),
    *("n" * 300, "$", "_", "%s {0}", 'comma, "quote"', "=1+1"),
)


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, whose own name is hostile, and the data set's."""
    folder = Path(tmp_path, FOLDER)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def checked(capsys):
    """Runs a tool to its end, and checks that nothing printed acts on a terminal."""

    def run(tool, *arguments):
        with signals_as_before():
            tool([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        for line in (printed.out + printed.err).splitlines():
            assert show_controls(line) == line
        assert "a\\nb" in printed.out
        return printed.out

    return run


def copy_detection(scenes, root):
    """The scenes in COCO's layout, with other names of images and classes."""
    for split in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        (root / split).mkdir(parents=True)
        for number, image in enumerate(content["images"]):
            own = f"{number}{TEXTS[number % len(TEXTS)]}"
            shutil.copy(scenes / split / image["file_name"], root / split / own)
            image["file_name"] = own
        ids = [category["id"] for category in content["categories"]]
        new = range(max(ids) + 1, max(ids) + 1 + len(CLASSES) - len(ids))
        content["categories"] = [
            {"id": i, "name": name} for i, name in zip([*ids, *new], CLASSES, strict=True)
        ]
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return root


def copy_masks(masks, root):
    """The masks in folders with a `classes.yaml`, with other names."""
    for split in ("train", "val"):
        for number, mask in enumerate(sorted((masks / "SegmentationClass").glob(f"{split}_*"))):
            own = f"{number}{FILES[number % len(FILES)]}"
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            image = masks / "JPEGImages" / f"{mask.stem}.jpg"
            shutil.copy(image, root / "images" / split / own)
            shutil.copy(mask, root / "masks" / split / own.replace(".jpg", ".png"))
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": list(CLASSES)}))
    return root


@pytest.mark.long
def test_detection(tiny_scenes, folder, checked, monkeypatch):
    data, run = copy_detection(tiny_scenes, folder / "data"), folder / "run"
    monkeypatch.chdir(folder)
    cpu = ("--workers", "0", "--accelerator", "cpu", "--devices", "1")
    checked(train_det, *training_arguments(data, "--run-dir", str(run), epochs=1))
    checked(train_det, "--run-dir", run, "--resume", "--epochs", "2")
    model = run / "model.safetensors"
    data = data.rename(folder / "data\udcff")
    checked(evaluate.main, model, "--data", data, *cpu)
    words = ("--out", folder / "found\udcff", "--device", "cpu", "--save", *SAVERS)
    checked(predict.main, model, data / "val", *words)
    rows = json.loads((folder / "found\udcff" / "predictions.json").read_text())
    assert {os.path.basename(row["file"]) for row in rows} == set(os.listdir(data / "val"))
    assert {d["name"] for row in rows for d in row["detections"]} <= set(CLASSES)


def test_segmentation(tiny_masks, folder, checked, monkeypatch):
    data, run = copy_masks(tiny_masks, folder / "data"), folder / "run"
    monkeypatch.chdir(folder)
    checked(train_seg, *segmentation_arguments(data, "--run-dir", str(run), epochs=1))
    model = run / "model.safetensors"
    cpu = ("--workers", "0", "--accelerator", "cpu", "--devices", "1")
    data = data.rename(folder / "data\udcff")
    checked(evaluate.main, model, "--data", data, *cpu)
    images = data / "images" / "val"
    words = ("--out", folder / "found\udcff", "--device", "cpu", "--save", "json", "csv")
    checked(predict.main, model, images, *words)
    rows = json.loads((folder / "found\udcff" / "predictions.json").read_text())
    assert {os.path.basename(row["file"]) for row in rows} == set(os.listdir(images))


@pytest.mark.long
def test_export(tiny_segmentation, folder, checked):
    model = shutil.copy(tiny_segmentation / "model.safetensors", folder)
    out = checked(export.main, model, "--out", folder / "model.onnx")
    assert "written to" in out


@pytest.mark.parametrize(
    ("option", "name"),
    [(option, name) for name in ("a::b", NO_TEXT) for option in ("--run-dir", "cwd")]
    + [("--data", NO_TEXT)],
)
def test_folders_that_a_run_cannot_name(option, name, tiny_scenes, tmp_path, monkeypatch, capsys):
    """Lightning takes "::" for a chain of addresses; config.yaml and TensorBoard need text."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name if option == "cwd" else tmp_path)
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, *([option, name] if option != "cwd" else [])))
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert show_controls(name) in line and " UTF-8" in line and "name" in line
    assert not list((tmp_path / name).iterdir())
