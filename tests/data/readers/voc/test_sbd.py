"""SBD: masks in MATLAB files, which may be hostile."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_sets import masks, some_masks, write_mat, write_sbd
from scipy.io import savemat

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.voc.masks import VOC_MASK_CLASSES
from densenet_backbones.data.readers.voc.sbd import read_mat_mask, read_sbd_masks


@pytest.fixture
def found():
    return {name: np.where(mask == 255, 20, mask) for name, mask in some_masks().items()}


@pytest.mark.parametrize("below", ["", "dataset"])
def test_one_split_is_read(tmp_path, found, below):
    write_sbd(tmp_path, found)
    data = read_sbd_masks(tmp_path / below, "train")
    assert data.classes == VOC_MASK_CLASSES and data.name == "SBD/train"
    assert [r.name for r in data.records] == list(found)
    for record, mask in zip(data.records, found.values(), strict=True):
        np.testing.assert_array_equal(record.read_mask(), mask)
        assert record.read_mask().dtype == np.uint8
    reordered = read_sbd_masks(tmp_path, "train", classes=VOC_MASK_CLASSES.names[::-1])
    np.testing.assert_array_equal(reordered.records[0].read_mask(), 20 - found["im0"])


@settings(max_examples=20)
@given(mask=masks(21, ignored=False), compress=st.booleans(), kind=st.sampled_from("BHd"))
def test_any_form_of_matrix_gives_the_mask(tmp_path_factory, mask, compress, kind):
    path = tmp_path_factory.getbasetemp() / "form.mat"
    content = {"GTcls": {"Segmentation": mask.astype(kind)}, "other": np.zeros(3)}
    savemat(path, content, do_compression=compress)
    np.testing.assert_array_equal(read_mat_mask(path), mask)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a MATLAB file of version 5"),
        (b"MATLAB 5.0 MAT-file", "GTcls.Segmentation cannot be read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "is not a MATLAB file of version 5"),
        (bytes(2 << 20), "has more than 1048576 bytes"),
        ({"GT": np.zeros((2, 2))}, r"cannot be read \(KeyError: 'GTcls'\)"),
        ({"GTcls": np.zeros((2, 2))}, "cannot be read"),
        ({"GTcls": {"Segmentation": "text"}}, "no matrix of numbers"),
        ({"GTcls": {"Segmentation": np.zeros((2, 2, 2))}}, "no matrix of numbers"),
        ({"GTcls": {"Segmentation": np.full((2, 2), 0.5)}}, "numbers that are not whole"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_mat_mask(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    packed = zlib.compress(bytes(80 << 20), 1)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(DataError, match="unpacks to more than 16777216 bytes"):
        read_mat_mask(tmp_path / "a.mat")


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_damage_is_an_error_or_harmless(tmp_path_factory, seed, compress):
    """Bytes of a good file changed or cut: never another exception than ours."""
    rng = np.random.default_rng(seed)
    whole = io.BytesIO()
    savemat(whole, {"GTcls": {"Segmentation": np.eye(6, dtype=np.uint8)}}, do_compression=compress)
    content = bytearray(whole.getvalue())
    for place in rng.integers(128, len(content), 4):
        content[place] = rng.integers(0, 256)
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    path.write_bytes(bytes(content[: rng.integers(100, len(content) + 1)]))
    with contextlib.suppress(DataError):
        assert read_mat_mask(path).ndim == 2


def test_unknown_ids_and_missing_files_are_named(tmp_path, found):
    write_sbd(tmp_path, found)
    write_mat(tmp_path / "dataset/cls/im0.mat", np.full((6, 9), 21, np.uint8))
    record = read_sbd_masks(tmp_path, "train").records[0]
    with pytest.raises(DataError, match=r"im0\.mat: has 1 id .*: 21 \(54 pixels\); known are 0 to"):
        record.read_mask()
    write_mat(tmp_path / "dataset/cls/im0.mat", np.zeros((9, 6), np.uint8))
    with pytest.raises(
        DataError, match=r"im0\.mat: the mask is 6x9 pixels, its image im0\.jpg 9x6"
    ):
        record.read_mask()
    (tmp_path / "dataset/cls/im1.mat").unlink()
    with pytest.raises(DataError, match=r"lacks 1 mask .*\('im1', with any of \.mat\)"):
        read_sbd_masks(tmp_path, "train")
    write_sbd(tmp_path, found)
    (tmp_path / "dataset/img/im1.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 image .*\('im1'"):
        read_sbd_masks(tmp_path, "train")
    with pytest.raises(DataError, match=r"has no val\.txt"):
        read_sbd_masks(tmp_path, "val")
    with pytest.raises(DataError, match="not SBD's layout"):
        read_sbd_masks(tmp_path / "dataset/img", "train")


@pytest.mark.parametrize("place", [0, 16])
@pytest.mark.parametrize("compress", [False, True])
def test_codes_beyond_scipys_tables_never_reach_it(tmp_path, place, compress, monkeypatch):
    """A type (at the tag's start) or a class of 255, which SciPy looks up in tables of twenty."""
    whole = io.BytesIO()
    savemat(whole, {"GTcls": {"Segmentation": np.eye(6, dtype=np.uint8)}})
    content = bytearray(whole.getvalue())
    content[128 + place] = 255
    if compress:
        packed = zlib.compress(bytes(content[128:]))
        content[128:] = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "a.mat").write_bytes(content)
    monkeypatch.setattr("scipy.io.loadmat", lambda *args, **options: pytest.fail("was read"))
    with pytest.raises(DataError, match=r"a\.mat: is damaged at byte 0"):
        read_mat_mask(tmp_path / "a.mat")
