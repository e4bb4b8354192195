"""Every tool answers every kind of broken file in one line that names it and says what helps."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import signals_as_before, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.checkpoints import __main__ as inspect
from densenet_backbones.export import export
from densenet_backbones.inference import predict
from densenet_backbones.messages import show_controls
from densenet_backbones.training import evaluate
from densenet_backbones.training.cli import train_det, train_seg

# -- kinds of broken files -------------------------------------------------------------------------


def remove(path):
    path.unlink()


def write(content):
    return lambda path: path.write_bytes(content)


def make_folder(path):
    path.unlink()
    path.mkdir()


def link_to(target):
    def link(path):
        path.unlink()
        path.symlink_to(target(path))

    return link


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


class Touch:
    """Pickles to a call that would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


KINDS = {
    "absent": remove,
    "empty": write(b""),
    "blanks": write(b" \n\n"),
    "bytes": write(b"\x00\xff\xfe\x80\x81" * 40),
    "latin-1": write("name: Stra\xdfe\n".encode("latin-1")),
    "list": write(b"[1, 2, 3]"),
    "number": write(b"7"),
    "text": write(b"not what was asked for"),
    "nested": write(b"[" * 100_000),
    "half": cut,
    "folder": make_folder,
    "loop": link_to(lambda path: path.name),
    "dangling": link_to(lambda path: "nowhere"),
    "zip": write(b"PK\x03\x04" + b"\x00" * 30),
    "pickle": lambda path: torch.save({"state_dict": {}, "x": Touch()}, path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "header": write((2**40).to_bytes(8, "little") + b"{}"),
    "pipe": make_pipe,
}
TEXT_KINDS = [k for k in KINDS if k not in ("zip", "pickle", "tensor", "header")]

# -- tools and the files that they read ------------------------------------------------------------

CPU = ("--accelerator", "cpu", "--devices", "1", "--workers", "0")
QUIET = ("--device", "cpu", "--no-pictures")


class Place:
    """A copy of the data and of trained models, in which one file is broken."""

    def __init__(self, root, scenes, detector, segmenter):
        self.root, self.scenes = root, root / "scenes"
        shutil.copytree(scenes, self.scenes)
        self.detector = shutil.copy(detector / "model.safetensors", root / "detector.safetensors")
        self.segmenter = shutil.copy(segmenter / "model.safetensors", root / "mask.safetensors")
        self.checkpoint = shutil.copy(detector / "checkpoints" / "last.ckpt", root / "last.ckpt")
        self.config = shutil.copy(detector / "config.yaml", root / "own.yaml")
        self.image = shutil.copy(next(self.scenes.glob("val/*.jpg")), root / "photo.jpg")
        self.masks = root / "masks"
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            for split in ("train", "val"):
                folder = self.masks / kind / split
                folder.mkdir(parents=True)
                for number in range(2):
                    size = (64, 64)
                    mode = "RGB" if kind == "images" else "L"
                    Image.new(mode, size).save(folder / f"{number}.{suffix}")
        (self.masks / "classes.yaml").write_text("classes: [sky, road]\n")


def detection(place, *more):
    train_det(training_arguments(place.scenes, "--run-dir", str(place.root / "run"), *more))


def voc(place):
    train_det(training_arguments(place.scenes / "VOC", "--run-dir", str(place.root / "run")))


def segmentation(place, data, *more):
    train_seg(segmentation_arguments(data, "--run-dir", str(place.root / "run"), *more))


# What reads the file: name -> (path of the file, call, kinds that are not broken there).
READERS = {
    "COCO": (
        lambda place: place.scenes / "annotations" / "instances_train.json",
        lambda place, file: detection(place),
    ),
    "VOC annotation": (
        lambda place: next(place.scenes.glob("VOC/Annotations/train_*.xml")),
        lambda place, file: voc(place),
    ),
    "VOC list": (
        lambda place: place.scenes / "VOC" / "ImageSets" / "Main" / "train.txt",
        lambda place, file: voc(place),
    ),
    "label map": (
        lambda place: place.scenes / "VOC" / "labelmap.txt",
        lambda place, file: segmentation(place, place.scenes / "VOC"),
    ),
    "panoptic": (
        lambda place: place.scenes / "annotations" / "panoptic_train.json",
        lambda place, file: segmentation(place, place.scenes, "--data.layout", "coco_panoptic"),
    ),
    "classes.yaml": (
        lambda place: place.masks / "classes.yaml",
        lambda place, file: segmentation(place, place.masks),
    ),
    "mask": (
        lambda place: place.masks / "masks" / "train" / "1.png",
        lambda place, file: segmentation(place, place.masks),
    ),
    "image of masks": (
        lambda place: place.masks / "images" / "train" / "1.jpg",
        lambda place, file: segmentation(place, place.masks),
    ),
    "image": (
        lambda place: next(place.scenes.glob("train/*.jpg")),
        lambda place, file: detection(place, "--data.check_images", "true"),
    ),
    "config": (
        lambda place: Path(place.config),
        lambda place, file: train_det(["--config", str(file), "--run-dir", str(place.root / "r")]),
    ),
    "config of segmentation": (
        lambda place: Path(place.config),
        lambda place, file: train_seg(["--config", str(file), "--run-dir", str(place.root / "r")]),
    ),
    "--init-from": (
        lambda place: Path(place.detector),
        lambda place, file: detection(place, "--init-from", str(file)),
    ),
    "--ckpt_path": (
        lambda place: Path(place.checkpoint),
        lambda place, file: detection(place, "--ckpt_path", str(file)),
    ),
    "evaluate": (
        lambda place: Path(place.detector),
        lambda place, file: evaluate.main([str(file), "--data", str(place.scenes), *CPU]),
    ),
    "evaluated data": (
        lambda place: place.scenes / "annotations" / "instances_val.json",
        lambda place, file: evaluate.main(
            [str(place.detector), "--data", str(place.scenes), "--layout", "coco", *CPU]
        ),
    ),
    "predict": (
        lambda place: Path(place.segmenter),
        lambda place, file: predict.main([str(file), str(place.image), *QUIET]),
    ),
    "predict a checkpoint": (
        lambda place: Path(place.checkpoint),
        lambda place, file: predict.main([str(file), str(place.image), *QUIET]),
    ),
    "image of predict": (
        lambda place: Path(place.image),
        lambda place, file: predict.main([str(place.detector), str(file), *QUIET]),
    ),
    "image of a segmenter": (
        lambda place: Path(place.image),
        lambda place, file: predict.main([str(place.segmenter), str(file), *QUIET]),
    ),
    "export": (
        lambda place: Path(place.segmenter),
        lambda place, file: export.main([str(file)]),
    ),
    "inspection": (
        lambda place: Path(place.detector),
        lambda place, file: exit_with(inspect.main([str(file)])),
    ),
}
# Files that are right all the same: a list of classes may be one word a line, a label map is left
# out where there is none.
FINE = {("label map", kind) for kind in ("absent", "dangling", "folder", "loop", "pipe")} | {
    ("VOC list", "half")
}


def exit_with(code):
    raise SystemExit(code)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_scenes, tiny_run, tiny_segmentation):
    return Place(tmp_path_factory.mktemp("place"), tiny_scenes, tiny_run, tiny_segmentation)


@contextmanager
def broken(file, kind):
    """Break a file, and mend it at the end."""
    content = file.read_bytes()
    KINDS[kind](file)
    try:
        yield
    finally:
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(content)


def assert_one_sentence(error, end, file):
    """One line, which names the file and the fix, in nobody else's words."""
    lines = [line for line in error.splitlines() if not line.startswith(("INFO: ", "GPU avail"))]
    assert len(lines) == 1, error
    line = lines[0]
    assert end.value.code in (1, 2), line
    assert show_controls(line) == line
    assert file.name in line or file.parent.name in line, line
    assert ";" in line or ":" in line.partition(file.name)[2], line
    for foreign in ("Traceback", "weights_only", "Errno", "()", "KeyError", "TypeError", "<class"):
        assert foreign not in line, line
    assert len(line) < 700, line
    return line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_broken_files(reader, kind, place, tmp_path, monkeypatch, capsys):
    find, call = READERS[reader]
    if (reader, kind) in FINE:
        pytest.skip("nothing is broken")
    monkeypatch.chdir(tmp_path)
    file = find(place)
    capsys.readouterr()
    with broken(file, kind), pytest.raises(SystemExit) as end, signals_as_before():
        call(place, file)
    err = capsys.readouterr().err
    open("/tmp/f_lines.txt", "a").write(f"@@ {reader} / {kind} / {err}\n")
    assert_one_sentence(err, end, file)
    assert not Path("ran").exists()
    assert not (place.root / "run").exists()
