"""Pascal VOC folders: layouts, lists, classes, coordinates, and errors for whatever is wrong."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.image_checks import check_images
from densenet_backbones.data.readers.voc import boxes as voc
from densenet_backbones.data.readers.voc.boxes import VOC_CLASSES, read_voc

DOG = {"name": "dog", "xmin": 3, "ymin": 5, "xmax": 20, "ymax": 25}


def xml(*objects, size=(40, 30)):
    """Text of an annotation file; `None` as a value leaves the field out."""
    parts = []
    for fields in objects:
        corners = "".join(
            f"<{k}>{v}</{k}>"
            for k, v in fields.items()
            if k in ("xmin", "ymin", "xmax", "ymax") and v is not None
        )
        others = "".join(
            f"<{k}>{v}</{k}>"
            for k, v in fields.items()
            if k not in ("xmin", "ymin", "xmax", "ymax") and v is not None
        )
        parts.append(f"<object>{others}<bndbox>{corners}</bndbox></object>")
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    path = "<filename>other.jpg</filename><path>/etc/passwd</path>"
    return f"<annotation>{path}{shape}{''.join(parts)}</annotation>"


def write(root, files, lists=None, *, suffix=".png", size=(40, 30)):
    """A data set: `files` maps ids to XML; the list "train" names them all by default."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        Image.new("RGB", size).save(root / "JPEGImages" / f"{name}{suffix}")
    for split, lines in (lists or {"train": files}).items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def one(root, *objects, **options):
    """The only record of a data set with one image."""
    return read_voc(write(root, {"a": xml(*objects)}), "train", **options).records[0]


def test_coordinates_become_half_open_from_zero(tmp_path):
    whole = {"name": "cat", "xmin": 1, "ymin": 1, "xmax": 40, "ymax": 30}
    record = one(tmp_path, DOG, whole)
    assert record.boxes.dtype == np.float32
    assert record.boxes.tolist() == [[2, 4, 20, 25], [0, 0, 40, 30]]
    assert record.annotations[0]["bbox"] == [2, 4, 18, 21]
    assert record.annotations[0]["area"] == 18 * 21
    assert (record.width, record.height) == (40, 30)
    assert record.labels.tolist() == [VOC_CLASSES.index("dog") + 1, VOC_CLASSES.index("cat") + 1]


def test_coordinates_may_have_fractions(tmp_path):
    record = one(tmp_path, {**DOG, "xmin": "3.5", "ymax": " 25.25 "})
    assert record.boxes.tolist() == [[2.5, 4, 20, 25.25]]


def test_flags_are_kept(tmp_path):
    record = one(
        tmp_path,
        {**DOG, "difficult": 1, "truncated": 0},
        {**DOG, "difficult": 0, "truncated": 1},
        {**DOG, "difficult": "", "truncated": "Unspecified"},
        DOG,
    )
    assert record.difficult.tolist() == [True, False, False, False]
    assert [a["difficult"] for a in record.annotations] == [1, 0, 0, 0]
    assert [a["truncated"] for a in record.annotations] == [0, 1, 0, 0]


def test_difficult_objects_are_crowds_in_the_ground_truth(tmp_path):
    write(tmp_path, {"a": xml({**DOG, "difficult": 1}, DOG)})
    truth = read_voc(tmp_path, "train").ground_truth()
    assert [a["iscrowd"] for a in truth["annotations"]] == [1, 0]
    assert json.loads(json.dumps(truth)) == truth


def test_parts_of_objects_are_no_objects(tmp_path):
    text = xml(DOG).replace(
        "</object>",
        "<part><name>head</name><bndbox><xmin>4</xmin><ymin>6</ymin><xmax>9</xmax><ymax>9</ymax>"
        "</bndbox></part></object>",
    )
    found = read_voc(write(tmp_path, {"a": text}), "train")
    assert found.categories.names == VOC_CLASSES
    assert found.records[0].boxes.tolist() == [[2, 4, 20, 25]]


def test_image_without_objects_stays(tmp_path):
    found = read_voc(write(tmp_path, {"a": xml(DOG), "b": xml()}), "train")
    assert found.records[1].boxes.shape == (0, 4) and found.records[1].annotations == ()
    assert [r.image_id for r in found.records] == [1, 2]


@pytest.mark.parametrize(
    ("split", "images", "boxes", "faulty"),
    [
        ("train", 205, 2805, ["BloodImage_00343"]),
        ("val", 87, 1138, ["BloodImage_00338"]),
        ("trainval", 292, 3943, ["BloodImage_00338", "BloodImage_00343"]),
        ("test", 72, 945, []),
        ("all", 364, 4888, ["BloodImage_00338", "BloodImage_00343"]),
    ],
)
def test_real_blood_cells(shared_data, split, images, boxes, faulty):
    found = read_voc(shared_data / "bccd", split)
    assert len(found) == images
    assert found.categories.names == ("Platelets", "RBC", "WBC")
    assert sum(len(r.annotations) for r in found.records) == boxes
    assert sum(len(r.boxes) for r in found.records) == boxes - len(faulty)
    assert [re.search(r"BloodImage_\d+", p.file).group() for p in found.problems] == faulty
    assert all("no area (width 0, height 0)" in p.what for p in found.problems)
    assert {(r.width, r.height) for r in found.records} == {(640, 480)}
    if faulty:
        with pytest.raises(DataError, match=rf"found {len(faulty)} fault(?s:.*){faulty[0]}\.xml"):
            read_voc(shared_data / "bccd", split, strict=True)


# --- layouts and lists ---------------------------------------------------------------------------


@pytest.mark.parametrize("below", [".", "VOC2007", "VOCdevkit/VOC2012"])
def test_root_may_be_above_the_data(tmp_path, below):
    write(tmp_path / below, {"a": xml(DOG)})
    found = read_voc(tmp_path, "train")
    assert found.name == f"{(tmp_path / below).resolve().name}/train"
    assert found.records[0].path == tmp_path / below / "JPEGImages/a.png"


def test_several_years_need_a_choice(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        write(tmp_path / year, {"a": xml(DOG)})
    with pytest.raises(DataError, match=r"2 data sets.*'VOC2007', 'VOC2012'"):
        read_voc(tmp_path, "train")
    assert len(read_voc(tmp_path / "VOC2012", "train")) == 1


def test_wrong_root_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="expected Annotations"):
        read_voc(tmp_path, "train")
    with pytest.raises(DataError, match="there is no such folder"):
        read_voc(tmp_path / "nowhere", "train")
    (tmp_path / "annotations").mkdir()  # COCO's
    with pytest.raises(DataError, match="expected Annotations"):
        read_voc(tmp_path, "train")


def test_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(
        DataError, match=r"no tarin\.txt \(there are: 'train'\).*did you mean 'train'"
    ):
        read_voc(write(tmp_path, {"a": xml(DOG)}), "tarin")
    with pytest.raises(DataError, match=r"has no \.\./x\.txt"):
        read_voc(tmp_path, "../x")


def test_split_all_reads_every_annotation_file(tmp_path):
    write(tmp_path, {"b": xml(DOG), "a": xml(DOG)}, {"train": ["a"]})
    assert [r.path.stem for r in read_voc(tmp_path, "all").records] == ["a", "b"]
    (tmp_path / "ImageSets/Main/all.txt").write_text("b\n")
    assert [r.path.stem for r in read_voc(tmp_path, "all").records] == ["b"]


def test_split_all_says_which_images_it_leaves_out(tmp_path):
    write(tmp_path, {"b": xml(DOG), "a": xml(DOG)}, {"train": ["a"]})
    assert read_voc(tmp_path, "all").problems == ()
    for name in ("x.JPG", "y.png", "notes.txt"):
        (tmp_path / "JPEGImages" / name).write_bytes(b"")
    (problem,) = read_voc(tmp_path, "all").problems
    said = "2 of 4 images have no annotation file ('x.JPG', 'y.png'); left out: an image without"
    assert str(problem) == f'{tmp_path / "JPEGImages"}: split "all": {said} objects needs one too'
    assert read_voc(tmp_path, "train").problems == ()
    with pytest.raises(DataError, match="2 of 4 images have no annotation file"):
        read_voc(tmp_path, "all", strict=True)


def test_class_list_gives_images_with_the_class(tmp_path):
    files = {name: xml(DOG) for name in ("a", "b", "c c", "d 1")}
    lists = {"dog_train": ["a  1", "b -1", "", "c c\t0", "d 1"]}
    write(tmp_path, files, lists)
    assert [r.path.stem for r in read_voc(tmp_path, "dog_train").records] == ["a", "c c", "d 1"]


def test_lists_from_other_systems_are_read(tmp_path):
    write(tmp_path, {"a": xml(DOG), "b": xml(DOG)})
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbfb\r\n\r\n  a  \r\n")
    assert [r.path.stem for r in read_voc(tmp_path, "train").records] == ["b", "a"]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], r"train\.txt: lists no images"),
        (["", " "], "lists no images"),
        (["a", "b", "a"], r"1 image ids are listed more than once \('a'\)"),
        (["a", "c"], r"lacks 1 annotation file .*\('c.xml'\)"),
        (["a 2"], r"line 1: 'a 2' must be an image id, or an id and -1, 0 or 1"),
        (["a", "../a"], r"line 2: file name '../a' must be relative"),
        (["/etc/a"], "line 1: file name '/etc/a'"),
        (["x/a"], "line 1: 'x/a' must be an image id, not a path"),
        (["x\\a"], "line 1: .* must be an image id, not a path"),
        (["a\0"], "line 1: .*control codes"),
    ],
)
def test_faulty_lists_are_refused(tmp_path, lines, match):
    write(tmp_path, {"a": xml(DOG), "b": xml(DOG)}, {"train": lines})
    with pytest.raises(DataError, match=match):
        read_voc(tmp_path, "train")


def test_list_that_is_no_text_is_refused(tmp_path):
    write(tmp_path, {"a": xml(DOG)})
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"train\.txt: begins as UTF-16 text"):
        read_voc(tmp_path, "train")


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".bmp", ".JPG"])
def test_image_is_found_by_its_id(tmp_path, suffix):
    found = read_voc(write(tmp_path, {"a.b": xml(DOG)}, suffix=suffix), "train")
    assert found.records[0].path.name == f"a.b{suffix}"


def test_two_images_of_one_id_are_refused(tmp_path):
    write(tmp_path, {"a": xml(DOG)})
    (tmp_path / "JPEGImages/a.JPG").write_bytes(b"")
    with pytest.raises(DataError, match=r"JPEGImages: a\.JPG and a\.png are images of one name"):
        read_voc(tmp_path, "train")


def test_missing_image_is_named(tmp_path):
    write(tmp_path, {"a": xml(DOG), "b": xml(DOG)})
    (tmp_path / "JPEGImages/b.png").rename(tmp_path / "JPEGImages/b.txt")
    with pytest.raises(DataError, match=r"JPEGImages: lacks 1 image .*\('b', with any of"):
        read_voc(tmp_path, "train")


# --- classes -------------------------------------------------------------------------------------


def test_official_classes_keep_their_order(tmp_path):
    found = read_voc(write(tmp_path, {"a": xml(DOG)}), "train")
    assert found.categories.names == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert found.categories.ids == tuple(range(1, 21))
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)  # alphabetic in the development kit too


def test_other_classes_are_those_of_all_splits(tmp_path):
    files = {"a": xml({**DOG, "name": "zebra"}), "b": xml(DOG), "c": xml({**DOG, "name": "Ant"})}
    write(tmp_path, files, {"train": ["a"], "val": ["b"]})
    for split in ("train", "val"):
        assert read_voc(tmp_path, split).categories.names == ("Ant", "dog", "zebra")


def test_given_classes_set_the_order(tmp_path):
    found = read_voc(write(tmp_path, {"a": xml(DOG)}), "train", classes=["fish", "dog"])
    assert found.categories.names == ("fish", "dog") and found.records[0].labels.tolist() == [2]
    assert found.records[0].annotations[0]["category_id"] == 2


def test_unknown_class_is_refused_with_the_nearest(tmp_path):
    write(tmp_path, {"a": xml({**DOG, "name": "cat"}, DOG)})
    with pytest.raises(DataError, match=r"a\.xml: object 2: class 'dog' .*did you mean 'dogs'\?"):
        read_voc(tmp_path, "train", classes=["cat", "dogs"])


def test_development_kit_is_not_searched_for_classes(tmp_path, monkeypatch):
    lists = {f"{name}_train": ["a 1"] for name in VOC_CLASSES}
    write(tmp_path, {"a": xml(DOG), "b": "not XML"}, {"train": ["a"], **lists})
    assert read_voc(tmp_path, "train").categories.names == VOC_CLASSES
    write(tmp_path, {"a": xml({**DOG, "name": "dgo"})}, {"train": ["a"]})
    with pytest.raises(DataError, match=r"class 'dgo' .*did you mean 'dog'"):
        read_voc(tmp_path, "train")


def test_data_without_any_object_needs_classes(tmp_path):
    write(tmp_path, {"a": xml()})
    with pytest.raises(DataError, match="no object in 1 file; give `classes`"):
        read_voc(tmp_path, "train")
    assert read_voc(tmp_path, "train", classes=["dog"]).categories.names == ("dog",)


# --- boxes and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corners", "what"),
    [
        ((5, 5, 5, 5), r"no area \(width 0, height 0\)"),
        ((5, 5, 5, 9), r"no area \(width 0, height 4\)"),
        ((9, 5, 5, 9), r"no area \(width -4, height 4\)"),
        ((41, 5, 50, 9), "lies outside the image of 40x30"),
        ((-9, 5, 0, 9), "lies outside"),
        ((1, 1, 1e-9, 9), "no area"),
        ((1, 1, 1 + 1e-9, 9), None),
    ],
)
def test_unusable_box_is_left_out_of_training_alone(tmp_path, corners, what):
    faulty = {"name": "cat", **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))}
    found = read_voc(write(tmp_path, {"a": xml(faulty, DOG)}), "train")
    record = found.records[0]
    assert len(record.annotations) == 2
    if what is None:
        assert len(record.boxes) == 2 and not found.problems
        return
    assert record.boxes.tolist() == [[2, 4, 20, 25]]
    assert record.labels.tolist() == [12] and len(record.difficult) == 1
    (problem,) = found.problems
    assert problem.file.endswith("a.xml") and problem.item == "object 1 ('cat')"
    assert re.search(what, problem.what) and "still counted in evaluation" in problem.action
    with pytest.raises(DataError, match=what):
        read_voc(tmp_path, "train", strict=True)


def test_one_pixel_box_counts_as_one_pixel_in_evaluation(tmp_path):
    record = one(tmp_path, {**DOG, "xmax": 3, "ymax": 5})
    assert len(record.boxes) == 0
    assert record.annotations[0]["bbox"] == [2, 4, 1, 1] and record.annotations[0]["area"] == 1


def test_boxes_counted_from_zero_are_clipped_silently(tmp_path):
    record = one(tmp_path, {**DOG, "xmin": 0, "ymin": 0, "xmax": 41}, strict=True)
    assert record.boxes.tolist() == [[0, 0, 40, 25]]


def test_box_reaching_out_is_clipped_and_reported(tmp_path):
    found = read_voc(write(tmp_path, {"a": xml({**DOG, "xmax": 45})}), "train")
    assert found.records[0].boxes.tolist() == [[2, 4, 40, 25]]
    assert "5 pixels beyond" in found.problems[0].what
    assert found.records[0].annotations[0]["bbox"] == [2, 4, 43, 21]


@pytest.mark.parametrize("size", [None, (0, 0), (40, 30)])
def test_size_may_be_missing_or_zero(tmp_path, size):
    found = read_voc(write(tmp_path, {"a": xml(DOG, size=size)}), "train", strict=True)
    assert (found.records[0].width, found.records[0].height) == (40, 30)


@pytest.mark.parametrize(
    ("size", "cause"), [((80, 60), "looks resized by 0.5"), ((30, 40), "look swapped")]
)
def test_other_size_than_the_image_is_reported(tmp_path, size, cause):
    found = read_voc(write(tmp_path, {"a": xml(DOG, size=size)}), "train")
    (problem,) = found.problems
    sizes = f"a.png: is 40x30 pixels as shown, its annotations say {size[0]}x{size[1]}"
    assert sizes in problem.what and cause in problem.what
    assert (found.records[0].width, found.records[0].height) == (40, 30)
    with pytest.raises(DataError, match="strict reading found 1 fault"):
        read_voc(tmp_path, "train", strict=True)


@pytest.mark.parametrize(("orientation", "promised"), [(1, (80, 60)), (6, (40, 30))])
@pytest.mark.parametrize("wrong", [1, 4])
def test_images_changed_after_they_were_annotated_are_refused(
    tmp_path, orientation, promised, wrong
):
    """Resized, or turned by a tag that the annotator did not see: boxes lie elsewhere."""
    shown = (30, 40) if orientation == 6 else (40, 30)
    sizes = [promised] * wrong + [shown] * (4 - wrong)
    write(tmp_path, {str(n): xml(DOG, size=size) for n, size in enumerate(sizes)})
    tags = Image.Exif()
    tags[0x0112] = orientation
    for n in range(4):
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{n}.png", exif=tags)
    found = read_voc(tmp_path, "train")
    if wrong == 1:
        assert len(found.problems) == 1 and found.records[0].width == shown[0]
        return
    assert found.problems == ()
    cause = "resized by 0.5" if orientation == 1 else "orientation"
    with pytest.raises(DataError, match=rf"{cause}.* \(4 of 4 images looked at differ\)"):
        check_images(found, decode=False)


def test_swapped_sizes_do_not_matter(tmp_path):
    found = read_voc(write(tmp_path, {n: xml(DOG, size=(30, 40)) for n in "abcd"}), "train")
    assert len(found.problems) == 4 and {r.width for r in found.records} == {40}


def test_size_is_that_of_the_image_as_shown(tmp_path):
    write(tmp_path, {"a": xml(DOG, size=(30, 40))})
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages/a.png", exif=tags)
    record = read_voc(tmp_path, "train", strict=True).records[0]
    assert (record.width, record.height) == (30, 40)


# --- faulty and hostile XML ----------------------------------------------------------------------

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]><annotation><object><name>&c;</name>'
    "</object></annotation>"
)
OUTSIDE = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, r"a\.xml: declares XML entities"),
        (OUTSIDE, "declares XML entities"),
        ("", "not valid XML at line 1"),
        ("<annotation>\n  <object>\n</annotation>", "not valid XML at line 3, column 3"),
        ("<html></html>", "outermost element is <html>, not <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid XML"),
        ("<annotation><object/></annotation>", "object 1: has no class <name>"),
        ("<annotation><object><name/></object></annotation>", "object 1: has no class <name>"),
        (
            "<annotation><object><name>x</name></object></annotation>",
            r"object 1 \('x'\): has no <bndbox>",
        ),
        (xml(DOG, {**DOG, "ymax": None}), r"object 2 \('dog'\): <bndbox> has no <ymax>"),
        (xml({**DOG, "xmin": "abc"}), "<xmin> must be a number of pixels, not 'abc'"),
        (xml({**DOG, "xmin": ""}), "<xmin> must be a number of pixels, not ''"),
        (xml({**DOG, "xmin": "nan"}), "<xmin> must be a number of pixels, not 'nan'"),
        (xml({**DOG, "xmax": "inf"}), "<xmax> must be a number of pixels, not 'inf'"),
        (xml({**DOG, "xmax": "1e300"}), "<xmax> must be a number of pixels"),
        (xml({**DOG, "difficult": 2}), "<difficult> must be 0 or 1, not '2'"),
        (xml({**DOG, "truncated": "no"}), "<truncated> must be 0 or 1, not 'no'"),
        (xml(DOG, size=(-1, 30)), "size must be whole numbers of pixels, not -1x30"),
        (xml(DOG, size=("x", 30)), "size: <width> must be a number of pixels"),
        (xml(DOG, size=(40.5, 30)), "size must be whole numbers of pixels, not 40.5x30"),
        ("<annotation><size><width>4</width></size></annotation>", "<size> has no <height>"),
    ],
)
@pytest.mark.parametrize("classes", [None, ["dog"]])
def test_faulty_file_is_named(tmp_path, text, match, classes):
    with pytest.raises(DataError, match=match) as caught:
        read_voc(write(tmp_path, {"a": text}), "train", classes=classes)
    assert "a.xml" in str(caught.value)


def test_broken_image_is_named(tmp_path):
    write(tmp_path, {"a": xml(DOG)})
    (tmp_path / "JPEGImages/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        read_voc(tmp_path, "train")


def test_progress_bar_changes_nothing(tmp_path, monkeypatch):
    write(tmp_path, {name: xml({**DOG, "name": name}) for name in "abc"})
    expected = read_voc(tmp_path, "train")
    calls = []

    def bar(items, text):
        calls.append(text)
        return items

    monkeypatch.setattr(voc, "track_progress", bar)
    assert read_voc(tmp_path, "train").categories == expected.categories
    assert calls == ["Looking for classes", "Reading train"]


TEXT = st.one_of(
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(
        ["0", "1", "", " 7 ", "dog", "1e999", "-0", "<x/>", "&amp;", "&a;", "<![CDATA[", "]]>"]
    ),
    st.text(max_size=6),
)
FIELDS = ["name", "difficult", "truncated", "xmin", "ymin", "xmax", "ymax"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hostile"), {"a": xml(DOG)})


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), TEXT | st.none(), max_size=3),
    size=st.none() | st.tuples(TEXT, TEXT),
)
def test_any_field_reads_or_is_refused(folder, changes, size):
    text = xml({**DOG, **changes}, DOG, size=size)
    (folder / "Annotations/a.xml").write_text(text, encoding="utf-8", errors="replace")
    try:
        found = read_voc(folder, "train")
    except DataError:
        return
    (record,) = found.records
    x1, y1, x2, y2 = record.boxes.T
    assert np.all((x1 >= 0) & (x1 < x2) & (x2 <= 40) & (y1 >= 0) & (y1 < y2) & (y2 <= 30))
    assert len(record.annotations) == 2
    json.dumps(found.ground_truth(), allow_nan=False)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60))
def test_any_bytes_are_refused(folder, data):
    (folder / "Annotations/a.xml").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.xml"):
        read_voc(folder, "train", classes=["dog"])
