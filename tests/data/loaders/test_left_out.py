"""Files without a readable header and damaged masks are left out and named, if that is asked."""

import json

import mask_sets
import pytest
from instance_sets import write_instances

from densenet_backbones.data.checks.contents import remark_on_untaught_classes
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.masks import statistics as mask_statistics
from densenet_backbones.data.segmentation import SegmentationData

WRITERS = {
    "folders": mask_sets.write_folders,
    "camvid": mask_sets.write_camvid,
    "voc": mask_sets.write_voc,
    "sbd": mask_sets.write_sbd,
    "panoptic": mask_sets.write_panoptic,
    "coco": mask_sets.write_coco,
}


def tear(path):
    """No header stays."""
    path.write_bytes(b"torn")


def cut(path):
    """The header stays."""
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [tear, cut])
@pytest.mark.parametrize("part", ["image", "mask"])
@pytest.mark.parametrize("layout", WRITERS)
def test_damaged_files_of_masks(layout, part, damage, tmp_path):
    masks = {name: mask % 255 for name, mask in mask_sets.some_masks(6, (36, 40)).items()}
    WRITERS[layout](tmp_path, masks)
    split = "train2017" if layout in ("coco", "panoptic") else "train"

    def read(bad_images):
        data = SegmentationData(
            str(tmp_path), train_split=split, val_split=split, bad_images=bad_images
        )
        return data.train_set

    whole = read("skip")
    assert len(whole) == 6 and not whole.problems
    record = whole.records[1]
    file = record.path if part == "image" else record.mask.files[-1]
    if file.suffix == ".json":
        pytest.skip("the masks stand in the annotation file")
    damage(file)
    with pytest.raises(DataError, match=file.name):
        read("stop")
    left = read("skip")
    # Images of a known size are decoded later: in training another takes their place.
    replaced = part == "image" and "training takes another" in left.problems[0].action
    assert [problem.file for problem in left.problems] == [str(file)]
    ids = [r.image_id for r in left.records]
    assert ids == [r.image_id for n, r in enumerate(whole.records) if n != 1 or replaced]
    assert all(r.read_mask() is not None for r in left.records)


def test_masks_none_of_which_can_be_used_end_the_run(tmp_path):
    mask_sets.write_voc(tmp_path, mask_sets.some_masks(3, (36, 40)))
    for file in (tmp_path / "SegmentationClass").iterdir():
        cut(file)
    with pytest.raises(DataError, match="3 of 3 masks cannot be used"):
        _ = SegmentationData(str(tmp_path), val_split="train", bad_images="skip").train_set
    for file in (tmp_path / "JPEGImages").iterdir():
        tear(file)
    with pytest.raises(DataError, match=r"no image can be used, the first of them: .*im0\.jpg"):
        _ = SegmentationData(str(tmp_path), val_split="train", bad_images="skip").train_set


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
def test_masks_of_large_sets(bad_images, tmp_path, monkeypatch):
    """A part of them is counted; the others are met in training."""
    monkeypatch.setattr(mask_statistics, "CHECKED_UP_TO", 4)
    mask_sets.write_voc(tmp_path, mask_sets.some_masks(6, (36, 40)))
    cut(tmp_path / "SegmentationClass/im1.png")
    data = SegmentationData(str(tmp_path), val_split="train", bad_images=bad_images)
    if bad_images == "stop":
        with pytest.raises(DataError, match=r"im1\.png"):
            _ = data.train_set
    else:
        assert len(data.train_set) == 6
        assert not list(remark_on_untaught_classes(data.train_set))


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_boxes_whose_images_tell_their_size_alone(layout, tmp_path):
    write_instances(tmp_path, ((24, 36), (40, 20)) * 3, "train")
    file = tmp_path / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    if layout == "coco":
        for image in content["images"]:
            del image["width"], image["height"]
        file.write_text(json.dumps(content))
        images = tmp_path / "train"
    else:
        images = tmp_path / "JPEGImages"
        (tmp_path / "train").rename(images)
        (tmp_path / "Annotations").mkdir()
        for image in images.iterdir():
            box = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
            thing = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
            target = tmp_path / "Annotations" / f"{image.stem}.xml"
            target.write_text(f"<annotation>{thing}</annotation>")
        mask_sets.write_list(
            tmp_path / "ImageSets/Main/train.txt", sorted(i.stem for i in images.iterdir())
        )
    broken = sorted(images.iterdir())[2]
    tear(broken)
    options = {"layout": layout, "augmentation": "light", "num_workers": 0}
    with pytest.raises(DataError, match=broken.name):
        _ = DetectionData(str(tmp_path), val_split="train", **options).train_set
    data = DetectionData(str(tmp_path), val_split="train", bad_images="skip", **options).train_set
    assert len(data) == 5 and broken not in [record.path for record in data.records]
    assert [problem.file for problem in data.problems] == [str(broken)]
