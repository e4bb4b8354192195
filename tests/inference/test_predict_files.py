"""Folders with faults, and ends before the last image: what `predict` keeps, names and refuses."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import files_below

from densenet_backbones.data.images import read_image, read_image_size
from densenet_backbones.inference import predict, predicting
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.results import outputs
from densenet_backbones.inference.results.base import LARGEST_PICTURE

KINDS = ["tiny_run", "tiny_segmentation"]


@pytest.fixture
def folder(tiny_scenes, tmp_path):
    """Four images, the third of them truncated."""
    files = sorted((tiny_scenes / "val").iterdir())[:4]
    (tmp_path / "in").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / "in" / f"{number}{file.suffix}")
    broken = tmp_path / "in" / f"2{files[2].suffix}"
    broken.write_bytes(broken.read_bytes()[:900])
    return tmp_path / "in"


def run(model, images, out, *options):
    argv = [model, *images, "--out", out, "--device", "cpu", "--score", "0", *options]
    predict.main([str(argument) for argument in argv])


def rows(out):
    return [
        os.path.basename(row["file"])[0]
        for row in json.loads((out / "predictions.json").read_text())
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_costs_no_other_its_result(kind, request, folder, tmp_path, refused_command):
    model = request.getfixturevalue(kind) / "model.safetensors"
    out = tmp_path / "out"
    argv = (model, folder, "--out", out, "--device", "cpu")
    code, line = refused_command(predict.main, *argv)
    assert (
        code == 1
        and "1 of 4 images could not be used; the others are done: " in line
        and "2.jpg: cannot" in line
    )
    assert rows(out) == ["0", "1", "3"]
    assert {"0.png", "1.png", "3.png"} < files_below(out).keys()


def test_every_bad_file_is_listed(tiny_run, folder, tmp_path, capsys):
    (folder / "0.jpg").write_bytes(b"")
    with pytest.raises(SystemExit):
        run(tiny_run / "model.safetensors", [folder], tmp_path / "out", "--no-pictures")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: 2 of 4 images could not be used; the others are done:"
    assert "0.jpg: " in lines[1] and "2.jpg: " in lines[2] and len(lines) == 3


def test_an_image_that_the_model_cannot_take_costs_no_other(
    tiny_run, folder, tmp_path, monkeypatch, capsys
):
    whole = Detector.predict_batch

    def fail(self, images, score):
        if any(image.pixels[0, 0, 0] == 7 for image in images):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand a trace")
        return whole(self, images, score)

    monkeypatch.setattr(Detector, "predict_batch", fail)
    Image.fromarray(np.full((64, 64, 3), 7, np.uint8)).save(folder / "1.png")
    (folder / "2.jpg").unlink()
    with pytest.raises(SystemExit):
        run(tiny_run / "model.safetensors", [folder], tmp_path / "out", "--no-pictures")
    assert rows(tmp_path / "out") == ["0", "1", "3"]
    assert "1.png: DefaultCPUAllocator: can't allocate memory\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_results_are_there_when_the_end_comes_early(
    kind, end, request, folder, tmp_path, monkeypatch
):
    model = request.getfixturevalue(kind) / "model.safetensors"
    (folder / "2.jpg").unlink()
    saved = []

    def save(path, image):
        if len(saved) == 2:
            raise end
        saved.append(path)

    monkeypatch.setattr(outputs, "save_picture", save)
    with pytest.raises(SystemExit) as caught:
        run(model, [folder], tmp_path / "out", "--batch-size", "1")
    assert caught.value.code == (130 if end is KeyboardInterrupt else 1)
    assert rows(tmp_path / "out") == ["0", "1"]


def test_hidden_files_and_folders_with_names_of_images_are_passed_over(tiny_run, folder, tmp_path):
    (folder / "2.jpg").unlink()
    (folder / "._0.jpg").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (folder / "x.jpg").mkdir()
    run(tiny_run / "model.safetensors", [folder], tmp_path / "out", "--no-pictures")
    assert rows(tmp_path / "out") == ["0", "1", "3"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_tried_before_anything_is_read(
    kind, request, folder, tmp_path, refused_command, monkeypatch
):
    monkeypatch.setattr(predicting, "load", lambda *a: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    model = request.getfixturevalue(kind) / "model.safetensors"
    code, line = refused_command(predict.main, model, folder, "--out", tmp_path / "file/out")
    assert code == 1 and "--out" in line and "nothing can be written there" in line


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_photographs_are_read_smaller_and_their_boxes_are_in_full_pixels(
    tiny_run, tiny_scenes, tmp_path, suffix
):
    small = read_image(sorted((tiny_scenes / "val").iterdir())[0])
    large = Image.fromarray(small).resize((1001, 1000), Image.Resampling.BICUBIC)
    large.save(tmp_path / f"large.{suffix}", quality=95)
    detector = load(tiny_run / "model.safetensors")
    read = detector.read(tmp_path / f"large.{suffix}")
    assert (read.factor, read.size, read.pixels.shape) == (4, (1000, 1001), (250, 251, 3))
    found = detector.predict(tmp_path / f"large.{suffix}", 0.1)
    expected = detector.predict(np.asarray(large), 0.1)
    assert len(found) > 0 and float(found.boxes[:, 2].max()) > 500
    np.testing.assert_allclose(found.scores[:3], expected.scores[:3], atol=0.02)
    np.testing.assert_allclose(found.boxes[0], expected.boxes[0], atol=20)


@pytest.mark.parametrize("pictured", [True, False])
def test_pictures_change_no_number_and_are_no_larger_than_a_screen(tiny_run, tmp_path, pictured):
    _, x = np.mgrid[: LARGEST_PICTURE // 2, : LARGEST_PICTURE + 2]
    Image.fromarray((x // 16 % 256).astype(np.uint8)).save(tmp_path / "a.jpg")
    out = tmp_path / "out"
    run(tiny_run / "model.safetensors", [tmp_path / "a.jpg"], out, *["--no-pictures"][pictured:])
    (row,) = json.loads((out / "predictions.json").read_text())
    assert (row["width"], row["height"]) == (LARGEST_PICTURE + 2, LARGEST_PICTURE // 2)
    if pictured:
        assert read_image_size(row["picture"]) == (LARGEST_PICTURE // 2 + 1, LARGEST_PICTURE // 4)


@pytest.mark.parametrize(("magic", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("maxval", [1, 100, 255, 1000, 65535])
def test_netpbm_files_have_their_brightness_whatever_their_largest_value(
    tmp_path, magic, channels, maxval
):
    values = np.linspace(0, maxval, 40 * 30 * channels).round().reshape(30, 40, channels)
    path = tmp_path / "a.ppm"
    kind = ">u2" if maxval > 255 else "u1"
    path.write_bytes(magic + b"\n40 30\n%d\n" % maxval + values.astype(kind).tobytes())
    expected = np.broadcast_to(np.round(values / maxval * 255), (30, 40, 3))
    source = ImageWindows(path)
    for pixels in (read_image(path), source.read((0, 0, 30, 40))):
        assert np.abs(pixels.astype(float) - expected).max() <= 1
