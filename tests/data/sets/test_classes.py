"""Classes are renamed, merged, left out and chosen by name, in boxes, outlines and masks."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instance_sets import write_instances
from mask_sets import masks, some_masks, write_camvid, write_coco

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import IGNORED
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.sets.classes import (
    ClassChanges,
    change_classes,
    keep_classes,
    parse_names,
    parse_renaming,
    refuse_new_classes,
)


def list_objects(data):
    """Name, box and own annotation of every object, image after image."""
    names = data.categories.names
    return [
        [
            (names[label - 1], box.tolist(), record.annotations[n]["id"])
            for label, box, n in zip(record.labels, record.boxes, record.annotation_of, strict=True)
        ]
        for record in data.records
    ]


NEW = ("person", "box", "thing")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rename=st.dictionaries(st.sampled_from(["person", "box"]), st.sampled_from(NEW)),
    drop=st.sets(st.sampled_from(NEW)),
)
def test_objects_keep_boxes_and_annotations_under_their_new_names(drawn, rename, drop):
    before = read_coco(drawn, "train")
    names = [rename.get(name, name) for name in before.categories.names]
    if not set(names) - drop:
        with pytest.raises(DataError, match="none of its classes is left"):
            change_classes(before, ClassChanges(rename, sorted(drop & set(names))))
        return
    after = change_classes(before, ClassChanges(rename, sorted(drop & set(names))))
    expected = [
        [
            (rename.get(name, name), box, own)
            for name, box, own in image
            if rename.get(name, name) not in drop
        ]
        for image in list_objects(before)
    ]
    assert list_objects(after) == expected
    for one, other in zip(before.records, after.records, strict=True):
        ids = {before.categories.ids[n]: name for n, name in enumerate(names)}
        stay = [(a["id"], ids[a["category_id"]]) for a in one.annotations]
        found = dict(zip(after.categories.ids, after.categories.names, strict=True))
        assert [(a["id"], found[a["category_id"]]) for a in other.annotations] == [
            pair for pair in stay if pair[1] not in drop
        ]
    # The set that it was made of is as before.
    assert before.categories.names == ("person", "box")
    assert list_objects(before) == list_objects(read_coco(drawn, "train"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_instances(tmp_path_factory.mktemp("coco"))


def test_chosen_classes_are_put_in_order_and_others_refused_unless_dropped(drawn):
    data = read_coco(drawn, "train")
    with pytest.raises(DataError, match=r"objects of 1 class \('box'\) that are not among the 2"):
        change_classes(data, ClassChanges(), ["fly", "person"])
    after = change_classes(data, ClassChanges(drop=["*"]), ["fly", "person"])
    assert after.categories.names == ("fly", "person") and after.categories.ids[1] == 3
    assert list_objects(after) == list_objects(keep_classes(data, ["person"]))
    with pytest.raises(DataError, match=r"has no class 'persn'; did you mean 'person'\?"):
        change_classes(data, ClassChanges({"persn": "x"}))
    with pytest.raises(DataError, match="no class 'bix'; did you mean 'box'"):
        change_classes(data, ClassChanges(drop=["bix"]))
    with pytest.raises(DataError, match="'\\*' leaves out all classes that are not chosen, but"):
        change_classes(data, ClassChanges(drop=["*"]))


def test_a_slip_in_a_chosen_class_loses_no_objects(drawn):
    data, others = read_coco(drawn, "train"), ClassChanges({"box": "crate"}, ["*"])
    with pytest.raises(
        DataError, match=r"has no class 'persn'; did you mean 'person'\?"
    ) as refusal:
        refuse_new_classes([data], others, ["crate", "persn"])
    assert data.name in str(refusal.value)
    refuse_new_classes([data], others, ["crate", "person"])
    refuse_new_classes([data], ClassChanges(), ["persn"])  # nothing is left out
    chosen = {"classes": ["boxs"], "drop": ["*"], "allow_shared_images": True}
    with pytest.raises(DataError, match=r"has no class 'boxs'; did you mean 'box'\?"):
        DetectionData(str(drawn), val_split="train", **chosen).setup("fit")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(mask=masks(smallest=2))
def test_pixels_of_merged_classes_are_one_and_those_left_out_background(mask, tmp_path_factory):
    found = {"a": mask, "b": np.arange(3, dtype=np.uint8)[None].repeat(2, 0)}
    root = write_coco(tmp_path_factory.mktemp("masks"), found)
    data = read_segmentation(root, "train")
    values = [record.read_mask() for record in data.records]
    merged = change_classes(data, ClassChanges({"cat": "animal", "dog": "animal"}))
    assert merged.classes.names == ("background", "animal")
    without = change_classes(data, ClassChanges(drop=["cat"]), ["dog", "background"])
    many = read_segmentation(root, "train", task="multilabel")
    both = change_classes(many, ClassChanges({"cat": "animal", "dog": "animal"}))
    one = change_classes(many, ClassChanges(drop=["cat"]))
    for n, value in enumerate(values):
        np.testing.assert_array_equal(
            merged.records[n].read_mask(), np.where(value == IGNORED, value, np.minimum(value, 1))
        )
        expected = np.choose(np.minimum(value, 3), (1, 1, 0, IGNORED))
        np.testing.assert_array_equal(without.records[n].read_mask(), expected)
        channels = many.records[n].read_mask()
        laid = np.where((channels == 1).any(0), 1, np.where((channels == IGNORED).any(0), 255, 0))
        np.testing.assert_array_equal(both.records[n].read_mask(), laid[None])
        np.testing.assert_array_equal(one.records[n].read_mask(), channels[1:])


def test_pixels_left_out_are_ignored_where_there_is_no_background(tmp_path):
    data = read_segmentation(write_camvid(tmp_path, some_masks(1)), "train")
    after = change_classes(data, ClassChanges(drop=["sky"]))
    before, mask = data.records[0].read_mask(), after.records[0].read_mask()
    assert (mask[before == 0] == IGNORED).all() and (mask[before == 1] == 0).all()
    assert after.classes.ids == data.classes.ids[1:]


def test_the_background_stays_where_objects_are_chosen(tmp_path):
    data = read_segmentation(write_coco(tmp_path, some_masks(1)), "train")
    after = change_classes(data, ClassChanges(drop=["*"]), ["dog"])
    assert after.classes.names == ("background", "dog")
    values = data.records[0].read_mask()
    expected = np.choose(np.minimum(values, 3), (0, 0, 1, IGNORED))
    np.testing.assert_array_equal(after.records[0].read_mask(), expected)


def test_options_are_parsed():
    assert parse_renaming("kitty=cat, puppy = dog,") == {"kitty": "cat", "puppy": "dog"}
    assert parse_names("cat, hot dog,") == ["cat", "hot dog"]
    for wrong in ("kitty", "kitty=", "=cat", ","):
        with pytest.raises(DataError, match="'old=new,older=new'"):
            parse_renaming(wrong)
