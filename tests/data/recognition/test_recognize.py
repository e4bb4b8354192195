import json
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from foreign_sets import (
    coco_json,
    voc_xml,
    write_coco_beside,
    write_coco_names,
    write_cvat,
    write_darknet,
    write_labelme,
    write_labelme_boxes,
    write_masks_beside,
    write_roboflow_yolo,
    write_tensorflow_csv,
    write_ultralytics,
    write_yolo_pose,
)
from labelled_pictures import PICTURES, change_text, read_all, save_image, write_text
from PIL import Image

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Source
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.recognition.archives import unpack_archive
from densenet_backbones.data.recognition.recognize import recognize
from densenet_backbones.data.segmentation import SegmentationData

# ------------------------------------------------------------------------------ what is there


def test_two_readings_are_an_error_whose_options_work(tmp_path):
    write_coco_beside(tmp_path)
    write_darknet(tmp_path)
    for picture in PICTURES:
        write_text(tmp_path / "xml" / f"{picture.stem}.xml", voc_xml(picture))
    # Each photograph lies in two places; one of them is enough.
    for path in (tmp_path / "obj_train_data").glob("*.jpg"):
        path.unlink()
    for path in (tmp_path / "obj_train_data").glob("*.txt"):
        path.rename(tmp_path / path.name)
    with pytest.raises(DataError, match="may be read in 3 ways") as error:
        recognize(tmp_path, "detection")
    lines = str(error.value).splitlines()[1:]
    options = [line.split()[:2] for line in lines]
    assert options == [
        ["--annotation-file", "annotations.json"],
        ["--layout", "voc"],
        ["--layout", "yolo"],
    ]
    for name, value in options:
        option = {name[2:].replace("-", "_"): value}
        data = DetectionData(str(tmp_path), **option)
        assert data.recognized.whole is not None
        assert len(read_detection([dict(data.recognized.whole.source)])) == 6


def test_several_coco_files_that_name_no_split_are_ambiguous(tmp_path):
    write_coco_beside(tmp_path)
    write_text(tmp_path / "more.json", coco_json(PICTURES[:2]))
    with pytest.raises(DataError, match=r"--annotation-file more\.json .*2 images"):
        recognize(tmp_path)
    sources = [Source(str(tmp_path), annotation_file=f"{n}.json") for n in ("annotations", "more")]
    data = DetectionData(train=sources[:1], val=sources[1:])
    assert (len(data.train_set), len(data.val_set), data.lines) == (6, 2, [])


def test_what_is_not_recognized_is_described(tmp_path):
    save_image(PICTURES[0], tmp_path)
    write_text(tmp_path / "results.json", "[1]")
    write_text(tmp_path / "package.json", "{}")
    write_text(tmp_path / "a.xml", "<svg/>")
    with pytest.raises(DataError) as error:
        recognize(tmp_path)
    for words in ("2 .json, 1 .jpg, 1 .xml", "results.json: a list", "a.xml: <svg>", "labelme"):
        assert words in str(error.value)
    with pytest.raises(DataError, match="there is no such file or folder"):
        recognize(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"photo 0\.jpg: is neither a folder nor"):
        recognize(tmp_path / PICTURES[0].name)


def test_data_of_the_other_kind_names_the_other_tool(tmp_path):
    write_masks_beside(tmp_path / "masks")
    write_tensorflow_csv(tmp_path / "boxes")
    with pytest.raises(DataError, match=r"boxes only, no outlines.*train_det"):
        recognize(tmp_path / "boxes", "segmentation")
    with pytest.raises(DataError, match=r"masks of classes.*train_seg"):
        recognize(tmp_path / "masks", "detection")
    assert recognize(tmp_path / "masks").serves == {"semantic"}


def test_links_are_not_followed_out_of_the_folder(tmp_path):
    write_labelme(tmp_path / "own")
    write_labelme(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "elsewhere")
    (tmp_path / "own" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "circle").symlink_to(tmp_path / "own")
    (tmp_path / "own" / "itself").symlink_to("itself")
    (tmp_path / "own" / "z.json").symlink_to(tmp_path / "elsewhere" / "photo 0.json")
    assert recognize(tmp_path / "own").whole.images == 6


@pytest.mark.parametrize("suffix", [".webp", ".TIF", ".JPEG", ".avif"])
def test_images_beside_their_xml_have_any_ending_that_is_read(suffix, tmp_path):
    write_text(tmp_path / "ein Bild.xml", voc_xml(PICTURES[0]))
    PICTURES[0].draw().save(tmp_path / f"ein Bild{suffix}")
    assert len(read_detection(tmp_path, "all").records) == 1


def test_an_image_of_a_kind_that_is_not_read_is_named(tmp_path):
    write_text(tmp_path / "IMG_1.xml", voc_xml(PICTURES[0]))
    (tmp_path / "IMG_1.CR2").write_bytes(bytes(30))
    with pytest.raises(DataError, match=r"IMG_1\.xml: there is no image .*; export IMG_1\.CR2 as"):
        recognize(tmp_path)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a", "b"):
        save_image(PICTURES[0], tmp_path / folder, "x.jpg")
    pictures = PICTURES[:2]

    def write(first, second):
        names = dict(zip(pictures, (first, second), strict=True))
        write_text(tmp_path / "all.json", coco_json(pictures, name=names.get))
        return [r.path.parent.name for r in read_all(tmp_path).records]

    assert write("/data/a/x.jpg", "..\\b\\x.jpg") == ["a", "b"]
    with pytest.raises(DataError, match=r"may be any of 2 files \('a/x.jpg', 'b/x.jpg'\)"):
        write("c/x.jpg", "b/x.jpg")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    write_labelme(tmp_path)
    monkeypatch.setattr("densenet_backbones.data.recognition.tree.MAX_LISTED_FILES", 5)
    with pytest.raises(DataError, match=r"more than 5 files.*give annotation_file"):
        recognize(tmp_path)


def test_a_part_that_is_held_out_is_not_taken_for_the_whole(tmp_path):
    for folder, is_whole in (("all", True), ("train", True), ("valid", False), ("test", False)):
        write_labelme(tmp_path / folder / folder)
        assert (recognize(tmp_path / folder).whole is not None) == is_whole
    with pytest.raises(DataError, match=r"has no split 'test' \(there are: valid\)"):
        recognize(tmp_path / "valid").name_source("test")


def test_the_option_for_a_split_of_an_odd_name_is_told(tmp_path):
    for folder in ("first", "val"):
        write_labelme(tmp_path / folder)
    with pytest.raises(
        DataError, match=r"no split 'train' .*--data\.train_split takes its name, s"
    ):
        DetectionData(str(tmp_path)).train_set  # noqa: B018
    assert len(DetectionData(str(tmp_path), train_split="others").train_set) == 6


def test_files_that_are_given_may_have_other_names_of_splits(tmp_path):
    write_coco_names(tmp_path)
    data = DetectionData(str(tmp_path), annotation_file="labels_{split}.json")
    assert (len(data.train_set), len(data.val_set)) == (4, 2)
    assert data.lines[1] == "Found: training, validation. 'validation' is evaluated."


def test_data_without_splits_says_so(tmp_path):
    write_labelme(tmp_path)
    whole = recognize(tmp_path).whole
    assert whole.name == "all" and read_detection(tmp_path, "all").records[5].width == 50
    with pytest.raises(DataError, match="has no split 'val'"):
        read_detection(tmp_path, "val")


# ------------------------------------------------------------------------------ archives


def test_an_archive_is_unpacked_once(tmp_path):
    write_roboflow_yolo(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "source").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "source"))
        archive.writestr("__MACOSX/._data.yaml", "junk")
    folder, said = unpack_archive(tmp_path / "a.zip")
    assert folder.parent == tmp_path and said == f"a.zip is unpacked to {folder}"
    marker = folder / "data.yaml"
    before = marker.stat().st_mtime_ns
    again, said = unpack_archive(tmp_path / "a.zip")
    assert again == folder and "before" in said and marker.stat().st_mtime_ns == before
    assert not (folder / "__MACOSX").exists()
    data = DetectionData(str(tmp_path / "a.zip"))
    assert len(data.train_set) == 4 and "unpacked before" in data.lines[2]


def _write_archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


FILE = stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([("../a.txt", "x", FILE)], r"entry 1 \('\.\./a\.txt'\).*stay inside"),
        ([("/etc/a", "x", FILE)], "stay inside"),
        ([("C:\\a", "x", FILE)], "stay inside"),
        ([("a", "/etc/passwd", stat.S_IFLNK | 0o777)], "is a link or a device"),
        ([("a", "", stat.S_IFIFO)], "is a link or a device"),
        ([("a.txt", "1", FILE), ("A.TXT", "2", FILE)], "is there twice"),
        ([("/".join("a" * 30), "1", FILE)], "more than 20 folders"),
        ([("a", "a" * 5_000_000, FILE)], r"would become 0\.0 GiB, more than"),
        ([(f"{n}", "", FILE) for n in range(12)], "has 12 files, more than the 10"),
    ],
)
def test_dangerous_archives_leave_nothing_behind(tmp_path, entries, match, monkeypatch):
    room = "densenet_backbones.data.recognition.archives"
    monkeypatch.setattr(f"{room}.FREE_ARCHIVE_BYTES", 1000)
    monkeypatch.setattr(f"{room}.MAX_ARCHIVE_FILES", 10)
    _write_archive(tmp_path / "a.zip", [("fine.txt", "fine", FILE), *entries][-12:])
    match = match.replace("entry 1", "entry 2")
    with pytest.raises(DataError, match=match):
        recognize(tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.zip"
    _write_archive(path, [("a.txt", "hello " * 500, FILE), ("b.txt", "x" * 5000, FILE)])
    data = bytearray(path.read_bytes())
    data[45:50] = b"\xff" * 5
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip: no usable zip archive"):
        recognize(path)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["a.zip"]


# ------------------------------------------------------------------------------ formats


def line_of(path, text):
    path.write_text(text)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("0 0.5 0.5 0.1", "no object in the layout|has 4 numbers, but an object has 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "a sixth number is a score"),
        ("2 0.5 0.5 0.1 0.1", "'2' is not one of the 2 that are named"),
        ("0 40 30 10 10", "40 is no share of the image's side"),
        ("0 nan 0.5 0.1 0.1", "a coordinate must be a number, not 'nan'"),
        ("cat 0.5 0.5 0.1 0.1", "the number of the class must be a number"),
        ("0 " + "0.5 " * 7, "has 8 numbers"),
    ],
)
def test_wrong_lines_of_yolo_are_named(tmp_path, line, match):
    write_ultralytics(tmp_path)
    path = tmp_path / "labels/train/photo 1.txt"
    path.write_text("0 0.5 0.5 0.1 0.1\n\n" + line)
    with pytest.raises(DataError, match=match) as error:
        read_detection(tmp_path, "train", layout="yolo")
    assert f"{path}: line 3" in str(error.value)


def test_images_without_labels_are_images_without_objects(tmp_path):
    write_ultralytics(tmp_path)
    (tmp_path / "labels/train/photo 1.txt").unlink()
    (tmp_path / "labels/train/photo 2.txt").write_text("")
    found = recognize(tmp_path)
    assert "1 image has no label file" in found.lines[2]
    counts = [len(r.boxes) for r in read_detection(tmp_path, "train").records]
    assert counts == [2, 0, 0, 2]


def test_classes_without_names_are_numbered(tmp_path):
    write_darknet(tmp_path)
    (tmp_path / "obj.names").unlink()
    assert read_all(tmp_path).categories.names == ("class 0", "class 1")
    assert "no class has a name" in recognize(tmp_path).lines[2]


def test_mirrored_keypoints_of_yolo_have_names_that_say_so(tmp_path):
    write_yolo_pose(tmp_path)
    path = tmp_path / "pets.yaml"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "flip_idx": [1, 0], "kpt_names": None}))
    categories = read_detection(tmp_path, "train", keypoints=True).categories
    assert categories.mirrored_keypoints == (1, 0)


def set_shapes(shapes):
    def change(root):
        path = root / "train/json/photo 0.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "shapes": shapes}))

    return change


@pytest.mark.parametrize(
    ("write", "change", "match"),
    [
        (write_labelme_boxes, set_shapes([{"points": []}]), r"shapes\[0\]: the name of the class"),
        (write_labelme_boxes, set_shapes([3]), r"shapes\[0\] must be an object"),
        (
            write_labelme_boxes,
            set_shapes([{"label": "a", "points": [[1, "x"]]}]),
            r"photo 0\.json: shapes\[0\]: points\[0\] must be a number, not 'x'",
        ),
        (
            write_tensorflow_csv,
            lambda root: change_text(root / "train_labels.csv", ",cat,", ",,"),
            r"train_labels\.csv: line 2: the name of the class must be a text",
        ),
        (
            write_tensorflow_csv,
            lambda root: change_text(root / "train_labels.csv", "photo 0", "photo 9"),
            r"line 2: its image 'photo 9\.jpg' is not below",
        ),
        (
            write_cvat,
            lambda root: change_text(root / "annotations.xml", "points=", "pts="),
            r"image 'photo 0\.jpg': shape 1 \(polygon\): point 1 must be x,y",
        ),
        (
            write_cvat,
            lambda root: change_text(root / "annotations.xml", "</image>", "</imago>"),
            r"annotations\.xml: not valid XML at line 1",
        ),
        (
            write_ultralytics,
            lambda root: change_text(root / "pets.yaml", '["cat", "dog"]', '["cat", "cat"]'),
            r"pets\.yaml: must name .* each once; given twice: 'cat'",
        ),
    ],
)
def test_faults_name_the_file_and_the_item(write, change, match, tmp_path):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=match):
        read_all(tmp_path)


# ------------------------------------------------------------------------------ masks


def test_proposed_classes_are_written_on_request_and_named(tmp_path):
    write_masks_beside(tmp_path)
    data = SegmentationData(str(tmp_path), write_classes=True)
    assert "background, class 1, class 2" in data.lines[2]
    before = read_segmentation(tmp_path, "all")
    change_text(tmp_path / "classes.yaml", "class 1", "cat")
    after = read_segmentation(tmp_path, "all")
    assert after.classes.names == ("background", "cat", "class 2")
    for old, new in zip(before.records, after.records, strict=True):
        np.testing.assert_array_equal(old.read_mask(), new.read_mask())
    assert not list(Path(tmp_path).glob("*.tmp"))


@pytest.mark.parametrize("folders", ["{} {split}", "{split} {}", "{}", "mask-set {} {split}"])
def test_masks_are_told_from_images_by_any_folder_of_their_path(folders, tmp_path):
    for split in ("train", "val"):
        for word in ("images", "masks"):
            folder = tmp_path / folders.format(word, split=split).replace(" ", "/")
            for n in range(2):
                folder.mkdir(parents=True, exist_ok=True)
                # Of as few values as masks have, both.
                Image.new("L", (6, 4), 255 * n).save(folder / f"{n}.png")
    found = recognize(tmp_path, "segmentation")
    data = read_segmentation([dict(found.splits[0].source)])
    assert ["images" in record.path.parts for record in data.records] == [True, True]
    assert data.classes.names == ("background", "foreground")


def write_gray_masks(root, levels, mode="L"):
    """Images and a mask whose first pixels have the levels, and 60 others 0 and 255."""
    values = [*levels, *[0] * 30, *[255] * 30]
    mask = np.array(values, np.uint8).reshape(1, -1)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    Image.new("RGB", mask.shape[::-1], "red").save(root / "images/a.jpg")
    Image.fromarray(mask).convert(mode).save(root / "masks/a.png")
    return root


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_black_and_white_masks_with_other_values_are_pointed_out(mode, tmp_path):
    said = recognize(write_gray_masks(tmp_path, [3, 252, 252], mode), "segmentation").lines[2]
    assert "warning: of the pixels above 0 the masks have 255: 90.9%, 252: 6.1%, 3: 3.0%" in said
    assert "give one class the value 255 in classes.yaml" in said


@pytest.mark.parametrize(
    ("levels", "is_odd"), [([128] * 40, True), ([1] * 40, False), ([], False), ([1, 2] * 20, False)]
)
def test_ignored_pixels_beside_ids_are_usual(levels, is_odd, tmp_path):
    said = recognize(write_gray_masks(tmp_path, levels), "segmentation").lines[2]
    assert ("warning" in said) == is_odd


def test_masks_of_too_many_values_are_named(tmp_path):
    with pytest.raises(DataError, match=r"pictures in masks have more than 100 values, of the pix"):
        recognize(write_gray_masks(tmp_path, [*range(0, 255, 2), *[255] * 200]), "segmentation")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_opaque_alpha_channel_of_masks_is_passed_over(mode, tmp_path):
    found = recognize(write_gray_masks(tmp_path, [0], mode), "segmentation")
    data = read_segmentation([dict(found.splits[0].source)])
    assert np.bincount(data.records[0].read_mask().ravel()).tolist() == [31, 30]
    picture = Image.open(tmp_path / "masks/a.png")
    picture.putalpha(9)
    picture.save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels .*'RGBA'|'LA'"):
        data.records[0].read_mask()


LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"image": "/data/upload/1/a.jpg"},
        "annotations": [{"result": [{"original_width": 8, "value": {"x": 1}}] * 900}],
    }
]
CREATE_ML = [{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1}}] * 2000}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tasks.json", json.dumps(LABEL_STUDIO), "tasks of Label Studio; export them as COCO"),
        ("a.jpg.json", '{"objects": [{"classTitle": "cat"}]}', "Supervisely's annotations; export"),
        ("a.json", json.dumps(CREATE_ML), "CreateML's list; convert it to COCO"),
        ("masks.csv", "ImageId,EncodedPixels\na.jpg,1 3", "run lengths of masks .EncodedPixels.;"),
        (
            "a.csv",
            "ImageID,LabelName,XMin\na,b,0.1",
            "the columns 'ImageID,LabelName,XMin'",
        ),
    ],
)
def test_what_is_not_read_is_named_with_the_way_out(name, content, said, tmp_path):
    save_image(PICTURES[0], tmp_path, "a.jpg")
    write_text(tmp_path / name, content)
    for kind in ("detection", None):
        with pytest.raises(DataError, match=rf"{name}: .*{said}.* known are COCO"):
            recognize(tmp_path, kind)
