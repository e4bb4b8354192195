"""The data report: what it finds, what it says, and that names from the data do nothing."""

import json
import re
import shutil

import numpy as np
import pytest
from instance_sets import change, write_instances
from mask_sets import some_masks, write_camvid, write_image
from PIL import Image

from densenet_backbones.data.faults import Problem
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.inspection import command
from densenet_backbones.inspection.command import make_parser
from densenet_backbones.inspection.defects import name_kind
from densenet_backbones.inspection.page import escape
from densenet_backbones.inspection.reading import read_data

HOSTILE = "<img src=x onerror=alert(1)>\"'&\x1b[31m"
SIZES = tuple((60 + 4 * n, 90 - 3 * n) for n in range(10))


def smooth(path, seed, size=(80, 60)):
    """A picture of soft blobs, as photographs are: no noise, which no two pictures share."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """Two splits with one fault of each kind."""
    root = tmp_path_factory.mktemp("data") / HOSTILE.replace("/", "_")
    write_instances(root, SIZES)
    write_instances(root, SIZES[:4], split="val", seed=1)
    for n in range(10):
        smooth(root / f"train/{n}.png", n, SIZES[n][::-1])
    for n in range(4):
        smooth(root / f"val/{n}.png", 20 + n, SIZES[n][::-1])

    def edit(content):
        annotations = content["annotations"]
        annotations[0]["bbox"][2] = 0
        annotations[4]["bbox"][0] += 500
        annotations[8]["bbox"][2] += 70
        annotations[12]["bbox"][2:] = [3, 3]
        annotations.append({**annotations[16], "id": 900})
        content["images"].append({"id": 70, "file_name": "copy.png", "width": 90, "height": 60})
        content["images"].append({"id": 71, "file_name": "alike.jpg", "width": 87, "height": 64})
        content["images"].append({"id": 72, "file_name": "turned.jpg", "width": 60, "height": 80})

    change(root, edit)
    for split in ("train", "val"):
        change(root, lambda c: c["categories"][1].update(name=HOSTILE), f"instances_{split}")
    shutil.copy(root / "val/0.png", root / "train/copy.png")
    Image.open(root / "train/1.png").save(root / "train/alike.jpg", quality=70)
    smooth(root / "train/turned.jpg", 50)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.open(root / "train/turned.jpg").save(root / "train/turned.jpg", exif=tags)
    (root / "train/6.png").write_bytes((root / "train/6.png").read_bytes()[:300])
    Image.new("RGB", (9, 9)).save(root / "train/7.png")
    return root


def run(*arguments):
    command.main([str(argument) for argument in arguments])


def list_files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


FOUND = {
    "the box has no area": 1,
    "the box … lies outside the image": 1,
    "the box reaches … pixels beyond the image": 1,
    "images that cannot be read": 1,
    "images of another size than annotated": 1,
    "images turned by a camera's tag (EXIF)": 1,
    "objects that are annotated twice (overlap of 95 % or more)": 1,
    "images that are in two splits": 1,
    "near duplicates": 1,
    "images without objects": 3,
    "boxes with a side of less than 4 pixels": 1,
}


def test_faults_of_every_kind_are_counted_and_the_data_stays_as_it_is(dirty, tmp_path, capsys):
    before = list_files(dirty)
    run(dirty, "--report", tmp_path, "--detector", "dsod_tiny")
    assert list_files(dirty) == before
    report = json.loads((tmp_path / "report.json").read_text())
    assert {d["kind"]: d["count"] for d in report["defects"]} == FOUND
    printed = capsys.readouterr().out
    for kind, count in FOUND.items():
        assert re.search(rf"^ +{count} {re.escape(kind)} \(", printed, re.M), kind
    assert report["images"] == {"train": 13, "val": 4}
    (pair,) = report["alike"]
    assert {file[-9:] for _, file in pair} == {"ain/1.png", "alike.jpg"}
    assert "\x1b" not in printed and r"\x1b[31m" in printed
    assert "All 17 images were decoded." in printed
    counts = {row["name"]: row["train"]["objects"] for row in report["classes"]}
    assert counts == {"person": 19, HOSTILE: 10}
    assert report["boxes"]["count"] == 29 + 12 and report["priors"]["detector"] == "dsod_tiny"


def test_names_from_the_data_are_no_markup(dirty, tmp_path):
    run(dirty, "--report", tmp_path, "--detector", "dsod_tiny", "--images", "5")
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "onerror=alert(1)&gt;" in page
    assert {tag.lower() for tag in re.findall(r"<(script|iframe|object|link|a)\b", page)} == set()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)
    # Nothing is fetched: pictures are in the page.
    assert all(
        url.startswith("data:image/jpeg;base64,") for url in re.findall(r'src="([^"]+)', page)
    )
    assert page.count("data:image/jpeg") >= 4 and "http" not in page.replace("http-equiv", "")
    assert "5 of 17 images were decoded, spread evenly" in page
    assert escape("<b>\n&\"'") == r"&lt;b&gt;\n&amp;&quot;&#x27;"


def test_a_clean_copy_has_none_of_the_faults_and_says_what_was_changed(dirty, tmp_path, capsys):
    before = list_files(dirty)
    run(dirty, "--fix", tmp_path / "clean", "--rename", f"{HOSTILE}=box")
    assert list_files(dirty) == before
    changes = (tmp_path / "clean/changes.txt").read_text(errors="replace")
    for said in (
        "copy.png: left out: it is a copy of",
        "has no area",
        "lies outside",
        "; clipped",
        "turned.jpg: turned upright",
        "object 4 ('person'): left out: it is object 1",
        "6.png: cannot be read",
        "7.png: is 9x9 pixels",
    ):
        assert said in changes, said
    printed = capsys.readouterr().out
    assert re.search(r"^8 changes:$", printed, re.M) and "1 image is written anew" in printed
    run(tmp_path / "clean", "--report", tmp_path / "again", "--detector", "dsod_tiny")
    report = json.loads((tmp_path / "again/report.json").read_text())
    assert {d["kind"] for d in report["defects"] if d["is_error"]} == {"near duplicates"}
    assert report["images"] == {"train": 10, "val": 4}
    assert [row["name"] for row in report["classes"]] == ["person", "box"]
    run(tmp_path / "clean", "--to", "yolo", "--out", tmp_path / "yolo")
    assert "fault" not in capsys.readouterr().out
    data = read_detection(tmp_path / "clean", "train", strict=True)
    assert sorted(r.image_id for r in data.records) == list(range(1, 11))
    with Image.open(tmp_path / "clean/train/turned.jpg") as image:
        assert image.size == (60, 80) and not image.getexif().get(0x0112)


def test_what_is_converted_with_faults_names_them(tmp_path, capsys):
    root = tmp_path / "in"
    write_instances(root)
    change(root, lambda content: content["annotations"][8]["bbox"].__setitem__(2, 900))
    run(root, "--to", "yolo", "--out", tmp_path / "yolo")
    assert re.search(r"^1 fault in in/train:\n  .*; clipped", capsys.readouterr().out, re.M)


def test_masks_are_reported_and_converted_with_other_classes(tmp_path, capsys):
    found = some_masks(4, size=(40, 50))
    root = write_camvid(write_camvid(tmp_path / "in", found), dict(list(found.items())[:2]), "val")
    for split, seed in (("train", 0), ("val", 9)):
        for n, path in enumerate(sorted((root / split).iterdir())):
            write_image(path, found[path.stem], seed + n)
    run(root, "--report", tmp_path / "report")
    report = json.loads((tmp_path / "report/report.json").read_text())
    first = report["classes"][0]
    values = np.stack(list(found.values()))
    assert first["name"] == "sky" and first["train"]["images"] == 4
    assert first["train"]["pixels"] == (values == 0).sum()
    assert "boxes" not in report and "images without" not in str(report["defects"])
    assert "<h2>Samples of val</h2>" in (tmp_path / "report/report.html").read_text()
    run(
        root,
        "--to",
        "voc",
        "--out",
        tmp_path / "voc",
        "--rename",
        "pole=thing,road=thing",
        "--drop",
        "sky",
    )
    data = read_segmentation(tmp_path / "voc", "val")
    assert data.classes.names[:3] == ("building", "thing", "pavement")
    mask = data.records[0].read_mask()
    assert ((mask == 255) == np.isin(found["im0"], (0, 255))).all()
    assert ((mask == 1) == (found["im0"] == 2)).all()
    capsys.readouterr()


def test_wrong_words_and_unreadable_splits_are_one_line(dirty, tmp_path, capsys):
    broken = shutil.copytree(dirty, tmp_path / "broken")
    (broken / "annotations/instances_val.json").write_text("{")
    for words, code, said in (
        ([dirty, "--to", "voc"], 2, "--to needs --out DIR"),
        ([dirty, "--out", tmp_path / "x"], 2, "--out belongs to --to"),
        ([dirty, "--images", 0], 2, "--images must be at least 1"),
        ([dirty, "--detector", "dsod_tinny"], 1, "there is no 'dsod_tinny'; did you mean"),
        ([dirty, "--drop", "persn"], 1, "has no class 'persn'; did you mean 'person'?"),
        ([tmp_path / "none"], 1, "none"),
        ([dirty, "--to", "coco", "--out", dirty], 1, "is there already, and not empty"),
    ):
        with pytest.raises(SystemExit) as error:
            run(*words, *([] if "--out" in words else ["--report", tmp_path / "r"]))
        assert error.value.code == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1] and len(lines) == 1
    run(broken, "--report", tmp_path / "broken report", "--detector", "dsod_tiny")
    report = json.loads((tmp_path / "broken report/report.json").read_text())
    assert report["defects"][0]["kind"] == "a split that cannot be read" or any(
        d["kind"] == "a split that cannot be read" for d in report["defects"]
    )
    with pytest.raises(SystemExit):
        run(broken, "--fix", tmp_path / "fixed")
    assert "val would be missing in what is written" in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("the box has no area (width 0, height -3.5)", "the box has no area"),
        (
            "the box 1, 2e-7, -3, 4 (xyxy) lies outside the image of 5x6 pixels",
            "the box … lies outside the image",
        ),
        ("has no 'segmentation'", "has no …"),
        ("3 of 9 images have no mask ('a', 'b')", "… of … images have no mask"),
        ("", "other"),
    ],
)
def test_kinds_are_what_is_said_without_numbers_and_names(what, kind):
    assert name_kind(Problem("f", "i", what, "x")) == kind


def test_all_objects_are_counted_where_a_file_of_keypoints_lies_beside(tiny_scenes):
    data = read_data(make_parser().parse_args([str(tiny_scenes)]))
    for name, part in data.parts.items():
        expected = read_detection(tiny_scenes, name)
        assert len(part.categories.names) > 1
        assert part.categories.names == expected.categories.names
        assert [len(r.boxes) for r in part.records] == [len(r.boxes) for r in expected.records]
