"""Class lists and the evaluator's form of a detection set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import MaskSample
from densenet_backbones.data.samples import DetectionSet, ImageRecord, Sample

COCO = Categories(("person", "toothbrush"), (1, 90))


def test_labels_start_after_the_background():
    assert COCO.num_classes == 3
    assert COCO.label_of_name("toothbrush") == COCO.label_of_id(90) == 2
    assert COCO.id_of_label(2) == 90
    assert [COCO.name_of_label(n) for n in range(3)] == ["background", "person", "toothbrush"]


def test_unknown_labels_names_and_ids_are_key_errors():
    for call, value in (
        (COCO.label_of_name, "dog"),
        (COCO.label_of_id, 2),
        (COCO.id_of_label, 0),
        (COCO.id_of_label, 3),
    ):
        with pytest.raises(KeyError):
            call(value)


@given(
    st.dictionaries(
        st.integers(), st.text(min_size=1).filter(str.strip), min_size=1, max_size=5
    ).filter(lambda d: len(set(d.values())) == len(d))
)
def test_categories_survive_json(named):
    categories = Categories(tuple(named.values()), tuple(named))
    state = json.loads(json.dumps(categories.to_dict()))
    assert Categories.from_dict(state) == categories
    for label in range(1, categories.num_classes):
        assert categories.label_of_id(categories.id_of_label(label)) == label
        assert categories.label_of_name(categories.name_of_label(label)) == label


@pytest.mark.parametrize(
    ("names", "ids", "match"),
    [
        (("a", "b"), (1,), "2 class names but 1 class ids"),
        (("a", "a"), (1, 2), r"class names must be unique; given twice: \['a'\]"),
        (("a", "b"), (1, 1), r"class ids must be unique; given twice: \[1\]"),
    ],
)
def test_inconsistent_categories_are_refused(names, ids, match):
    with pytest.raises(DataError, match=match):
        Categories(names, ids)


@pytest.mark.parametrize("names", ["dog", ["dog", ""], ["dog", 3]])
def test_class_lists_are_lists_of_names(names):
    with pytest.raises(DataError, match="classes must be a list of names"):
        Categories.from_names(names)


def test_ground_truth_numbers_annotations_from_one():
    """pycocotools takes an annotation with id 0 for one that was never matched."""
    box = {"id": 0, "category_id": 90, "bbox": [0.0, 0.0, 4.0, 5.0], "area": 20.0, "iscrowd": 0}
    records = tuple(
        ImageRecord(
            image_id=n,
            path=Path(f"{n}.jpg"),
            width=10,
            height=20,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            difficult=np.zeros(0, bool),
            annotations=(box, {**box, "difficult": 1}, {**box, "iscrowd": 1}),
        )
        for n in (5, 6)
    )
    truth = DetectionSet("set", records, COCO).ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [a["image_id"] for a in truth["annotations"]] == [5, 5, 5, 6, 6, 6]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 1, 1, 0, 1, 1]
    assert truth["images"][0] == {"id": 5, "file_name": "5.jpg", "width": 10, "height": 20}
    assert truth["categories"][1] == {"id": 90, "name": "toothbrush"}


def test_a_loader_pins_every_tensor_of_a_batch(monkeypatch):
    # Pinning itself needs a GPU.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
    sample = Sample(torch.zeros(3, 2, 2), torch.zeros(1, 4), torch.zeros(1), 7, 0, torch.zeros(1))
    mask_sample = MaskSample(torch.zeros(3, 2, 2), torch.zeros(2, 2), 7, 0, (2, 2))
    pinned, pinned_mask = pin_memory([sample, mask_sample])
    for name in ("image", "boxes", "labels", "masks"):
        assert getattr(pinned, name).min() == 1 and getattr(sample, name).max() == 0
    assert pinned_mask.image.min() == pinned_mask.mask.min() == 1
    assert pinned.keypoints is None and pinned.image_id == 7
