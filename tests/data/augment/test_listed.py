"""Lists of albumentations in place of a preset, for objects and for masks."""

import inspect
import pickle

import albumentations as A
import numpy as np
import pytest
from instance_sets import OTHER_SIDE, SIZES, write_instances
from torch.utils.data import DataLoader

from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.listed import ListedAugmentation, mix
from densenet_backbones.data.augment.listed_masks import ListedMaskAugmentation
from densenet_backbones.data.augment.listing import build_steps, list_transforms
from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.augment.presets import choose_augmentation
from densenet_backbones.data.augment.seeding import reseed
from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.detection_images import DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import Instances
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.segmentation import SegmentationData

ALL = ("boxes", "masks", "keypoints")
FLIP = {"name": "HorizontalFlip", "p": 0.5}
COMBINED = [
    {"name": "Mosaic", "p": 0.5, "target_size": [40, 48], "cell_shape": [40, 48]},
    {"name": "MixUp", "p": 0.5},
    FLIP,
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """8 pictures of different sizes with boxes, masks and keypoints."""
    return write_instances(tmp_path_factory.mktemp("instances"), SIZES)


def picture(height=40, width=56, seed=0):
    """An image and two objects: bright blocks, with a keypoint in the middle of a pixel of each."""
    image = np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)
    masks = np.zeros((2, height, width), np.uint8)
    masks[0, 4:12, 6:20] = masks[1, 20:33, 30:50] = 1
    image[masks.any(0)] = 255
    keypoints = np.array([[[6.5, 4.5, 2], [19.5, 4.5, 2]], [[30.5, 20.5, 1], [0, 0, 0]]])
    boxes = masks_to_boxes(masks)
    return image, Instances(boxes, np.array([3, 5]), masks, keypoints.astype(np.float32))


def bytes_of(sample):
    parts = sample.image, sample.boxes, sample.labels, sample.masks, sample.keypoints
    return [None if part is None else part.numpy().tobytes() for part in parts]


def no_other(rng):
    raise AssertionError("no other image is needed")


def test_a_list_does_what_the_same_compose_does_by_hand():
    image, objects = picture()
    brightness = {"name": "RandomBrightnessContrast", "brightness_limit": [-0.4, 0.4], "p": 0.9}
    augmentation = ListedAugmentation([FLIP, brightness])
    params = A.BboxParams(format="pascal_voc", label_fields=["rows"])
    by_hand = A.Compose(
        [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast((-0.4, 0.4), p=0.9)], params
    )
    images = set()
    for n in range(8):
        pixels, found = augmentation(image, Instances(objects.boxes, objects.labels), (7, n), None)
        reseed(by_hand, (7, n))
        expected = by_hand(image=image, bboxes=objects.boxes, rows=objects.labels)
        np.testing.assert_array_equal(pixels, expected["image"])
        np.testing.assert_array_equal(found.boxes, np.float32(expected["bboxes"]))
        np.testing.assert_array_equal(found.labels, expected["rows"])
        images.add(pixels.tobytes())
    assert len(images) > 4


@pytest.mark.parametrize(
    ("name", "place", "mirrored"),
    [
        ("HorizontalFlip", lambda x, y: (56 - x, y), True),
        ("VerticalFlip", lambda x, y: (x, 40 - y), True),
        ("Transpose", lambda x, y: (y, x), True),
    ],
)
def test_boxes_masks_and_keypoints_follow_the_pixels(name, place, mirrored):
    image, objects = picture()
    entries = [{"name": name, "p": 1}]
    augmentation = ListedAugmentation(entries, target_types=ALL, other_side=(1, 0))
    augmentation = pickle.loads(pickle.dumps(augmentation))
    pixels, found = augmentation(image, objects, (1, 2), no_other)
    np.testing.assert_array_equal(found.boxes, masks_to_boxes(found.masks))
    assert (pixels[found.masks.any(0)] == 255).all() and found.masks.sum() == objects.masks.sum()
    points = [[*place(*point[:2]), point[2]] for point in objects.keypoints[0]]
    np.testing.assert_allclose(found.keypoints[0], points[::-1] if mirrored else points)
    np.testing.assert_array_equal(found.keypoints[1][:, 2], [0, 1])
    twice = ListedAugmentation(entries * 2, target_types=ALL, other_side=(1, 0))
    _, back = twice(image, objects, (1, 2), no_other)  # mirrored twice is turned
    np.testing.assert_allclose(back.keypoints, objects.keypoints)


def test_a_flip_is_the_preset_flip():
    image, objects = picture()
    augmentation = ListedAugmentation([FLIP | {"p": 1}], target_types=ALL, other_side=(1, 0))
    pixels, found = augmentation(image, objects, (0,), no_other)
    preset = InstanceAugmentation("flip", other_side=(1, 0))
    key = next((n,) for n in range(9) if (preset(image, objects, (n,))[0] == pixels).all())
    expected = preset(image, objects, key)[1]
    for name, part in vars(found).items():
        np.testing.assert_array_equal(part, getattr(expected, name))


def test_every_transform_that_is_allowed_works_and_keeps_the_models_size():
    """But for those that need what is not there; slow ones are left out."""
    image, objects = picture()
    given = {"height": 24, "width": 24, "size": [24, 24], "max_size": 24, "px": 2, "p": 1}
    given |= {"num_grid_xy": [4, 4], "magnitude": 5, "min_max_height": [20, 24]}
    given |= {"x_max": 30, "y_max": 30}
    refused = set()
    for name, kind in list_transforms().items():
        if name in ("PiecewiseAffine", "Superpixels", "Mosaic"):
            continue
        own = inspect.signature(kind).parameters
        entry = {"name": name, **{key: value for key, value in given.items() if key in own}}
        try:
            augmentation = ListedAugmentation([entry], target_types=ALL, size=(30, 20))
            for some in (objects, objects.select(np.arange(0))):
                pixels, found = augmentation(image, some, (0,), no_other)
                assert pixels.shape == (30, 20, 3) and pixels.dtype == np.uint8, name
                assert found.masks.shape == (len(found), 30, 20), name
        except DataError as error:
            assert "; " in str(error) or "required" in str(error), error
            refused.add(name)
    assert refused <= {
        *("CropNonEmptyMaskIfExists", "FDA", "HistogramMatching", "MaskDropout", "Morphological"),
        *("PixelDistributionAdaptation", "RandomCropNearBBox", "TextImage"),
    }


def test_mixed_images_keep_the_objects_of_both():
    image, objects = picture()
    other_image, other = picture(48, 50, seed=1)
    pixels, found = mix(image, objects, other_image, other, 0.25, (8, 8, 8))
    assert pixels.shape == (48, 56, 3) and found.masks.shape == (4, 48, 56)
    np.testing.assert_array_equal(found.labels, [3, 5, 3, 5])
    np.testing.assert_array_equal(found.boxes, np.concatenate((objects.boxes, other.boxes)))
    shares = 0.25 * image[:40, :50] + 0.75 * other_image[:40, :50]
    np.testing.assert_allclose(pixels[:40, :50], shares, atol=0.51)
    np.testing.assert_allclose(pixels[40:, :50], 2 + 0.75 * other_image[40:], atol=0.51)


def test_mosaic_and_mixup_depend_on_seed_epoch_and_index_alone(drawn):
    data = read_detection(drawn, "train")
    listed = choose_augmentation(ModelInput(size=(32, 48)), COMBINED, ("boxes",))
    images = DetectionImages(data, listed, seed=3)
    keys = [(1, index) for index in range(8)] * 2
    alone = [bytes_of(images[key]) for key in keys]
    assert alone[:8] == alone[8:]
    loader = DataLoader(images, None, sampler=keys[:8], num_workers=2)
    assert [bytes_of(sample) for sample in loader] == alone[:8]
    reseeded = DetectionImages(data, listed, seed=4)
    assert all(bytes_of(reseeded[key]) != one for key, one in zip(keys, alone, strict=True))
    samples = [images[epoch, n] for epoch in range(4) for n in range(8)]
    assert {tuple(sample.image.shape) for sample in samples} == {(3, 32, 48)}
    counts = {len(sample.boxes) for sample in samples}
    assert max(counts) > 6  # objects of at least three images, each of which has three
    for sample in samples:
        assert set(sample.labels.tolist()) <= {1, 2}
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 1).all()


def test_a_mosaics_boxes_lie_on_its_objects():
    """Objects are blocks of a color of their own each, so that pixels tell the label."""

    def draw(rng):
        image, label = np.zeros((40, 40, 3), np.uint8), int(rng.integers(1, 9))
        image[10:30, 5:25] = 20 * label
        return image, Instances(np.array([[5, 10, 25, 30]], np.float32), np.array([label]))

    mosaic = {"name": "Mosaic", "p": 1, "target_size": [60, 60], "cell_shape": [40, 40]}
    augmentation = ListedAugmentation([{"name": "OneOf", "transforms": [mosaic], "p": 1}])
    seen = set()
    for n in range(10):
        pixels, found = augmentation(*draw(np.random.default_rng(n)), (n,), draw)
        assert pixels.shape == (60, 60, 3) and len(found) > 1
        for box, label in zip(found.boxes.round().astype(int), found.labels, strict=True):
            x1, y1, x2, y2 = box
            assert (pixels[y1:y2, x1:x2] == 20 * label).mean() > 0.8
            seen.add(int(label))
    assert len(seen) > 4


def test_masks_of_classes_follow_and_what_lies_beyond_is_ignored():
    image = np.random.default_rng(0).integers(0, 200, (40, 50, 3), np.uint8)
    mask = np.random.default_rng(1).integers(0, 3, (40, 50)).astype(np.uint8)
    flip = ListedMaskAugmentation([FLIP | {"p": 1}], (40, 50))
    pixels, moved = flip(image, mask, (0,), no_other)
    np.testing.assert_array_equal(pixels, image[:, ::-1])
    np.testing.assert_array_equal(moved, mask[:, ::-1])
    turned = ListedMaskAugmentation([{"name": "Rotate", "limit": [45, 45], "p": 1}], (36, 36))
    assert set(np.unique(turned(image, mask, (0,), no_other)[1])) == {0, 1, 2, 255}
    planes = flip(image, np.stack((mask, mask)), (0,), no_other)[1]
    np.testing.assert_array_equal(planes, np.stack((mask, mask))[..., ::-1])
    mosaic = ListedMaskAugmentation([{**COMBINED[0], "p": 1}], (32, 32))
    other = (np.full_like(image, 250), np.full_like(mask, 9))
    pixels, moved = mosaic(image, mask, (0,), lambda rng: other)
    assert 9 in moved and moved.shape == (32, 32)
    np.testing.assert_array_equal(moved == 9, (pixels == 250).all(2))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "HorizontalFlop"}], r"\[0\]: 'HorizontalFlop' is no transform .*mean 'Horizo"),
        ([FLIP, {"name": "os.system"}], r"\[1\]: 'os.system' is no transform"),
        ([{"name": "Compose", "transforms": [FLIP]}], "'Compose' is no transform"),
        ([{"name": "Lambda"}], "Lambda is not for training images; leave it out"),
        ([{"name": "FDA"}], "FDA needs fda_metadata"),
        ([{"HorizontalFlip": {"p": 1}}], r"must be like \{name: HorizontalFlip, p: 0.5\}, got"),
        ([FLIP | {"q": 1}], "HorizontalFlip has no argument 'q'; it has p$"),
        (
            [{"name": "Rotate", "limits": [1, 2]}],
            "Rotate has no argument 'limits'; did you mean 'limit'.; it has limit, interpolation",
        ),
        ([FLIP | {"p": 2}], "HorizontalFlip: p: Input should be less than or equal to 1"),
        ([{"name": "Resize"}], "Resize: height: Field required"),
        ([{"name": "OneOf", "transforms": []}], "OneOf needs transforms, a list of entries"),
        ([{"name": "OneOf", "transforms": [FLIP], "p": "x"}], r"OneOf: p must be a number in"),
        (
            [{"name": "OneOf", "transforms": [{"name": "Blurr"}]}],
            r"\[0\].transforms\[0\]: 'Blurr' is no .*'Blur'",
        ),
        (
            [{"name": "OneOf", "transforms": [{"name": "MixUp"}]}],
            "MixUp must be an entry of the list itself",
        ),
        ([{"name": "MixUp", "alpha": 0}], "MixUp: alpha must be above 0"),
    ],
)
def test_wrong_entries_get_a_sentence_before_data_is_read(entries, message):
    for kind in (DetectionData, SegmentationData):
        with pytest.raises(DataError, match=r"^data\.augmentation.*" + message) as found:
            kind("nowhere", augmentation=entries)
        assert "\n" not in str(found.value)


def test_lists_in_circles_end():
    inner = {"name": "OneOf", "transforms": []}
    inner["transforms"].append(inner)
    with pytest.raises(DataError, match="at most 100 entries"):
        build_steps([inner])
    with pytest.raises(DataError, match="at most 100 entries"):
        build_steps([FLIP] * 101)


def test_what_cannot_be_carried_gets_a_sentence(drawn):
    for kind in ("masks", "keypoints"):
        with pytest.raises(DataError, match=f"Mosaic carries boxes only, but .* learns {kind}"):
            ListedAugmentation(COMBINED, target_types=("boxes", kind))
    with pytest.raises(DataError, match="MixUp may be there once"):
        ListedAugmentation([{"name": "MixUp"}] * 2)
    with pytest.raises(DataError, match="MixUp needs boxes"):
        ListedMaskAugmentation(COMBINED, (32, 32))
    with pytest.raises(DataError, match="Mosaic carries masks of one class a pixel"):
        ListedMaskAugmentation(COMBINED[:1], (32, 32), has_planes=True)
    large = ListedAugmentation([{"name": "Crop", "x_max": 999, "y_max": 999, "p": 1}])
    images = DetectionImages(read_detection(drawn, "train"), large)
    with pytest.raises(DataError, match=r"0\.png: data.augmentation fails on this image of 36x24"):
        images[0, 0]


def test_keypoints_of_a_set_follow_a_list(drawn):
    listed = [FLIP, {"name": "MixUp", "p": 1}, {"name": "RandomRotate90", "p": 1}]
    augmentation = ListedAugmentation(listed, target_types=ALL, other_side=OTHER_SIDE)
    images = DetectionImages(read_detection(drawn, "train"), augmentation, 0, ALL)
    for sample in (images[0, n] for n in range(8)):
        assert len(sample.boxes) == len(sample.masks) == len(sample.keypoints) > 1
        x, y, seen = sample.keypoints[sample.keypoints[..., 2] > 0].T
        assert len(seen) and (x % 1 == 0.5).all() and (y % 1 == 0.5).all()
