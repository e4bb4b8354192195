"""The same pictures in the layouts of many tools are the same data."""

import globox
import numpy as np
import pytest
from foreign_sets import (
    LAYOUTS,
    write_coco,
    write_labelme,
    write_layout,
    write_roboflow_yolo,
    write_voc,
)
from labelled_pictures import CLASSES, PICTURES

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.instances import keep_learnable_objects, read_instances
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.recognition.recognize import recognize
from densenet_backbones.data.segmentation import SegmentationData

STEMS = [picture.stem for picture in PICTURES]
OF_KIND = {
    kind: [name for name, layout in LAYOUTS.items() if set(holds) & set(layout.holds)]
    for kind, holds in (("detection", ["boxes"]), ("segmentation", ["masks", "semantic"]))
}


def find_picture(path):
    """The number of the picture that a file shows; Label Studio puts letters before its name."""
    return next(n for n, stem in enumerate(STEMS) if path.stem.endswith(stem))


def describe(data_set, holds):
    """Objects of each picture: class, box, and what else the layout can say, by picture."""
    types = ["boxes", *(kind for kind in ("masks", "keypoints") if kind in holds)]
    pictures = {}
    for kind in types:
        data_set = keep_learnable_objects(data_set, (kind,), strict=True)
    count, names = len(data_set.categories.keypoints), data_set.categories.names
    for record in data_set.records:
        things = read_instances(record, types, count)
        points = data_set.categories.keypoints
        order = [points.index(name) for name in sorted(points)]
        pictures[find_picture(record.path)] = [
            (
                names[label - 1],
                things.boxes[n].round(3).tolist(),
                things.masks[n].tobytes() if "masks" in types else None,
                things.keypoints[n][order].round(3).tolist() if "keypoints" in types else None,
                (record.width, record.height),
            )
            for n, label in enumerate(things.labels)
        ]
    return pictures


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco(root)
    return root


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Path of each layout as it is given, written once."""
    paths = {}

    def find(name):
        if name not in paths:
            root = tmp_path_factory.mktemp("pets") / "pets"
            root.mkdir()
            paths[name] = write_layout(name, root)
        return paths[name]

    return find


@pytest.mark.parametrize("name", OF_KIND["detection"])
def test_boxes_masks_and_keypoints_are_those_of_coco(name, original, layouts):
    layout, path = LAYOUTS[name], layouts(name)
    found = recognize(path, "detection")
    assert found.layout == (layout.name or found.layout) and set(layout.holds) <= found.serves
    assert 2 <= len(found.lines) <= 3 and (found.whole is None) == layout.split
    options = {"masks": True, "keypoints": "keypoints" in layout.holds}
    expected, pictures = {}, {}
    for split in ("train", "val"):
        expected |= describe(read_detection(original, split, keypoints=True), layout.holds)
    for part in found.splits:
        data_set = read_detection([dict(part.source)], **options)
        assert len(data_set) == part.images or not part.images
        assert set(data_set.categories.names) == set(CLASSES) or name == "voc"  # which has 20
        pictures |= describe(data_set, layout.holds)
    assert pictures == expected


@pytest.mark.parametrize("name", OF_KIND["segmentation"])
def test_masks_are_those_that_were_drawn(name, original, layouts):
    path, layout = layouts(name), LAYOUTS[name]
    found = recognize(path, "segmentation")
    assert (found.whole is None) == layout.split
    drawn = {}
    for split in ("train", "val"):
        for record in read_segmentation(original, split).records:
            drawn[find_picture(record.path)] = record.read_mask()
    seen = {}
    for part in found.splits:
        for record in read_segmentation([dict(part.source)]).records:
            seen[find_picture(record.path)] = record.read_mask()
    assert seen.keys() == drawn.keys()
    for n, mask in seen.items():
        if "masks" in layout.holds:
            expected = drawn[n]
        else:
            values = (0, 1, 1) if name == "binary masks" else (0, 1, 2)
            expected = PICTURES[n].draw_labels(values)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if LAYOUTS[n].split])
def test_both_splits_are_found_whatever_their_names(name, layouts):
    kind = DetectionData if "boxes" in LAYOUTS[name].holds else SegmentationData
    data = kind(str(layouts(name)), num_workers=0)
    assert (len(data.train_set), len(data.val_set)) == (4, 2)
    assert len(data.lines) in (2, 3) and str(data.recognized.root) in data.lines[0]
    names = {split.name for split in data.recognized.splits}
    if "val" not in names:
        assert "is evaluated." in data.lines[1]


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_labelme, lambda root: globox.AnnotationSet.from_labelme(root, include_poly=True)),
        (
            write_roboflow_yolo,
            lambda root: globox.AnnotationSet.from_yolo_v5(
                root / "train/labels", image_folder=root / "train/images"
            ),
        ),
        (write_voc, lambda root: globox.AnnotationSet.from_pascal_voc(root / "Annotations")),
    ],
)
def test_another_library_reads_the_same_boxes(write, read, tmp_path):
    """globox knows boxes alone, and takes VOC's corners as they are, from 1."""
    write(tmp_path)
    shift = [1, 1, 0, 0] if write is write_voc else [0, 0, 0, 0]
    theirs = {
        annotation.image_id.rpartition(".")[0]: sorted(
            (*np.round(box.ltrb, 3).tolist(), str(box.label)) for box in annotation.boxes
        )
        for annotation in read(tmp_path)
    }
    ours = {}
    for part in recognize(tmp_path, "detection").splits:
        data_set = read_detection([dict(part.source)])
        for record in data_set.records:
            names = [data_set.categories.name_of_label(label) for label in record.labels.tolist()]
            names = (
                [str(CLASSES.index(n)) for n in names] if write is write_roboflow_yolo else names
            )
            boxes = (record.boxes + shift).round(3).tolist()
            ours[record.path.stem] = sorted(
                (*box, name) for box, name in zip(boxes, names, strict=True)
            )
    assert theirs and {stem: ours[stem] for stem in theirs} == theirs
