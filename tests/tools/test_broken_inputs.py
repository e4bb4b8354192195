"""Every tool answers every kind of broken file in one line that names it and says what helps."""

import errno
import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from long_cases import each_once
from PIL import Image
from tiny_runs import signals_as_before, training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.benchmark import command as benchmark
from densenet_backbones.checkpoints import __main__ as inspect
from densenet_backbones.data.scenes import __main__ as scenes
from densenet_backbones.export import export
from densenet_backbones.inference import predict
from densenet_backbones.inference.detector import DetectorSpec
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
CLASSES = (
    ("absent", "folder", "loop", "dangling", "pipe"),
    ("empty", "blanks"),
    ("bytes", "latin-1", "list", "number", "text", "nested"),
    ("half",),
    ("zip", "pickle", "tensor", "header"),
)
"""Kinds that are alike for a reader: no file, nothing in it, another text, half, another file."""

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
        # As JSON, half of which is never whole; half of a block of YAML may be.
        self.config = root / "own.yaml"
        options = yaml.safe_load((detector / "config.yaml").read_text())
        self.config.write_text(json.dumps(options))
        self.image = shutil.copy(next(self.scenes.glob("val/*.jpg")), root / "photo.jpg")
        self.masks = root / "masks"
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            for split in ("train", "val"):
                folder = self.masks / kind / split
                folder.mkdir(parents=True)
                for number in range(2):
                    image = Image.new("RGB" if kind == "images" else "L", (64, 64))
                    image.paste(1, (0, 0, 32, 64))  # both classes
                    image.save(folder / f"{number}.{suffix}")
        (self.masks / "classes.yaml").write_text("classes: [sky, road]\n")


def detection(place, *more):
    train_det(training_arguments(place.scenes, "--run-dir", str(place.root / "run"), *more))


def voc(place):
    train_det(training_arguments(place.scenes / "VOC", "--run-dir", str(place.root / "run")))


def segmentation(place, data, *more):
    train_seg(segmentation_arguments(data, "--run-dir", str(place.root / "run"), *more))


# What reads the file: name -> (what it is to the reader, path of the file, call).
READERS = {
    "COCO": (
        "JSON",
        lambda place: place.scenes / "annotations" / "instances_train.json",
        lambda place, file: detection(place),
    ),
    "VOC annotation": (
        "XML",
        lambda place: next(place.scenes.glob("VOC/Annotations/train_*.xml")),
        lambda place, file: voc(place),
    ),
    "VOC list": (
        "text",
        lambda place: place.scenes / "VOC" / "ImageSets" / "Main" / "train.txt",
        lambda place, file: voc(place),
    ),
    "label map": (
        "text",
        lambda place: place.scenes / "VOC" / "labelmap.txt",
        lambda place, file: segmentation(place, place.scenes / "VOC"),
    ),
    "panoptic": (
        "JSON",
        lambda place: place.scenes / "annotations" / "panoptic_train.json",
        lambda place, file: segmentation(place, place.scenes, "--data.layout", "coco_panoptic"),
    ),
    "classes.yaml": (
        "text",
        lambda place: place.masks / "classes.yaml",
        lambda place, file: segmentation(place, place.masks),
    ),
    "mask": (
        "image",
        lambda place: place.masks / "masks" / "train" / "1.png",
        lambda place, file: segmentation(place, place.masks),
    ),
    "image of masks": (
        "image",
        lambda place: place.masks / "images" / "train" / "1.jpg",
        lambda place, file: segmentation(place, place.masks),
    ),
    "image": (
        "image",
        lambda place: next(place.scenes.glob("train/*.jpg")),
        lambda place, file: detection(place, "--data.check_images", "true"),
    ),
    "config": (
        "text",
        lambda place: place.config,
        lambda place, file: train_det(["--config", str(file), "--run-dir", str(place.root / "r")]),
    ),
    "config of segmentation": (
        "text",
        lambda place: place.config,
        lambda place, file: train_seg(["--config", str(file), "--run-dir", str(place.root / "r")]),
    ),
    "--init-from": (
        "model",
        lambda place: Path(place.detector),
        lambda place, file: detection(place, "--init-from", str(file)),
    ),
    "--ckpt_path": (
        "model",
        lambda place: Path(place.checkpoint),
        lambda place, file: detection(place, "--ckpt_path", str(file)),
    ),
    "evaluate": (
        "model",
        lambda place: Path(place.detector),
        lambda place, file: evaluate.main([str(file), "--data", str(place.scenes), *CPU]),
    ),
    "evaluated data": (
        "JSON",
        lambda place: place.scenes / "annotations" / "instances_val.json",
        lambda place, file: evaluate.main(
            [str(place.detector), "--data", str(place.scenes), "--layout", "coco", *CPU]
        ),
    ),
    "predict": (
        "model",
        lambda place: Path(place.segmenter),
        lambda place, file: predict.main([str(file), str(place.image), *QUIET]),
    ),
    "predict a checkpoint": (
        "model",
        lambda place: Path(place.checkpoint),
        lambda place, file: predict.main([str(file), str(place.image), *QUIET]),
    ),
    "image of predict": (
        "image",
        lambda place: Path(place.image),
        lambda place, file: predict.main([str(place.detector), str(file), *QUIET]),
    ),
    "image of a segmenter": (
        "image",
        lambda place: Path(place.image),
        lambda place, file: predict.main([str(place.segmenter), str(file), *QUIET]),
    ),
    "export": (
        "model",
        lambda place: Path(place.segmenter),
        lambda place, file: export.main([str(file)]),
    ),
    "inspection": (
        "model",
        lambda place: Path(place.detector),
        lambda place, file: exit_with(inspect.main([str(file)])),
    ),
}
# A label map that is no file is none, half of a list is one, and a number is an image id.
FINE = {("label map", kind) for kind in ("absent", "dangling", "folder", "loop", "pipe")}
FINE |= {("VOC list", "half"), ("VOC list", "number")}
# Without its file that split is none; the other one is evaluated in its place, which is said.
FINE |= {("evaluated data", kind) for kind in ("absent", "dangling", "folder", "loop", "pipe")}


def pair_readers_and_kinds():
    """Every kind with a reader of each family, and every reader with a kind of each class."""
    families = {}
    for reader, (family, *_) in READERS.items():
        families.setdefault(family, []).append(reader)
    for readers in families.values():
        for kinds in CLASSES:
            uses = dict.fromkeys(readers, 0)
            for kind in kinds:
                reader = min((r for r in readers if (r, kind) not in FINE), key=uses.__getitem__)
                uses[reader] += 1
                yield reader, kind
            for number, reader in enumerate(r for r in readers if not uses[r]):
                fitting = [kind for kind in kinds if (reader, kind) not in FINE]
                if fitting:
                    yield reader, fitting[number % len(fitting)]


def one_now(pairs):
    """One pair of each row at once, the others when asked for."""
    rows = {}
    for row, column in pairs:
        rows.setdefault(row, []).append(column)
    return [
        pytest.param(row, column, marks=[pytest.mark.long] * (place != 5 * number % len(columns)))
        for number, (row, columns) in enumerate(rows.items())
        for place, column in enumerate(columns)
    ]


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
    for foreign in ("Traceback", "weights_only", "Errno", " ()", "KeyError", "TypeError", "<class"):
        assert foreign not in line, line
    assert len(line) < 700, line
    return line


@pytest.mark.parametrize(("reader", "kind"), one_now(pair_readers_and_kinds()))
def test_broken_files(reader, kind, place, tmp_path, monkeypatch, capsys):
    _, find, call = READERS[reader]
    monkeypatch.chdir(tmp_path)
    file = find(place)
    capsys.readouterr()
    with broken(file, kind), pytest.raises(SystemExit) as end, signals_as_before():
        call(place, file)
    assert_one_sentence(capsys.readouterr().err, end, file)
    assert not Path("ran").exists()
    assert not (place.root / "run").exists()


# -- outputs ---------------------------------------------------------------------------------------


def block_with_a_file(place, out):
    out.write_text("in the way")
    return out / "inside"


def block_with_a_loop(place, out):
    out.symlink_to(out.name)
    return out / "inside"


def take_a_long_name(place, out):
    return out / ("n" * 300)


def fill_the_disk(place, out):
    out.mkdir()
    return out / "full"


BLOCKS = {
    "file": block_with_a_file,
    "loop": block_with_a_loop,
    "long": take_a_long_name,
    "full": fill_the_disk,
}
MEMORY = ("memory", "--quick")
WRITERS = {
    "train_det": lambda place, out: train_det(
        training_arguments(place.scenes, "--run-dir", str(out), epochs=1)
    ),
    "train_seg": lambda place, out: train_seg(
        segmentation_arguments(place.masks, "--run-dir", str(out), epochs=1)
    ),
    "evaluate": lambda place, out: evaluate.main(
        [str(place.detector), "--data", f"{place.scenes}/VOC", "--out", str(out), *CPU]
    ),
    "predict": lambda place, out: predict.main(
        [str(place.detector), str(place.image), "--out", str(out), *QUIET]
    ),
    "predict masks": lambda place, out: predict.main(
        [str(place.segmenter), str(place.image), "--out", str(out), *QUIET]
    ),
    "export": lambda place, out: export.main([str(place.segmenter), "--out", f"{out}/model.onnx"]),
    "benchmark": lambda place, out: benchmark.main(
        ["memory", "--quick", "--json", f"{out}/a.json"]
    ),
    "charts": lambda place, out: benchmark.main(["memory", "--quick", "--plot", f"{out}/a.png"]),
    "scenes": lambda place, out: scenes.main([str(out), "--train", "1", "--val", "1", "--quiet"]),
}


@contextmanager
def full_disk(folder):
    """Every file below a folder is refused, as on a disk without space."""
    real = open

    def refuse(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and str(folder) in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        patch.setattr("io.open", refuse)
        yield


FOLDERS = [
    block for block in BLOCKS if block != "full"
]  # that cannot be made, for any writer alike
WRITERS_AND_BLOCKS = [*each_once(WRITERS, FOLDERS), *((writer, "full") for writer in WRITERS)]


@pytest.mark.parametrize(("writer", "block"), one_now(WRITERS_AND_BLOCKS))
def test_outputs_that_cannot_be_written(writer, block, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = BLOCKS[block](place, tmp_path / "out")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end, signals_as_before(), ExitStack() as stack:
        if block == "full":
            stack.enter_context(full_disk(out))
        WRITERS[writer](place, out)
    assert_one_sentence(capsys.readouterr().err, end, out)


# -- descriptions in model files -------------------------------------------------------------------

DESCRIPTIONS = {
    "no entry": lambda spec: spec.pop("args"),
    "another type": lambda spec: spec.update(args=[1]),
    "another name": lambda spec: spec.update(name="no_such_net"),
    "another option": lambda spec: spec["args"].update(no_such_option=1),
    "a wrong value": lambda spec: spec["args"].update(image_size="[/red]\x1b[31m\nx"),
    "other classes": lambda spec: spec["categories"].update(names=["a"]),
    "a newer format": lambda spec: spec.update(format=99),
    "another pre-processing": lambda spec: spec.update(preprocessing={"x": "y"}),
}


@pytest.mark.parametrize("change", DESCRIPTIONS)
def test_damaged_descriptions(change, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with safetensors.safe_open(place.detector, "pt") as file:
        metadata = file.metadata()
    spec = json.loads(metadata[DetectorSpec.key])
    DESCRIPTIONS[change](spec)
    model = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(place.detector)
    safetensors.torch.save_file(weights, model, {DetectorSpec.key: json.dumps(spec)})
    with pytest.raises(SystemExit) as end:
        predict.main([str(model), str(place.image), *QUIET])
    assert_one_sentence(capsys.readouterr().err, end, model)
