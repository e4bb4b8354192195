"""Counts of pixels, the check of masks that they are, weights and the cache."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_sets import some_masks, write_camvid, write_coco, write_mask, write_voc

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.masks import statistics as mask_statistics
from densenet_backbones.data.masks.statistics import (
    PixelCounts,
    check_masks,
    compute_median_frequency_weights,
    count_class_pixels,
    find_cache_folder,
    fingerprint_files,
)
from densenet_backbones.data.readers.segmentation_sources import read_segmentation


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "densenet_backbones"


@pytest.fixture
def found():
    masks = some_masks(4, labels=4)
    masks["im1"][masks["im1"] == 2] = 0
    return {name: np.where(mask == 3, 0, mask) for name, mask in masks.items()}


def reads(monkeypatch):
    """How many masks are read from here on."""
    seen = []
    original = mask_statistics._count

    def counted(record, count):
        seen.append(record)
        return original(record, count)

    monkeypatch.setattr(mask_statistics, "_count", counted)
    return seen


def test_pixels_are_counted(tmp_path, found):
    data = read_segmentation(write_voc(tmp_path / "voc", found), "train")
    counts = count_class_pixels(data, progress=False, workers=2)
    values = np.stack(list(found.values()))
    assert counts.pixels == tuple(int((values == c).sum()) for c in range(3))
    assert counts.ignored == (values == 255).sum() == 8
    assert counts.labeled == values.size - 8 and counts.ignored_share == 8 / values.size
    assert counts.images == (4, 4, 3)
    assert counts.in_images == (4 * 52, 4 * 52, 3 * 52)


def test_channels_are_counted_each_by_itself(tmp_path, found):
    data = read_segmentation(write_coco(tmp_path / "c", found), "train", task="multilabel")
    counts = count_class_pixels(data)
    values = np.stack(list(found.values()))
    assert counts.pixels == ((values == 1).sum(), (values == 2).sum())
    assert counts.ignored == 8  # the crowds are of the first category
    assert counts.labeled == 2 * values.size - 8
    assert counts.in_images == (4 * 52, 3 * 54)


def test_masks_are_read_once_and_again_when_something_changes(tmp_path, found, cache, monkeypatch):
    root = write_voc(tmp_path / "voc", found)
    before = set(root.rglob("*"))
    seen = reads(monkeypatch)
    first = count_class_pixels(read_segmentation(root, "train"))
    assert len(seen) == 4 and count_class_pixels(read_segmentation(root, "train")) == first
    check_masks(read_segmentation(root, "train"))
    assert len(seen) == 4 and len(list(cache.iterdir())) == 1
    assert set(root.rglob("*")) == before  # nothing is written beside the data
    write_mask(root / "SegmentationClass/im0.png", np.ones((6, 9), np.uint8))
    changed = count_class_pixels(read_segmentation(root, "train"))
    assert len(seen) == 8 and changed != first
    count_class_pixels(read_segmentation(root, "train", classes=["cat", "background", "dog"]))
    assert len(seen) == 12
    os.utime(root / "JPEGImages/im3.jpg", (1, 1))
    count_class_pixels(read_segmentation(root, "train"))
    assert len(seen) == 16
    count_class_pixels(read_segmentation(root, "train"), cache=tmp_path / "mine")
    assert len(seen) == 20 and len(list((tmp_path / "mine").iterdir())) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"pixels": [1]}', '{"pixels": 3, "in_images": 3, "images": 3}']
)
def test_a_damaged_cache_is_counted_again(tmp_path, found, cache, content):
    data = read_segmentation(write_voc(tmp_path / "voc", found), "train")
    counts = count_class_pixels(data)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    file.write_text(content)
    assert count_class_pixels(data) == counts
    assert json.loads(file.read_text()) == kept


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, found, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = read_segmentation(write_voc(tmp_path / "voc", found), "train")
    assert count_class_pixels(data) == count_class_pixels(data)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / ".cache" / "densenet_backbones"


def test_fingerprints_differ_with_what_is_ignored(tmp_path, found):
    root = write_camvid(tmp_path / "c", found)
    (root / "classes.yaml").write_text("classes: [a, b, c]\nignored: [255]\n")
    first = fingerprint_files(read_segmentation(root, "train"))
    assert first == fingerprint_files(read_segmentation(root, "train"))
    (root / "classes.yaml").write_text("classes: [a, b, c]\nignored: [255, 9]\n")
    assert first != fingerprint_files(read_segmentation(root, "train"))


def test_all_faulty_masks_are_named_at_once_and_nothing_is_kept(tmp_path, found, cache):
    root = write_voc(tmp_path / "voc", found)
    data = read_segmentation(root, "train")
    folder = root / "SegmentationClass"
    write_mask(folder / "im0.png", np.full((6, 9), 77, np.uint8))
    (folder / "im1.png").write_bytes((folder / "im1.png").read_bytes()[:50])
    write_mask(folder / "im2.png", np.zeros((9, 6), np.uint8))
    (folder / "im3.png").unlink()
    with pytest.raises(DataError, match="voc/train: 4 of 4 masks cannot be used") as caught:
        check_masks(data, progress=False)
    lines = str(caught.value).splitlines()[1:]
    assert "im0.png: has 1 id that no class has: 77 (54 pixels)" in lines[0]
    assert "im1.png: cannot be read" in lines[1] and "the mask is 6x9 pixels" in lines[2]
    assert "im3.png: there is no such image file" in lines[3]
    assert not cache.exists()


def test_sizes_that_annotations_claim_are_compared_with_the_image(tmp_path, found):
    root = write_coco(tmp_path / "c", {"a": found["im0"]})
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["width"] = 8
    content["annotations"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"a\.jpg: is 9x6 pixels as shown, its annotations say 8x6"):
        check_masks(read_segmentation(root, "train"))


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_the_median_frequency_over_the_own():
    counts = PixelCounts((10, 40, 5, 0), (100, 100, 50, 0), (2, 2, 1, 0), 3)
    np.testing.assert_allclose(counts.frequencies()[:3], [0.1, 0.4, 0.1])
    np.testing.assert_allclose(compute_median_frequency_weights(counts), [1, 0.25, 1, 1])
    assert compute_median_frequency_weights(PixelCounts((0, 0), (0, 0), (0, 0), 9)) == (1, 1)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=30))
def test_weights_turn_every_frequency_into_the_median(pixels):
    total = (sum(pixels),) * len(pixels)
    weights = compute_median_frequency_weights(PixelCounts(tuple(pixels), total, total, 0))
    even = np.array(weights) * pixels / total[0]
    np.testing.assert_allclose(even, np.median(np.array(pixels) / total[0]))


def test_real_counts(shared_data):
    data = read_segmentation(shared_data / "camvid", "val")
    counts = count_class_pixels(data, progress=False)
    assert sum(counts.pixels) + counts.ignored == 101 * 480 * 360
    names = data.classes.names
    ordered = sorted(zip(compute_median_frequency_weights(counts), names, strict=True))
    assert {name for _, name in ordered[:3]} == {"road", "building", "tree"}
    assert ordered[-1][1] == "pole" and dict(map(reversed, ordered))["fence"] == 1
