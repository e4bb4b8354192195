"""Labelled images in every layout: recognized, read, split, and refused with a sentence."""

import csv
import pickle
import shutil

import numpy as np
import pytest
from cifar_files import NAMES, pickle_as_python_2, write_cifar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_classifiers import COLORS, write_folders

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.classification.cifar import read_plain_pickle
from densenet_backbones.data.classification.crops import CONTEXT, cut_square
from densenet_backbones.data.classification.data import ClassificationData
from densenet_backbones.data.classification.reading import read_classes, recognize_classes
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image


def labels_by_path(part):
    return {
        record.path.as_posix(): part.categories.name_of_label(int(record.labels[0]))
        for record in part.records
    }


def test_folders_are_read_as_torchvision_reads_them(tmp_path):
    from torchvision.datasets import ImageFolder

    root = write_folders(tmp_path / "data")
    shutil.move(root / "train/red/0.png", root / "train/red/deeper.png")
    (root / "train/red/more").mkdir()
    shutil.move(root / "train/red/deeper.png", root / "train/red/more/0.png")
    theirs = ImageFolder(str(root / "train"))
    data = ClassificationData(str(root), num_workers=0)
    assert data.categories.names == tuple(theirs.classes)
    expected = {path: theirs.classes[label] for path, label in theirs.samples}
    assert labels_by_path(data.train_set) == expected
    assert len(data.val_set) == 24 and data.val_set.categories.names == tuple(COLORS)
    sizes = {record.path.name: (record.width, record.height) for record in data.val_set.records}
    assert sizes["1.png"] == (21, 20)


def test_data_without_splits_is_split_by_class(tmp_path):
    root = write_folders(tmp_path / "data", splits=())
    data = ClassificationData(str(root), num_workers=0)
    train, val = labels_by_path(data.train_set), labels_by_path(data.val_set)
    assert len(train) + len(val) == 24 and not train.keys() & val.keys()
    assert set(val.values()) == set(COLORS) and 3 <= len(val) <= 6


@pytest.mark.parametrize("with_split", [True, False])
def test_tables_name_images_and_classes(with_split, tmp_path):
    folders = write_folders(tmp_path / "made")
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows, expected = [], {}
    for split in ("train", "val"):
        for name in COLORS:
            for n in range(8):
                stem = f"{split}-{name}-{n}"
                shutil.copy(folders / split / name / f"{n}.png", root / "images" / f"{stem}.png")
                # With the ending, or without it; the split in two spellings.
                word = "Training" if split == "train" and n == 0 else split
                rows.append([stem if n % 2 else f"images/{stem}.png", name, word])
                expected[f"{root.as_posix()}/images/{stem}.png"] = (name, split)
    with open(root / "labels.csv", "w", newline="") as file:
        head = ["Image", "Label", "Split"][: 2 + with_split]
        csv.writer(file).writerows([head, *(row[: 2 + with_split] for row in rows)])
    data = ClassificationData(str(root / "labels.csv"), num_workers=0)
    train, val = labels_by_path(data.train_set), labels_by_path(data.val_set)
    assert {**train, **val} == {path: name for path, (name, _) in expected.items()}
    if with_split:
        assert set(val) == {path for path, (_, split) in expected.items() if split == "val"}


def test_a_row_without_its_image_is_named(tmp_path, refused=DataError):
    root = write_folders(tmp_path / "data", splits=())
    (root / "labels.csv").write_text("image,class\n0.png,red\nnone.png,blue\n")
    for child in ("blue", "green"):
        shutil.rmtree(root / child)
    with pytest.raises(refused, match=r"labels\.csv: line 3: its image 'none\.png'"):
        recognize_classes(root)


@pytest.mark.parametrize("form", ["pickle", "binary"])
@pytest.mark.parametrize("kind", ["10", "100"])
def test_cifar_is_read_as_published(kind, form, tmp_path):
    written = write_cifar(tmp_path / "cifar", kind, form)
    for _ in range(2):  # the second time the pictures are there
        data = ClassificationData(str(tmp_path / "cifar"), num_workers=0)
        assert data.categories.names == tuple(NAMES[kind])
        for split, part in (("train", data.train_set), ("test", data.val_set)):
            pixels, labels = written[split]
            expected = sorted(
                (row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), NAMES[kind][label])
                for row, label in zip(pixels, labels, strict=True)
            )
            found = sorted(
                (read_image(path).tobytes(), name) for path, name in labels_by_path(part).items()
            )
            assert found == expected
    assert len(list(tmp_path.glob("cifar-images-*"))) == 1


def test_torchvision_reads_the_same_files(tmp_path):
    """So the files of these tests are CIFAR's."""
    from torchvision.datasets import CIFAR10

    root = tmp_path / "cifar-10-batches-py"
    pixels, labels = write_cifar(root, "10", "pickle")["train"]
    CIFAR10.train_list = [[f"data_batch_{n}", None] for n in range(1, 6)]
    try:
        theirs = CIFAR10.__new__(CIFAR10)
        entry = pickle.loads((root / "data_batch_1").read_bytes(), encoding="latin1")
        assert theirs is not None and (entry["data"] == pixels[:6]).all()
        assert entry["labels"] == labels[:6]
    finally:
        del CIFAR10.train_list


class Evil:
    def __init__(self, *what):
        self.what = what

    def __reduce__(self):
        return self.what


BAD_PICKLES = {
    "code": pickle.dumps({"data": Evil(print, ("ran",))}, 2),
    "eval": pickle.dumps({"data": Evil(eval, ("1 + 1",))}, 4),
    "another class": pickle.dumps({"data": Evil(np.random.default_rng, ())}, 2),
    "numbers of 8 bytes": pickle.dumps({"data": np.arange(3)}, 2),
    "an instance": b"\x80\x02c__builtin__\nobject\n\x81.",
    "state for a function": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "a far memo": b"\x80\x02K\x01r\xff\xff\xff\x7f0N.",
    "cut off": pickle_as_python_2({"data": np.zeros((2, 3072), np.uint8)})[:-40],
    "nothing": b"",
    "a wrong shape": pickle_as_python_2({"data": np.zeros((2, 8), np.uint8)}).replace(
        b"K\x02K\x08", b"K\x02K\x09"
    ),
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_pickles_run_no_code(name, tmp_path, capsys):
    with pytest.raises(DataError, match=r"data_batch_1"):
        read_plain_pickle(BAD_PICKLES[name], tmp_path / "data_batch_1")
    assert "ran" not in capsys.readouterr().out


@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.lists(st.integers(-1000, 1000) | st.text("xyz")), max_size=4
    )
)
def test_plain_pickles_come_back(content):
    for protocol in (0, 2, 4):
        assert read_plain_pickle(pickle.dumps(content, protocol), "a") == content


def test_labels_out_of_range_are_refused(tmp_path):
    write_cifar(tmp_path / "cifar", "10", "binary")
    file = tmp_path / "cifar/data_batch_2.bin"
    content = bytearray(file.read_bytes())
    content[3073] = 7
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_2\.bin: image 1: its label must be 0 to 2"):
        recognize_classes(tmp_path / "cifar")
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: has 18437 bytes"):
        recognize_classes(tmp_path / "cifar")
    assert not list(tmp_path.glob("cifar-images-*")), "nothing is left of what failed"


def test_boxes_become_crops(tiny_scenes, tmp_path):
    from densenet_backbones.data.readers.detection_sources import read_detection

    scenes = tmp_path / "scenes"
    shutil.copytree(tiny_scenes, scenes)
    data = ClassificationData(str(scenes), layout="crops", num_workers=0)
    boxes = read_detection(scenes, "train")
    record = boxes.records[0]
    name = boxes.categories.name_of_label(int(record.labels[0]))
    number = record.labels[:1].tolist().count(record.labels[0])
    assert len(data.train_set)
    folder = next(tmp_path.glob("scenes-crops-*")) / "train" / name
    crop = read_image(folder / f"{record.path.stem}_{number}.png")
    np.testing.assert_array_equal(crop, cut_square(read_image(record.path), record.boxes[0]))
    total = sum(len(one.boxes) for one in boxes.records)
    assert len(data.train_set) <= total and set(data.categories.names) <= set(
        boxes.categories.names
    )


def test_a_crop_is_the_square_around_its_box():
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    crop = cut_square(image, np.array([20.0, 10, 30, 20], np.float32))
    side = round(10 * CONTEXT)
    assert crop.shape == (side, side, 3)
    np.testing.assert_array_equal(crop, image[9 : 9 + side, 19 : 19 + side])
    edge = cut_square(image, np.array([0.0, 0, 10, 10], np.float32))
    np.testing.assert_array_equal(edge[0], edge[1])  # beyond the image its border repeats


def test_classes_are_renamed_and_left_out(tmp_path):
    root = write_folders(tmp_path / "data")
    data = ClassificationData(str(root), num_workers=0, rename={"red": "warm"}, drop=["blue"])
    assert data.categories.names == ("green", "warm")
    assert len(data.train_set) == len(data.val_set) == 16
    with pytest.raises(DataError, match=r"images of 1 class \('red'\) that are not among"):
        source = {"root": str(root), "split": "train"}
        read_classes([source], classes=["blue", "green"])


def test_what_is_no_labelled_images_gets_a_sentence(tmp_path, tiny_scenes):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    for root in (tmp_path, tiny_scenes):
        with pytest.raises(DataError, match=r"no labelled images.*--layout crops"):
            recognize_classes(root)


@pytest.mark.parametrize(
    "augmentation", ["cifar", "light", "imagenet", "none", [{"name": "RandomRotate90"}]]
)
def test_samples_are_squares_and_a_function_of_their_key(augmentation, tmp_path):
    root = write_folders(tmp_path / "data")
    data = ClassificationData(str(root), num_workers=0, augmentation=augmentation, seed=3)
    data.model_input = ModelInput(size=(16, 16), crop_pct=0.875)
    images, again = data.make_training_images(), data.make_training_images()
    first = images[0, 5]
    assert tuple(first.image.shape) == (3, 16, 16) and int(first.labels[0]) in (1, 2, 3)
    _ = again[1, 2]
    assert (again[0, 5].image == first.image).all()
    assert augmentation == "none" or any(
        (images[epoch, 5].image != first.image).any() for epoch in range(1, 6)
    )
    plain = data.make_evaluated_images()[0]
    assert tuple(plain.image.shape) == (3, 16, 16)
