"""Pictures of ids and colors to labels, and what cannot be one."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import COLORS, NAMES, VOID, colored, masks, write_mask
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import IGNORED, MaskClasses
from densenet_backbones.data.masks.code import (
    MaskCode,
    ValueMap,
    pack_color,
    pack_colors,
    unpack_color,
)

CLASSES = MaskClasses.from_names(NAMES, colors=COLORS)
IDS = MaskCode.from_classes(CLASSES)
BY_COLOR = MaskCode.from_classes(CLASSES, ids=False, colors=True, ignored_colors=[VOID])
EITHER = MaskCode.from_classes(CLASSES, colors=True, ignored_colors=[VOID])


@given(st.integers(0, (1 << 24) - 1))
def test_a_color_is_a_number(value):
    color = unpack_color(value)
    assert pack_color(color) == value
    assert pack_colors(np.array([[color]], np.uint8)).tolist() == [[value]]


@settings(max_examples=60)
@given(masks(), st.data())
def test_any_values_become_labels(mask, data):
    """In 8 bits through a table, in more by search."""
    size = data.draw(st.sampled_from([256, 65536, 1 << 24]))
    values = data.draw(st.lists(st.integers(0, size - 1), min_size=4, max_size=4, unique=True))
    known = ValueMap(tuple(values), (0, 1, 2, IGNORED))
    table = np.zeros(256, np.int64)
    table[[0, 1, 2, 255]] = values
    dtype = {256: np.uint8, 65536: np.uint16, 1 << 24: np.int32}[size]
    labels = known.to_labels(table[mask].astype(dtype), "m.png", "fix it")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@settings(max_examples=40)
@given(
    mask=masks(),
    form=st.sampled_from(["P png", "L png", "P bmp", "L tif", "RGB png", "RGBA png"]),
)
def test_pictures_give_back_the_mask(folder, mask, form):
    mode, suffix = form.split()
    path = folder / f"mask.{suffix}"
    if mode.startswith("RGB"):
        Image.fromarray(colored(mask)).convert(mode).save(path)
        np.testing.assert_array_equal(BY_COLOR.read(path), mask)
    else:
        write_mask(path, mask, mode)
        np.testing.assert_array_equal(IDS.read(path), mask)
    np.testing.assert_array_equal(EITHER.read(path), mask)


def test_the_colors_of_a_palette_are_colors(tmp_path):
    mask = np.array([[0, 1, 2]], np.uint8)
    picture = Image.fromarray(2 - mask)
    picture.putpalette([c for color in COLORS[::-1] for c in color])
    picture.save(tmp_path / "m.png")
    assert BY_COLOR.read(tmp_path / "m.png").tolist() == [[0, 1, 2]]
    assert IDS.read(tmp_path / "m.png").tolist() == [[2, 1, 0]]


def write_gray(path, rows, bits):
    """A gray PNG of 1, 2 or 4 bits, which Pillow cannot write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packed_rows = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        packed_rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(packed_rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("bits", "largest"), [(1, 1), (2, 2), (4, 2)])
def test_ids_of_few_bits_stay_what_they_are(tmp_path, bits, largest):
    rows = [[0, 1, largest], [largest, 0, 1]]
    write_gray(tmp_path / "m.png", rows, bits)
    assert IDS.read(tmp_path / "m.png").tolist() == rows


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_ids_of_16_bits_and_more_out_of_range_are_listed(tmp_path, dtype):
    values = np.array([[0, 1, 2, 255, 3, 3, 40_000]], dtype)
    path = tmp_path / ("m.png" if dtype == np.uint16 else "m.tif")
    write_mask(path, values, "L")
    with pytest.raises(DataError) as caught:
        IDS.read(path)
    message = str(caught.value)
    assert "has 2 ids that no class has: 3 (2 pixels), 40000 (1 pixel); known are 0 to 2" in message
    assert message.startswith(f"{path}: ") and "ignored, 255; correct the mask" in message


def test_many_unknown_ids_are_shortened_the_commonest_first(tmp_path):
    values = np.repeat(np.arange(3, 23, dtype=np.uint8), np.arange(1, 21))[None]
    write_mask(tmp_path / "m.png", values)
    with pytest.raises(DataError, match=r"20 ids .*: 22 \(20 pixels\), 21 \(19 .* and 12 more;"):
        IDS.read(tmp_path / "m.png")


def test_unknown_colors_are_listed(tmp_path):
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"has 1 color .*: rgb\(1, 2, 3\) \(2 pixels\); known are"):
        BY_COLOR.read(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("picture", "code", "message"),
    [
        (
            Image.new("RGB", (2, 2), (1, 2, 3)),
            IDS,
            "is an RGB picture, but class ids are expected;",
        ),
        (Image.new("RGB", (2, 2)), IDS, r"its three channels are equal: save one of them"),
        (Image.new("L", (2, 2)), BY_COLOR, "has one channel of numbers, but colors are expected"),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 9)), BY_COLOR, r"transparent pixels .*'RGBA'"),
        (Image.new("LA", (2, 2)), IDS, r"transparent pixels .*'LA'"),
    ],
)
def test_pictures_of_the_other_kind_are_refused(tmp_path, picture, code, message):
    picture.save(tmp_path / "m.png")
    with pytest.raises(DataError, match=message) as caught:
        code.read(tmp_path / "m.png")
    assert str(caught.value).startswith(str(tmp_path / "m.png"))


def test_jpeg_is_refused_whatever_its_name(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(DataError, match="JPEG changes the values of a mask; save it as PNG"):
        IDS.read(tmp_path / "m.png")


@pytest.mark.parametrize("damage", [lambda b: b[:60], lambda b: b"", lambda b: b[:8] + b[20:]])
def test_damaged_pictures_are_named(tmp_path, damage):
    rng = np.random.default_rng(0)
    write_mask(tmp_path / "m.png", rng.integers(0, 3, (40, 40), np.uint8))
    (tmp_path / "m.png").write_bytes(damage((tmp_path / "m.png").read_bytes()))
    with pytest.raises(DataError, match=r"m\.png: cannot be read as an image"):
        IDS.read(tmp_path / "m.png")


def test_one_value_means_one_thing():
    with pytest.raises(DataError, match="the id 1 stands for two things"):
        MaskCode.from_classes(CLASSES, ignored_ids=[1])
    same = MaskClasses.from_names(["a", "b"], colors=[(1, 1, 1), (1, 1, 1)])
    with pytest.raises(DataError, match=r"the color rgb\(1, 1, 1\) stands for two things"):
        MaskCode.from_classes(same, ids=False, colors=True)
    with pytest.raises(DataError, match="the id -1 of a class cannot be in a mask"):
        MaskCode.from_classes(MaskClasses.from_names(["a"], [-1]))


def test_the_rule_changes_with_the_meaning_only():
    assert IDS.rule == MaskCode.from_classes(CLASSES, fix="other words").rule
    assert IDS.rule != MaskCode.from_classes(CLASSES, ignored_ids=[9]).rule
    assert len({IDS.rule, BY_COLOR.rule, EITHER.rule}) == 3
