"""Folders of images and masks: CamVid's, and any that a classes.yaml describes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import (
    COLORS,
    NAMES,
    classes_yaml,
    masks,
    some_masks,
    write_camvid,
    write_folders,
    write_image,
    write_list,
    write_mask,
)

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.masks.folders import (
    CAMVID_CLASSES,
    read_classes_file,
    read_mask_folders,
)


@pytest.fixture
def found():
    return some_masks()


@settings(max_examples=30)
@given(mask=masks(), values=st.sampled_from(["colors", "ids"]))
def test_masks_come_back(tmp_path_factory, mask, values):
    """Colors, and ids of 16 bits."""
    root = write_folders(tmp_path_factory.mktemp("folders"), {"a": mask}, values=values)
    data = read_mask_folders(root, "train")
    np.testing.assert_array_equal(data.records[0].read_mask(), mask)
    assert (data.classes.names, data.classes.colors) == (NAMES, COLORS)
    assert data.classes.ids == (300, 301, 302)


def test_camvid_is_known_without_a_file(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_camvid(tmp_path, {"b": mask, "a": mask})
    data = read_mask_folders(tmp_path, "train")
    assert data.classes == CAMVID_CLASSES and data.classes.num_classes == 11
    assert [(r.name, r.image_id) for r in data.records] == [("a", 1), ("b", 2)]
    assert data.records[0].read_mask().ravel().tolist() == [*range(11), 255]
    with pytest.raises(
        DataError, match=r"split 'val' needs folders .*\(val and valannot or images"
    ):
        read_mask_folders(tmp_path, "val")
    with pytest.raises(DataError, match="did you mean 'train'"):
        read_mask_folders(tmp_path, "trian")


def test_camvids_layout_can_have_other_classes(tmp_path, found):
    write_camvid(tmp_path, found)
    data = read_mask_folders(tmp_path, "train", classes=["a", "b", "c"])
    np.testing.assert_array_equal(data.records[0].read_mask(), found["im0"])
    data = read_mask_folders(tmp_path, "train", classes=CAMVID_CLASSES.names[::-1])
    np.testing.assert_array_equal(data.records[0].read_mask() == 10, found["im0"] == 0)
    data = read_mask_folders(tmp_path, "train", classes=["a", "b"])
    with pytest.raises(DataError, match=r"classes\.yaml$") as caught:
        data.records[0].read_mask()
    count = (found["im0"] == 2).sum()
    assert f"im0.png: has 1 id that no class has: 2 ({count} pixels)" in str(caught.value)


def test_real_camvid(shared_data):
    train, val = (read_mask_folders(shared_data / "camvid", s) for s in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    assert {(r.width, r.height) for r in (*train.records, *val.records)} == {(480, 360)}
    values = set(np.unique(np.stack([r.read_mask() for r in val.records[::10]])))
    assert values == {*range(11), 255}
    # The road is at the bottom of a driver's view, the sky at the top.
    bottom = np.stack([r.read_mask()[-40] for r in train.records[::20]])
    top = np.stack([r.read_mask()[5] for r in train.records[::20]])
    assert (bottom == 3).mean() > 0.5 > 0.2 > (top == 3).mean()
    assert (top == 0).mean() > 0.1 > (bottom == 0).mean()


def test_names_alone_are_the_ids_from_0_on(tmp_path, found):
    write_camvid(tmp_path, found)
    (tmp_path / "classes.yaml").write_text("classes: [background, cat, dog]\n")
    data = read_mask_folders(tmp_path, "train")
    assert data.classes.ids == (0, 1, 2)
    np.testing.assert_array_equal(data.records[0].read_mask(), found["im0"])


def test_masks_of_0_and_255_can_have_two_classes(tmp_path):
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    write_camvid(tmp_path, {"a": mask})
    text = "classes:\n- {name: paper, id: 0}\n- {name: ink, id: 255}\n"
    (tmp_path / "classes.yaml").write_text(text)
    data = read_mask_folders(tmp_path, "train")
    assert data.records[0].read_mask().tolist() == [[0, 1], [1, 0]]
    (tmp_path / "classes.yaml").write_text(text + "ignored: 255\n")
    with pytest.raises(DataError, match=r"classes\.yaml: the id 255 stands for two things"):
        read_mask_folders(tmp_path, "train")


def test_folders_lists_and_suffixes_can_be_named(tmp_path, found):
    for name, mask in found.items():
        write_image(tmp_path / "all" / f"{name}.JPG", mask)
        write_mask(tmp_path / "all" / f"{name}_mask.png", mask)
    write_list(tmp_path / "lists/val.txt", ["im2", "im0"])
    more = {"images": "all", "masks": "all", "mask_suffix": "_mask", "lists": "lists/{split}.txt"}
    content = {"classes": list(NAMES), **more}
    (tmp_path / "classes.yaml").write_text(json.dumps(content))
    data = read_mask_folders(tmp_path, "val")
    assert [r.name for r in data.records] == ["im2", "im0"]
    np.testing.assert_array_equal(data.records[0].read_mask(), found["im2"])
    del content["lists"]
    (tmp_path / "classes.yaml").write_text(json.dumps(content))
    assert len(read_mask_folders(tmp_path, "all")) == 3
    with pytest.raises(
        DataError, match="the folder 'all' is the same for every split; give `lists"
    ):
        read_mask_folders(tmp_path, "val")


@pytest.mark.parametrize("folders", [("images/x", "masks/x"), ("x/images", "x/masks")])
def test_usual_folders_are_found(tmp_path, found, folders):
    for name, mask in found.items():
        write_image(tmp_path / folders[0] / f"{name}.jpg", mask)
        write_mask(tmp_path / folders[1] / f"{name}.png", mask)
    (tmp_path / "classes.yaml").write_text("classes: [background, cat, dog]\n")
    assert len(read_mask_folders(tmp_path, "x")) == 3


def test_partners_are_missed_in_both_directions(tmp_path, found):
    write_camvid(tmp_path, found)
    (tmp_path / "train/im0.png").unlink()
    (tmp_path / "trainannot/im1.png").unlink()
    with pytest.raises(DataError) as caught:
        read_mask_folders(tmp_path, "train")
    message = str(caught.value)
    assert f"1 image without a mask in {tmp_path / 'trainannot'} ('im1.png')" in message
    assert "and 1 mask without an image ('im0.png'); partners have the same name" in message


def test_listed_names_must_be_there(tmp_path, found):
    write_folders(tmp_path, found)
    (tmp_path / "classes.yaml").write_text(classes_yaml(lists="{split}.txt"))
    write_list(tmp_path / "train.txt", ["im0", "im7"])
    with pytest.raises(DataError, match=r"1 name with neither \('im7'\)"):
        read_mask_folders(tmp_path, "train")


def test_two_images_cannot_share_a_mask(tmp_path, found):
    write_camvid(tmp_path, found)
    write_image(tmp_path / "train/im0.jpg", found["im0"])
    with pytest.raises(DataError, match=r"im0\.jpg and im0\.png are images of one name"):
        read_mask_folders(tmp_path, "train")


def test_wrong_sizes_and_empty_splits_are_named(tmp_path, found):
    write_camvid(tmp_path, found)
    write_mask(tmp_path / "trainannot/im0.png", found["im0"][1:], "L")
    with pytest.raises(
        DataError, match=r"im0\.png: the mask is 9x5 pixels, its image im0\.png 9x6"
    ):
        read_mask_folders(tmp_path, "train")
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match="val: has no images"):
        read_mask_folders(tmp_path, "val")
    with pytest.raises(DataError, match="there is no such folder"):
        read_mask_folders(tmp_path / "none", "train")


def test_a_split_cannot_leave_the_folder(tmp_path, found):
    write_camvid(tmp_path / "data", found)
    write_camvid(tmp_path / "secret", found)
    with pytest.raises(DataError, match=r"'\.\./secret/train' must be relative and stay inside"):
        read_mask_folders(tmp_path / "data", "../secret/train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b", "not valid YAML"),
        ("classes: [a]\nx: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: &a [x]\nb: *a", r"has aliases \(\*name\), which are not read"),
        ("[a]", "must be a mapping with `classes`"),
        ("classes: []", "must be a mapping with `classes`"),
        ("classes: {a: 1}", "classes must be a list, not"),
        ("classes: [a, a]", r"names must be unique; given twice: \['a'\]"),
        ("classes: [a, 3]", r"classes\[1\]: must be a name, or name with id and color, not '3'"),
        ("classes: [{name: a, colour: [0, 0, 0]}]", r"classes\[0\]: must be a name, or name with"),
        ("classes: [{id: 3}]", r"classes\[0\]: name must be a text, not None"),
        (
            "classes: [{name: a, id: 65536}]",
            r"id must be a whole number in 0 \.\. 65535, not 65536",
        ),
        ("classes: [{name: a, id: 1.5}]", "id must be a whole number"),
        ("classes: [{name: a, color: [0, 0, 256]}]", r"must be \[red, green, blue\] in 0\.\.255"),
        ("classes: [{name: a, id: 1}, b]", r"ids must be unique; given twice: \[1\]"),
        ("classes: [a]\nvalues: colors", "needs a color, because masks hold colors"),
        ("classes: [a]\nvalues: rgb", 'values must be "ids" or "colors", not \'rgb\''),
        ("classes: [a]\nignored: x", r"ignored: must be ids in 0 \.\. 65535, not 'x'"),
        ("classes: [a]\nignored: 0", "the id 0 stands for two things"),
        ("classes: [a]\nignore: 3", "has no use for 'ignore'; .*did you mean 'ignored'"),
        ("classes: [a]\nimages: x", "give both `images` and `masks`, or neither"),
        ("classes: [a]\nimages: ../x\nmasks: y", r"file name '\.\./x' must be relative"),
        ("classes: [a]\nimages: /x\nmasks: y", "file name '/x' must be relative"),
        ("classes: [a]\nimages: 3\nmasks: y", "images must be a path below its folder, not 3"),
        ("classes: [a]\nimages: '{root}'\nmasks: y", "only {split} may stand in braces"),
        ("classes: [a]\nlists: x.json", r"lists must name a \.txt file, not 'x\.json'"),
        ("classes: [a]\nmask_suffix: 3", "mask_suffix must be a text, not 3"),
    ],
)
def test_faulty_files_of_classes_are_refused(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_classes_file(path)
    assert str(caught.value).startswith(f"{path}")


def test_ignored_colors_take_one_or_several(tmp_path):
    path = tmp_path / "classes.yaml"
    for ignored, count in (("[1, 2, 3]", 1), ("[[1, 2, 3], [4, 5, 6]]", 2), ("[]", 0)):
        path.write_text(
            f"classes: [{{name: a, color: [9, 9, 9]}}]\nvalues: colors\nignored: {ignored}"
        )
        code = read_classes_file(path).code
        assert code.ids is None and code.colors.labels.count(255) == count
