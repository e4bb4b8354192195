"""Segmentation data in any layout: recognized, merged, in one order of classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import (
    NAMES,
    masks,
    some_masks,
    write_camvid,
    write_coco,
    write_folders,
    write_panoptic,
    write_sbd,
    write_voc,
)

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.image_checks import check_images
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.sets.splitting import sample_subset

WRITERS = {
    "voc": write_voc,
    "folders": write_folders,
    "coco_instances": write_coco,
    "coco_panoptic": write_panoptic,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_are_recognized_and_give_the_same_masks(tmp_path, layout):
    found = some_masks()
    WRITERS[layout](tmp_path, found)
    for given_layout in ("auto", layout):
        data = read_segmentation(str(tmp_path), "train", given_layout)
        assert (data.classes.names, data.task, len(data)) == (NAMES, "multiclass", 3)
        for record, mask in zip(data.records, found.values(), strict=True):
            np.testing.assert_array_equal(record.read_mask(), mask)
    check_images(data)


def test_sbd_and_camvid_are_recognized(tmp_path):
    write_sbd(tmp_path / "sbd", {"a": np.zeros((4, 5), np.uint8)})
    assert read_segmentation(tmp_path / "sbd", "train").classes.num_classes == 21
    write_camvid(tmp_path / "camvid", {"a": np.zeros((4, 5), np.uint8)})
    assert read_segmentation(tmp_path / "camvid", "train").classes.num_classes == 11


def test_where_there_are_several_layouts_the_order_is_fixed(tmp_path):
    found = some_masks()
    order = ("coco_instances", "coco_panoptic", "voc", "folders")
    expected = [(0, 5, 10), (3, 4, 5), (0, 1, 2), (300, 301, 302)]
    for layout, ids in zip(order, expected, strict=True):
        WRITERS[layout](tmp_path, found)
        assert read_segmentation(tmp_path, "train").classes.ids == ids
    assert read_segmentation(tmp_path, "train", "coco_instances").classes.ids == (0, 5, 10)


def test_a_panoptic_file_of_another_split_does_not_count(tmp_path):
    write_coco(tmp_path, some_masks())
    write_panoptic(tmp_path, some_masks(), split="val2017")
    assert read_segmentation(tmp_path, "train").classes.ids == (0, 5, 10)
    assert read_segmentation(tmp_path, "val").classes.ids == (3, 4, 5)


def test_tasks(tmp_path):
    write_coco(tmp_path, some_masks())
    data = read_segmentation(tmp_path, "train", task="multilabel")
    assert (data.task, data.num_logits, data.classes.names) == ("multilabel", 2, ("cat", "dog"))
    with pytest.raises(DataError, match=r"a binary task needs 2 classes.*got 3"):
        read_segmentation(tmp_path, "train", task="binary")
    write_coco(tmp_path / "one", some_masks(labels=2), names=("cat",))
    data = read_segmentation(tmp_path / "one", "train", task="binary")
    assert (data.task, data.num_logits) == ("binary", 1)
    assert set(np.unique(data.records[0].read_mask())) == {0, 1, 255}
    with pytest.raises(DataError, match="task must be one of"):
        read_segmentation(tmp_path, "train", task="semantic")
    write_voc(tmp_path / "voc", some_masks())
    with pytest.raises(DataError, match="the layout 'voc' has one class a pixel"):
        read_segmentation(tmp_path / "voc", "train", "voc", task="multilabel")


@settings(max_examples=20)
@given(mask=masks(), order=st.permutations(NAMES))
def test_classes_in_any_order_are_the_same_classes(tmp_path_factory, mask, order):
    root = write_voc(tmp_path_factory.mktemp("voc"), {"a": mask})
    data = read_segmentation(root, "train", classes=order)
    labels = data.records[0].read_mask()
    for label, name in enumerate(order):
        np.testing.assert_array_equal(labels == label, mask == NAMES.index(name))


def test_several_sources_become_one_set(tmp_path):
    """As VOC and SBD do; classes follow the first by name, whatever their ids."""
    found = some_masks()
    write_voc(tmp_path / "a", found)
    write_coco(tmp_path / "b", found)
    write_panoptic(tmp_path / "c", found, names=NAMES)
    data = read_segmentation(
        [
            (tmp_path / "a", "train"),
            [tmp_path / "b", "train"],
            {"root": tmp_path / "c", "split": "train", "layout": "coco_panoptic"},
        ]
    )
    assert data.name == "a/train+b/train2017+c/train2017"
    assert [r.image_id for r in data.records] == list(range(1, 10))
    assert data.classes.ids == (0, 1, 2)
    for n, record in enumerate(data.records):
        np.testing.assert_array_equal(record.read_mask(), found[f"im{n % 3}"])
    assert [r.image_id for r in read_segmentation([(tmp_path / "b", "train")]).records] == [
        0,
        7,
        14,
    ]
    assert len(sample_subset(data, 0.5, seed=1)) == 4


def test_merged_labels_follow_the_names_of_the_first_source(tmp_path):
    found = some_masks()
    write_voc(tmp_path / "a", found)
    write_voc(tmp_path / "b", found, names=("background", "dog", "cat"))
    data = read_segmentation([(tmp_path / "a", "train"), (tmp_path / "b", "train")])
    table = np.arange(256, dtype=np.uint8)
    table[1:3] = 2, 1
    for n, mask in enumerate(found.values()):
        np.testing.assert_array_equal(data.records[n].read_mask(), mask)
        np.testing.assert_array_equal(data.records[n + 3].read_mask(), table[mask])


def test_differing_classes_are_refused_unless_given(tmp_path):
    found = some_masks()
    write_voc(tmp_path / "a", found)
    write_coco(tmp_path / "b", found, names=("dog", "fox"))
    sources = [(tmp_path / "a", "train"), (tmp_path / "b", "train")]
    with pytest.raises(DataError, match=r"a/train and b/train2017 .* \('cat', 'fox' in one"):
        read_segmentation(sources)
    names = ["background", "cat", "dog", "fox"]
    data = read_segmentation(sources, classes=names)
    assert data.classes.names == tuple(names)
    table = np.arange(256, dtype=np.uint8)
    table[1:3] = 2, 3
    np.testing.assert_array_equal(data.records[3].read_mask(), table[found["im0"]])
    bare = read_segmentation(sources, classes=["background", "dog", "fox"])
    with pytest.raises(DataError, match=r"im0.png: has \d+ pixels of the class 'cat', which"):
        bare.records[0].read_mask()
    with pytest.raises(DataError, match=r"has 1 class \('fox'\) that are not among the 3"):
        read_segmentation(sources, classes=["background", "dog", "cat"])


def test_sources_may_name_their_files(tmp_path):
    write_panoptic(tmp_path, some_masks())
    (tmp_path / "annotations/panoptic_train2017.json").rename(tmp_path / "my.json")
    (tmp_path / "annotations/panoptic_train2017").rename(tmp_path / "ids")
    source = {
        "root": tmp_path,
        "split": "train2017",
        "annotation_file": "my.json",
        "mask_folder": "ids",
    }
    assert len(read_segmentation([source])) == 3
    with pytest.raises(DataError, match="'mask_folder' do not belong to the layout 'voc'"):
        read_segmentation([{**source, "layout": "voc"}])
    with pytest.raises(DataError, match=r"a source needs root and split.*'mask_folders'"):
        read_segmentation([{"root": tmp_path, "split": "x", "mask_folders": "y"}])


def test_faults_of_the_call_are_explained(tmp_path):
    with pytest.raises(DataError, match=r"nor any other that is known; it has no files"):
        read_segmentation(tmp_path, "train")
    with pytest.raises(DataError, match="there is no such file or folder"):
        read_segmentation(tmp_path / "none", "train")
    with pytest.raises(DataError, match="which split"):
        read_segmentation(tmp_path)
    with pytest.raises(DataError, match=r"layout must be one of .* not 'yolov9'"):
        read_segmentation(tmp_path, "train", "yolov9")
    with pytest.raises(DataError, match="no sources"):
        read_segmentation([])
    with pytest.raises(DataError, match="each names its own split"):
        read_segmentation([(tmp_path, "train")], "train")


def test_real_data_is_recognized(shared_data):
    assert len(read_segmentation(shared_data / "camvid", "val")) == 101
    assert read_segmentation(shared_data / "coco_tiny", "val").classes.num_classes == 81


def test_drawn_scenes_are_read_from_their_voc_masks(tiny_scenes):
    data = read_segmentation(tiny_scenes, "val")
    assert data.name == "VOC/val" and data.classes.num_classes == 7 and len(data) == 7
