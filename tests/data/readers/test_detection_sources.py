"""Data from one folder or several: layouts, classes by name, checks, counts and parts."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from densenet_backbones.data import files
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders import image_checks
from densenet_backbones.data.loaders.image_checks import check_images
from densenet_backbones.data.readers.detection_sources import (
    read_detection,
)
from densenet_backbones.data.sets.classes import keep_classes
from densenet_backbones.data.sets.counts import ClassCount, count_classes
from densenet_backbones.data.sets.splitting import sample_subset


def write_voc(root, names=("dog", "cat"), *, images=2, split="train", classes=None):
    """A VOC data set: in each image one object a name, the last one difficult."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = [f"{split}{n}" for n in range(images)]
    for image_id in ids:
        objects = "".join(
            f"<object><name>{name}</name><difficult>{int(n == len(names) - 1)}</difficult><bndbox>"
            f"<xmin>{n + 1}</xmin><ymin>1</ymin><xmax>{n + 5}</xmax><ymax>6</ymax></bndbox>"
            "</object>"
            for n, name in enumerate(names)
        )
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        Image.new("RGB", (20, 10)).save(root / f"JPEGImages/{image_id}.png")
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(ids))
    return root


def write_coco(root, categories=((90, "cat"), (4, "dog")), *, images=2, split="train2017"):
    """A COCO data set: in each image one object a category, and a crowd of the first."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    entries, annotations = [], []
    for image_id in range(images):
        entries.append(
            {"id": image_id * 10, "file_name": f"{image_id}.png", "width": 20, "height": 10}
        )
        Image.new("RGB", (20, 10)).save(root / split / f"{image_id}.png")
        for n, (category_id, _) in enumerate((*categories, categories[0])):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id * 10,
                    "category_id": category_id,
                    "bbox": [n, 0, 5, 6],
                    "iscrowd": int(n == len(categories)),
                }
            )
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


# --- reading -------------------------------------------------------------------------------------


def test_layout_is_recognized(tmp_path):
    voc, coco = write_voc(tmp_path / "voc"), write_coco(tmp_path / "coco")
    assert read_detection(voc, "train").categories.num_classes == 21
    assert read_detection(str(coco), "train").categories.ids == (4, 90)
    both = write_coco(write_voc(tmp_path / "both"))
    assert read_detection(both, "train").categories.ids == (4, 90)
    assert read_detection(both, "train", layout="voc").categories.num_classes == 21


def test_unknown_layout_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"neither COCO's nor VOC's layout, nor any other"):
        read_detection(tmp_path, "train")
    with pytest.raises(DataError, match="there is no such file or folder"):
        read_detection(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"layout must be one of .*'voc', .* not 'yolov9'"):
        read_detection(tmp_path, "train", layout="yolov9")
    with pytest.raises(DataError, match="which split"):
        read_detection(tmp_path)


def test_single_source_keeps_its_image_ids(tmp_path):
    write_coco(tmp_path)
    assert [r.image_id for r in read_detection(tmp_path, "train").records] == [0, 10]
    assert [r.image_id for r in read_detection([(tmp_path, "train")]).records] == [0, 10]


def test_options_reach_the_readers(tmp_path):
    voc, coco = write_voc(tmp_path / "voc"), write_coco(tmp_path / "coco")
    for root in (voc, coco):
        found = read_detection(root, "train", classes=["cat", "fox", "dog"])
        assert found.categories.names == ("cat", "fox", "dog")
        with pytest.raises(DataError, match="dog"):
            read_detection(root, "train", classes=["cat"])
    path = voc / "Annotations/train0.xml"
    path.write_text(path.read_text().replace("<xmax>5</xmax>", "<xmax>1</xmax>"))
    assert len(read_detection(voc, "train").problems) == 1
    with pytest.raises(DataError, match="strict"):
        read_detection(voc, "train", strict=True)


def test_several_sources_become_one_set(tmp_path):
    """As VOC 2007 and 2012 are."""
    write_voc(tmp_path / "VOC2007", split="trainval")
    write_voc(tmp_path / "VOC2012", split="trainval", images=3)
    found = read_detection(
        [(tmp_path / "VOC2007", "trainval"), {"root": tmp_path / "VOC2012", "split": "trainval"}]
    )
    assert found.name == "VOC2007/trainval+VOC2012/trainval"
    assert [r.image_id for r in found.records] == [1, 2, 3, 4, 5]
    assert [r.path.parts[-3] for r in found.records] == ["VOC2007"] * 2 + ["VOC2012"] * 3
    for record in found.records:
        assert {a["image_id"] for a in record.annotations} == {record.image_id}
    truth = found.ground_truth()
    assert len(truth["images"]) == 5 and len(truth["annotations"]) == 10
    assert {a["category_id"] for a in truth["annotations"]} == {8, 12}


def test_problems_of_all_sources_are_kept(shared_data):
    bccd = shared_data / "bccd"
    found = read_detection([(bccd, "train"), [bccd, "val"]])
    assert len(found) == 292 and len(found.problems) == 2
    whole = read_detection(bccd, "trainval")
    assert sum(len(r.boxes) for r in found.records) == sum(len(r.boxes) for r in whole.records)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    write_coco(tmp_path / "a", ((1, "dog"), (2, "cat")), images=1)
    write_coco(tmp_path / "b", ((1, "cat"), (7, "dog")), images=1)
    found = read_detection([(tmp_path / "a", "train"), (tmp_path / "b", "train")])
    assert found.categories == Categories(("dog", "cat"), (1, 2))
    first, second = found.records
    # In both, the first object listed is category 1: a dog here, a cat there.
    assert first.labels.tolist() == [1, 2] and second.labels.tolist() == [2, 1]
    assert [a["category_id"] for a in first.annotations] == [1, 2, 1]
    assert [a["category_id"] for a in second.annotations] == [2, 1, 2]
    assert [r.image_id for r in found.records] == [1, 2]  # both files call theirs 0


def test_differing_classes_are_refused_unless_given(tmp_path):
    write_voc(tmp_path / "voc", ("dog", "zebra"), images=1)
    write_coco(tmp_path / "coco", images=1)
    entries = [(tmp_path / "voc", "train"), (tmp_path / "coco", "train")]
    with pytest.raises(DataError, match=r"voc/train and coco/train2017 .*'cat', 'zebra' in one"):
        read_detection(entries)
    found = read_detection(entries, classes=["zebra", "dog", "cat"])
    assert found.categories.names == ("zebra", "dog", "cat")
    assert [r.labels.tolist() for r in found.records] == [[2, 1], [3, 2]]
    names = dict(zip(found.categories.ids, found.categories.names, strict=True))
    seen = [[names[a["category_id"]] for a in r.annotations] for r in found.records]
    assert seen == [["dog", "zebra"], ["cat", "dog", "cat"]]


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([], "no sources"),
        (["data"], r"pair \(root, split\) or a dict, not 'data'"),
        ([("a", "b", "c")], "pair"),
        ([5], "pair"),
        ([{"root": "a"}], "needs root and split"),
        ([{"root": "a", "split": "b", "splti": 1}], "needs root and split.*'splti'"),
    ],
)
def test_faulty_lists_of_sources_are_refused(entries, match):
    with pytest.raises(DataError, match=match):
        read_detection(entries)


def test_split_beside_a_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="each names its own split"):
        read_detection([(tmp_path, "train")], "train")


def test_sources_may_name_their_files(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").rename(tmp_path / "my.json")
    source = {"root": tmp_path, "split": "train2017", "annotation_file": "my.json"}
    assert len(read_detection([source])) == 2
    with pytest.raises(DataError, match="'annotation_file' belong to COCO's layout"):
        read_detection([{**source, "layout": "voc"}])


# --- checking ------------------------------------------------------------------------------------


def test_all_broken_images_are_named_at_once(tmp_path):
    found = read_detection(write_coco(tmp_path, images=6), "train")
    check_images(found)
    folder = tmp_path / "train2017"
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:50])
    (folder / "3.png").unlink()
    Image.new("RGB", (10, 20)).save(folder / "4.png")
    with pytest.raises(DataError, match="3 of 6 images cannot be used") as caught:
        check_images(found, progress=False, workers=2)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "1.png: cannot be read" in lines[1] and "3.png: there is no such" in lines[2]
    assert "4.png: is 10x20 pixels as shown, its annotations say 20x10" in lines[3]


def test_long_lists_of_broken_images_are_shortened(tmp_path):
    found = read_detection(write_coco(tmp_path, images=60), "train")
    for record in found.records:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"and 10 more$") as caught:
        check_images(found)
    assert len(str(caught.value).splitlines()) == 52


def test_interrupted_check_does_not_read_the_rest(tmp_path, monkeypatch):
    found = read_detection(write_coco(tmp_path, images=40), "train")
    read = []

    def slow(record):
        read.append(record)
        time.sleep(0.02)

    def interrupted(items, text, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_checks, "_find_fault", slow)
    monkeypatch.setattr(files, "track_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_images(found, workers=1)
    assert len(read) < 40


def test_real_images_are_fine(shared_data):
    check_images(read_detection(shared_data / "coco_tiny", "val2017"), progress=False)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(DataError, match="workers must be at least 1, got 0"):
        check_images(read_detection(write_coco(tmp_path), "train"), workers=0)


# --- counting ------------------------------------------------------------------------------------


def test_counts_of_every_class(tmp_path):
    assert count_classes(read_detection(write_coco(tmp_path / "a", images=3), "train")) == (
        ClassCount("dog", objects=3, images=3, difficult=0, crowd=0, left_out=0),
        ClassCount("cat", objects=3, images=3, difficult=0, crowd=3, left_out=0),
    )
    root = write_voc(tmp_path / "b", ("ant", "ant", "bee"))
    path = root / "Annotations/train0.xml"
    path.write_text(path.read_text().replace("<xmax>5</xmax>", "<xmax>1</xmax>"))
    found = read_detection(root, "train", classes=["bee", "ant", "fly"])
    assert count_classes(found) == (
        ClassCount("bee", objects=2, images=2, difficult=2, crowd=0, left_out=0),
        ClassCount("ant", objects=3, images=2, difficult=0, crowd=0, left_out=1),
        ClassCount("fly", objects=0, images=0, difficult=0, crowd=0, left_out=0),
    )


def test_counts_of_real_data(shared_data):
    counts = count_classes(read_detection(shared_data / "bccd", "all"))
    assert sum(c.objects + c.left_out for c in counts) == 4888
    assert sum(c.left_out for c in counts) == 2
    counts = count_classes(read_detection(shared_data / "coco_tiny", "train"))
    assert len(counts) == 80 and all(c.objects + c.crowd > 0 for c in counts)
    assert sum(c.crowd for c in counts) == 6 and sum(c.objects for c in counts) == 699


# --- parts ---------------------------------------------------------------------------------------


def test_subsets_are_seeded_nested_and_in_order(tmp_path):
    found = read_detection(write_coco(tmp_path, images=20), "train")
    ids = [r.image_id for r in found.records]
    tenth, half = (
        [r.image_id for r in sample_subset(found, fraction, seed=3).records]
        for fraction in (0.1, 0.5)
    )
    assert len(tenth) == 2 and len(half) == 10 and set(tenth) < set(half)
    assert half == sorted(half) and half == [
        r.image_id for r in sample_subset(found, 0.5, seed=3).records
    ]
    assert half != [r.image_id for r in sample_subset(found, 0.5, seed=4).records]
    assert [r.image_id for r in sample_subset(found, 1.0).records] == ids
    assert len(sample_subset(found, 0.001)) == 1 and len(sample_subset(found, number=7)) == 7
    assert sample_subset(found, number=7).categories == found.categories


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either the fraction or the number"),
        ({"fraction": 0.5, "number": 1}, "either the fraction or the number"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, "got 1.5"),
        ({"fraction": float("nan")}, "got nan"),
        ({"number": 0}, r"number must lie in 1 \.\. 2, the images there are; got 0"),
        ({"number": 3}, "got 3"),
    ],
)
def test_parts_out_of_range_are_refused(tmp_path, arguments, match):
    found = read_detection(write_coco(tmp_path), "train")
    with pytest.raises(DataError, match=match):
        sample_subset(found, **arguments)


def test_some_classes_can_be_kept(tmp_path):
    found = read_detection(write_coco(tmp_path, ((5, "ant"), (7, "bee"), (9, "fly"))), "train")
    kept = keep_classes(found, ["fly", "ant"])
    assert kept.categories == Categories(("fly", "ant"), (9, 5)) and len(kept) == 2
    record = kept.records[0]
    assert record.labels.tolist() == [2, 1]
    assert record.boxes.tolist() == [[0, 0, 5, 6], [2, 0, 7, 6]]
    assert [a["category_id"] for a in record.annotations] == [5, 9, 5]
    assert np.array_equal(record.difficult, [False, False])
    with pytest.raises(DataError, match="no class 'flea'"):
        keep_classes(found, ["flea"])
    with pytest.raises(DataError, match="given twice"):
        keep_classes(found, ["ant", "ant"])
