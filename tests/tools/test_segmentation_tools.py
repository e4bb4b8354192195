"""`evaluate` and `predict` with a segmenter: numbers, masks, overlays, JSON, refusals."""

import json
import shutil

import numpy as np
import pytest
from fresh_processes import run_fresh
from PIL import Image
from tiny_runs import files_below

from densenet_backbones.data.images import read_image
from densenet_backbones.inference import predict
from densenet_backbones.inference.loading import load
from densenet_backbones.training import evaluate

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture
def model(tiny_segmentation, tmp_path):
    """A copy of a trained segmenter: evaluation writes beside it."""
    return shutil.copy(tiny_segmentation / "model.safetensors", tmp_path / "model.safetensors")


def list_arguments(model, data, out, *options):
    return [
        *(str(model), "--data", str(data), "--out", str(out), "--batch-size", "4"),
        *("--workers", "0", "--accelerator", "cpu", "--devices", "1", *options),
    ]


def evaluated(model, data, out, *options):
    evaluate.main(list_arguments(model, data, out, *options))
    return json.loads((out / "metrics.json").read_text())


def predicted(model, out, *images, options=()):
    predict.main([str(model), *map(str, images), "--out", str(out), "--device", "cpu", *options])
    return json.loads((out / "predictions.json").read_text())


@pytest.mark.usefixtures("drawn")
def test_a_checkpoint_evaluates_to_the_numbers_of_its_training(
    tiny_segmentation, tiny_masks, tmp_path
):
    out = tmp_path / "out"
    found = evaluated(tiny_segmentation / "checkpoints/best.ckpt", tiny_masks, out)
    assert found == json.loads((tiny_segmentation / "evaluation/metrics.json").read_text())
    files = set(files_below(tiny_segmentation / "evaluation"))
    assert set(files_below(out)) == files | {"timing.json", "pixel_counts.json"}
    for name in ("table.txt", "iou.csv", "confusion_matrix.csv", "images.csv", "predictions.png"):
        written = (tiny_segmentation / "evaluation" / name).read_bytes()
        assert (out / name).read_bytes() == written, name


def test_what_is_done_outlives_an_evaluation(model, tiny_masks, tmp_path):
    """Counts of each image, which add up to those of all."""
    whole = evaluated(model, tiny_masks, tmp_path / "whole")
    rows = json.loads((tmp_path / "whole/pixel_counts.json").read_text())
    matrix = np.zeros_like(whole["confusion_matrix"])
    for row in rows:
        for true, predicted_as, pixels in row["confusion"]:
            matrix[true, predicted_as] += pixels
    assert matrix.tolist() == whole["confusion_matrix"]
    assert [row["file_name"] for row in rows] == [f"val_{n:06d}.jpg" for n in range(1, 8)]
    # A process that ends in its second batch.
    program = f"""
import os
from densenet_backbones.training.evaluate import main
from densenet_backbones.training.tasks.segmentation import SegmentationTask
step = SegmentationTask.validation_step
SegmentationTask.validation_step = lambda self, batch, n: os._exit(0) if n else step(self, batch, n)
main({list_arguments(model, tiny_masks, tmp_path / "part")})
"""
    run_fresh(program)
    assert json.loads((tmp_path / "part/pixel_counts.json").read_text()) == rows[:4]


def test_other_splits_and_tolerances(model, tiny_masks, tmp_path):
    strict = evaluated(model, tiny_masks, tmp_path / "a", "--boundary-tolerance", "0.001")
    loose = evaluated(model, tiny_masks, tmp_path / "b", "--boundary-tolerance", "0.2")
    assert strict["numbers"]["mIoU"] == loose["numbers"]["mIoU"]
    assert strict["numbers"]["boundary_F"] < loose["numbers"]["boundary_F"]
    split = evaluated(model, tiny_masks, tmp_path / "c", "--split", "train")
    assert split["images"] == 12


@pytest.mark.usefixtures("drawn")
def test_predict_writes_masks_overlays_and_a_summary(model, tiny_masks, tmp_path, capsys):
    files = sorted((tiny_masks / "JPEGImages").glob("val_*"))[:3]
    rows = predicted(model, tmp_path / "out", *files)
    assert "3 images segmented" in capsys.readouterr().out
    segmenter = load(model)
    for row, file in zip(rows, files, strict=True):
        expected = segmenter.predict(file)
        assert (row["file"], row["width"], row["height"]) == (str(file), 64, 64)
        with Image.open(row["masks"][0]) as mask:
            assert mask.mode == "P" and len(row["masks"]) == 1
            assert np.array_equal(np.asarray(mask), expected.labels)
        with Image.open(row["picture"]) as picture:
            assert picture.size == (64, 64)
        assert sum(c["pixels"] for c in row["classes"]) == 64 * 64
        for found in row["classes"]:
            label = expected.names.index(found["name"])
            assert found["label"] == label and found["pixels"] == (expected.labels == label).sum()
            assert 0 < found["score"] <= 1


def test_predict_in_mixed_precision_segments_about_the_same(model, tiny_masks, tmp_path):
    file = sorted((tiny_masks / "JPEGImages").glob("val_*"))[0]
    masks = []
    for precision in ("32-true", "bf16-mixed"):
        (row,) = predicted(model, tmp_path / precision, file, options=("--precision", precision))
        with Image.open(row["masks"][0]) as mask:
            masks.append(np.asarray(mask))
    assert (masks[0] == masks[1]).mean() > 0.9


def test_a_photograph_larger_than_a_tile_is_cut(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.tif")
    tiles = ("--tile", "96", "--overlap", "32")
    (row,) = predicted(model, tmp_path / "out", tmp_path / "large.tif", options=tiles)
    expected = load(model).predict(pixels, tile=96, overlap=32)
    with Image.open(row["masks"][0]) as mask:
        assert np.array_equal(np.asarray(mask), expected.labels)
    whole = load(model).predict(pixels)
    assert (whole.labels != expected.labels).mean() < 0.1
    options = (*tiles, "--no-pictures")
    (row,) = predicted(model, tmp_path / "bare", tmp_path / "large.tif", options=options)
    assert row["picture"] is None
    assert files_below(tmp_path / "bare").keys() == {"large_mask.png", "predictions.json"}


def test_names_that_clash_get_files_of_their_own(model, tiny_masks, tmp_path):
    source = sorted((tiny_masks / "JPEGImages").iterdir())[0]
    names = ["a/1.png", "b/1.png", "a/1_mask.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(read_image(source)).save(tmp_path / name)
    rows = predicted(model, tmp_path / "out", *(tmp_path / name for name in names))
    written = [row["picture"] for row in rows] + [row["masks"][0] for row in rows]
    assert len(set(written)) == 6


def test_both_commands_refuse_in_one_line(refused_command, model, tiny_run, tiny_masks, tmp_path):
    image = sorted((tiny_masks / "JPEGImages").iterdir())[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(read_image(image)).save(folder / "photo_mask.png")
    Image.fromarray(read_image(image)).save(folder / "photo.jpg")
    common = ("--data", tiny_masks, "--workers", "0")
    detector = tiny_run / "model.safetensors"
    for command, argv, message in (
        (evaluate, (model, *common, "--layout", "coco"), "--layout of a segmenter must be one of"),
        (evaluate, (detector, *common, "--layout", "sbd"), "--layout of a detector must be one of"),
        (evaluate, (model, *common, "--split", "test"), "test"),
        (evaluate, (model, *common, "--boundary-tolerance", "0"), "boundary_tolerance must lie in"),
        (predict, (model, image, "--tile", "0"), "tile must be at least 2"),
        (predict, (model, image, "--overlap", "2000"), "overlap must lie in [0, 512]"),
        (
            predict,
            (model, folder / "photo.jpg", folder / "photo_mask.png", "--out", folder),
            "over",
        ),
    ):
        code, line = refused_command(command.main, *argv)
        assert code == 1 and message in line
