"""Images whose annotations promise another size: refused before training and at each decode."""

import numpy as np
import pytest
from instance_sets import change, write_instances
from PIL import Image

from densenet_backbones.data import images as image_files
from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import ImageSizeError, read_image, read_image_size
from densenet_backbones.data.images import read_reduced_image as read_reduced
from densenet_backbones.data.loaders import image_checks
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.segmentation import SegmentationData

SWAPPED = "width and height look swapped; exchange them in the annotations"
TURNED = "its size before the camera's orientation \\(EXIF\\) turns it; annotate the image as it"
RESIZED = "the image looks resized by 0.5 after it was annotated; use the image of"


def save(path, size, orientation=1):
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path, exif=tags)
    return path


def swap(content):
    for image in content["images"]:
        image["width"], image["height"] = image["height"], image["width"]


def double(content):
    for image in content["images"]:
        image["width"], image["height"] = 2 * image["width"], 2 * image["height"]


# Of each fault: edit of the annotations, EXIF orientation of the pictures, sentence.
FAULTS = [(swap, None, SWAPPED), (double, None, RESIZED), (swap, 6, TURNED)]


def without_masks(content):
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)


@pytest.fixture(params=FAULTS, ids=["swapped", "resized", "turned"])
def faulty(request, tmp_path):
    edit, exif, sentence = request.param
    for split in ("train", "val"):
        write_instances(tmp_path, ((24, 36), (40, 20)), split, exif=exif)
        change(tmp_path, without_masks, f"instances_{split}")
        change(tmp_path, edit, f"instances_{split}")
    return tmp_path, sentence


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_the_promised_size_is_that_of_the_image_as_shown(tmp_path, suffix, read):
    path = save(tmp_path / f"a.{suffix}", (40, 30), orientation=6)
    read(path, promised=(30, 40))
    with pytest.raises(ImageSizeError, match=r"a.*: is 30x40 pixels as shown, its .* say 40x30"):
        read(path, promised=(40, 30))


@pytest.mark.parametrize(
    ("promised", "orientation", "sentence"),
    [
        ((600, 800), 1, SWAPPED),
        ((800, 600), 6, TURNED),
        ((1600, 1200), 1, RESIZED),
        ((1601, 1199), 1, "looks resized by 0.4997"),  # sides are rounded
        ((800, 601), 1, "say 800x601; annotate the image as it is shown"),
        ((1600, 900), 1, "say 1600x900; annotate the image as it is shown"),
    ],
)
def test_jpegs_decoded_at_a_reduced_size_are_compared_at_their_full_one(
    tmp_path, promised, orientation, sentence
):
    path = save(tmp_path / "a.jpg", (800, 600), orientation)
    upright = (800, 600) if orientation == 1 else (600, 800)
    reduced, factor = read_reduced(path, (100, 100), upright)
    assert factor == 4 and reduced.shape[:2] == (upright[1] // 4, upright[0] // 4)
    with pytest.raises(ImageSizeError, match=sentence):
        read_reduced(path, (100, 100), promised)


def test_a_promise_of_the_reduced_size_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", (800, 600))
    with pytest.raises(ImageSizeError, match="looks resized by 4 after"):
        read_reduced(path, (100, 100), (200, 150))


@pytest.mark.parametrize(
    "augmentation",
    [None, Augmentation("none", (20, 20)), InstanceAugmentation("flip")],
    ids=["evaluated", "one size", "any size"],
)
def test_boxes_are_refused_at_each_decode(faulty, augmentation):
    root, sentence = faulty
    images = DetectionImages(read_coco(root, "train"), augmentation)
    for index in range(2):
        with pytest.raises(ImageSizeError, match=sentence):
            images[index]


@pytest.mark.parametrize("split", ["train_set", "val_set"])
def test_training_and_evaluation_end_in_one_line_before_they_begin(faulty, split, monkeypatch):
    root, sentence = faulty
    monkeypatch.setattr(image_checks, "read_image", lambda *a: pytest.fail("decoded"))
    data = DetectionData(str(root), num_workers=0)
    with pytest.raises(DataError, match=f"0.png: is .* {sentence}.*2 of 2 images") as caught:
        getattr(data, split)
    assert "\n" not in str(caught.value)


def test_segmentation_without_a_check_of_masks(tmp_path):
    write_instances(tmp_path, ((24, 36),))
    save(tmp_path / "train/0.png", (24, 36))
    data = SegmentationData(str(tmp_path), num_workers=0, check_masks=False)
    with pytest.raises(DataError, match=SWAPPED):
        _ = data.train_set


def test_headers_of_large_sets_are_sampled(tmp_path, monkeypatch):
    root = write_instances(tmp_path, ((24, 36),) * 7)
    read = []

    def record(path, promised):
        read.append(path.name)
        return image_files.read_image_size(path, promised)

    monkeypatch.setattr(image_checks, "read_image_size", record)
    monkeypatch.setattr(image_checks, "HEADERS_READ", 3)
    image_checks.check_images(read_coco(root, "train"), decode=False)
    assert read == ["0.png", "3.png", "6.png"]
