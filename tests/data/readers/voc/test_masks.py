"""VOC's SegmentationClass: lists, palettes, label maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from mask_sets import COLORS, NAMES, colored, masks, some_masks, write_mask, write_voc

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import voc_color
from densenet_backbones.data.readers.voc.masks import (
    VOC_MASK_CLASSES,
    read_label_map,
    read_voc_masks,
)


@pytest.fixture
def found():
    return some_masks()


def test_the_classes_are_vocs_where_nothing_else_is_said(tmp_path, found):
    write_voc(tmp_path, found, names=None)
    data = read_voc_masks(tmp_path, "train")
    assert data.classes == VOC_MASK_CLASSES and data.classes.num_classes == 21
    assert data.classes.names[:2] == ("background", "aeroplane")
    assert data.classes.colors[20] == voc_color(20)
    assert [r.name for r in data.records] == list(found) and data.task == "multiclass"
    assert [r.image_id for r in data.records] == [1, 2, 3]
    for record, mask in zip(data.records, found.values(), strict=True):
        assert (record.height, record.width) == mask.shape
        np.testing.assert_array_equal(record.read_mask(), mask)
        assert record.mask.files == (tmp_path / "SegmentationClass" / f"{record.name}.png",)


@settings(max_examples=30)
@given(mask=masks())
def test_masks_come_back_in_every_mode(tmp_path_factory, mask):
    for mode in ("P", "L"):
        root = write_voc(tmp_path_factory.mktemp("voc"), {"a": mask}, mode=mode)
        np.testing.assert_array_equal(read_voc_masks(root, "train").records[0].read_mask(), mask)


@pytest.mark.parametrize("around", ["", "VOCdevkit/VOC2012", "VOC2012"])
def test_the_folder_is_found_below(tmp_path, found, around):
    write_voc(tmp_path / around, found)
    assert len(read_voc_masks(tmp_path, "train")) == 3


def test_a_label_map_names_ids_and_colors(tmp_path, found):
    write_voc(tmp_path, found)
    name, mask = next(iter(found.items()))
    write_mask(tmp_path / f"SegmentationClass/{name}.png", colored(mask), "RGB")
    data = read_voc_masks(tmp_path, "train")
    assert (data.classes.names, data.classes.colors) == (NAMES, COLORS)
    for record, mask in zip(data.records, found.values(), strict=True):
        np.testing.assert_array_equal(record.read_mask(), mask)
    other = read_voc_masks(tmp_path, "train", classes=["dog", "cat", "background"])
    np.testing.assert_array_equal(other.records[0].read_mask() == 0, found["im0"] == 2)


def test_names_can_be_given_to_ids(tmp_path, found):
    write_voc(tmp_path, found, names=None)
    data = read_voc_masks(tmp_path, "train", classes=["sky", "sea", "land"])
    assert data.classes.names == ("sky", "sea", "land")
    np.testing.assert_array_equal(data.records[0].read_mask(), found["im0"])


def test_vocs_names_in_another_order_are_matched_by_name(tmp_path, found):
    write_voc(tmp_path, found, names=None)
    data = read_voc_masks(tmp_path, "train", classes=[*VOC_MASK_CLASSES.names[::-1], "zebra"])
    assert data.classes.num_classes == 22
    np.testing.assert_array_equal(data.records[0].read_mask() == 20, found["im0"] == 0)


def test_rgb_without_colors_is_refused_with_a_way_out(tmp_path, found):
    write_voc(tmp_path, found, names=None)
    write_mask(tmp_path / "SegmentationClass/im1.png", colored(found["im1"]), "RGB")
    record = read_voc_masks(tmp_path, "train").records[1]
    with pytest.raises(DataError, match=r"im1\.png: is an RGB picture, but class ids are expected"):
        record.read_mask()


def test_masks_of_another_size_are_all_named(tmp_path, found):
    write_voc(tmp_path, found)
    write_mask(tmp_path / "SegmentationClass/im0.png", found["im0"][:-1])
    write_mask(tmp_path / "SegmentationClass/im2.png", found["im2"].T.copy())
    with pytest.raises(DataError, match="2 of 3 masks with the wrong size") as caught:
        read_voc_masks(tmp_path, "train")
    lines = str(caught.value).splitlines()
    assert "im0.png: the mask is 9x5 pixels, its image im0.jpg 9x6 as shown; draw it" in lines[1]
    assert "im2.png" in lines[2] and "before the image was turned upright" in lines[2]


def test_missing_partners_are_named(tmp_path, found):
    write_voc(tmp_path, found)
    (tmp_path / "SegmentationClass/im1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 mask of the split 'train' \('im1',"):
        read_voc_masks(tmp_path, "train")
    write_voc(tmp_path, found)
    (tmp_path / "JPEGImages/im2.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 image of the split 'train' \('im2',"):
        read_voc_masks(tmp_path, "train")


def test_wrong_splits_are_explained(tmp_path, found):
    write_voc(tmp_path, found)
    with pytest.raises(DataError, match=r"has no trian\.txt .*did you mean 'train'"):
        read_voc_masks(tmp_path, "trian")
    lists = tmp_path / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt: lists no images"):
        read_voc_masks(tmp_path, "train")
    (lists / "train.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match=r"line 1: file name '\.\./\.\./secret' must be relative"):
        read_voc_masks(tmp_path, "train")
    (lists / "train.txt").unlink()
    assert len(read_voc_masks(tmp_path, "all")) == 3
    assert read_voc_masks(tmp_path, "all").problems == ()
    (tmp_path / "SegmentationClass/im1.png").unlink()
    (problem,) = read_voc_masks(tmp_path, "all").problems
    assert problem.what == "1 of 3 images have no mask ('im1.jpg')"


def test_a_folder_of_another_kind_is_explained(tmp_path):
    with pytest.raises(DataError, match="expected JPEGImages/, SegmentationClass/ and ImageSets"):
        read_voc_masks(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road", "line 1: 'road' must be a name and a color"),
        ("# x\nroad:1,2::", "line 2: 'road:1,2::' must be"),
        ("road:1,2,256::", "must be a name and a color"),
        (":1,2,3::", "must be a name and a color"),
        ("a:1,2,3::\na:1,2,4::", "line 2: class 'a' is there twice"),
        ("# nothing\n", "names no classes"),
        ("a:1,2,-3", "must be a name and a color"),
    ],
)
def test_faulty_label_maps_are_refused(tmp_path, text, message):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_label_map(tmp_path / "labelmap.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_label_map(tmp_path)


def test_drawn_scenes_have_masks_with_names(tiny_scenes):
    data = read_voc_masks(tiny_scenes, "train")
    names = ("background", "circle", "rectangle", "triangle", "star", "ring", "figure")
    assert data.classes.names == names and len(data) == 12
    values = np.unique(np.stack([r.read_mask() for r in data.records]))
    assert set(values) <= {*range(7), 255} and len(values) > 4
