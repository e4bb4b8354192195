"""A quick look at all image files before training: what it finds, and at what it does not stop."""

import os
import shutil

import numpy as np
import pytest
from instance_sets import write_instances
from PIL import Image

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders import image_checks
from densenet_backbones.data.loaders.image_checks import check_images, looks_whole
from densenet_backbones.data.readers.coco.boxes import read_coco

FORMATS = ["jpg", "png", "gif", "bmp", "webp"]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_end_too_early_are_suspects(tmp_path, pixels, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    assert looks_whole(path)
    content = path.read_bytes()
    for size in (0, 1, 3, 20, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:size])
        assert not looks_whole(path), size


def test_what_is_no_file_is_a_suspect_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "none.jpg", tmp_path / "a.jpg"):
        assert not looks_whole(path)


@pytest.fixture
def many(tmp_path):
    """Forty images, the 23rd of them truncated."""
    root = write_instances(tmp_path, ((24, 36),) * 40)
    path = root / "train/22.png"
    path.write_bytes(path.read_bytes()[:-50])
    return root


def test_a_truncated_image_ends_the_run_in_one_line_before_it_begins(many, monkeypatch):
    monkeypatch.setattr(image_checks, "DECODED", 1)
    with pytest.raises(
        DataError, match=r"train/22\.png: cannot be read .* data\.bad_images skip goes"
    ) as caught:
        _ = DetectionData(str(many), num_workers=0).train_set
    assert "\n" not in str(caught.value)


def test_a_systematic_fault_shows_in_the_images_that_are_decoded(many, monkeypatch):
    monkeypatch.setattr(image_checks, "looks_whole", lambda path: True)
    for path in (many / "train").iterdir():
        path.write_bytes(path.read_bytes().replace(b"IDAT", b"idat"))
    decoded = image_checks.DECODED
    with pytest.raises(
        DataError, match=rf"0\.png: .* \({decoded - 2} of {decoded - 2} images decoded"
    ):
        check_images(read_coco(many, "train"), decode=False)


def test_skipped_images_are_named_among_the_faults(many):
    (problem,) = DetectionData(str(many), num_workers=0, bad_images="skip").train_set.problems
    assert problem.file.endswith("22.png") and problem.what.startswith("cannot be read")
    assert len(read_coco(many, "train")) == 40


def test_bytes_after_an_image_are_no_fault(many):
    for number in range(22, 30):
        path = many / f"train/{number}.png"
        shutil.copy(many / "train/0.png", path)
        path.write_bytes(path.read_bytes() + b"\0" * 100)
        assert not looks_whole(path)
    check_images(read_coco(many, "train"), decode=False)
