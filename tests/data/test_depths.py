"""Gray and color of more than 8 bits, as tifffile writes them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import convert_picture, read_image

VALUES = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)


def write(path, values, **tags):
    tifffile.imwrite(path, values, metadata=None, **tags)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", [8, 16])
def test_planes_that_lie_apart_are_the_same_image(depth, compression, order, tmp_path):
    values = VALUES if depth == 16 else (VALUES >> 8).astype(np.uint8)
    options = {"photometric": "rgb", "compression": compression, "byteorder": order}
    apart = write(
        tmp_path / "apart.tif", values.transpose(2, 0, 1), planarconfig="separate", **options
    )
    together = write(tmp_path / "together.tif", values, planarconfig="contig", **options)
    np.testing.assert_array_equal(read_image(apart), VALUES >> 8)
    np.testing.assert_array_equal(read_image(apart), read_image(together))


def test_planes_in_strips_are_read_whole(tmp_path):
    path = tmp_path / "a.tif"
    write(
        path, VALUES.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", rowsperstrip=7
    )
    np.testing.assert_array_equal(read_image(path), VALUES >> 8)


def test_16_bit_gray_whose_zero_is_white_is_turned(tmp_path):
    gray = VALUES[..., 0]
    black = read_image(write(tmp_path / "a.tif", gray, photometric="minisblack"))
    white = read_image(write(tmp_path / "b.tif", 65535 - gray, photometric="miniswhite"))
    np.testing.assert_array_equal(black, white)


def test_float_gray_from_0_to_1_is_read(tmp_path):
    gray = np.linspace(0, 0.8, 600, dtype=np.float32).reshape(20, 30)
    pixels = read_image(write(tmp_path / "a.tif", gray))
    np.testing.assert_array_equal(pixels[..., 1], (gray * 255 + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(pixels, convert_picture(Image.fromarray(gray)))


def test_float_gray_has_the_range_of_its_tags(tmp_path, monkeypatch):
    gray = np.array([[-10, 0, 10, 30]], np.float32)
    tags = [(340, "f", 1, -10.0, True), (341, "f", 1, 30.0, True)]
    path = write(tmp_path / "a.tif", gray, extratags=tags)
    assert read_image(path)[0, :, 0].tolist() == [0, 64, 128, 255]
    # The range is the whole image's, however many rows are converted at a time.
    monkeypatch.setattr("densenet_backbones.data.images.PIXELS_AT_ONCE", 1)
    tall = write(tmp_path / "b.tif", gray.T, extratags=tags)
    assert read_image(tall)[:, 0, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("values", [[-0.1, 0.5], [0, 2.5], [0, np.nan], [0, np.inf]])
def test_float_gray_of_no_known_range_is_refused(values, tmp_path):
    path = write(tmp_path / "a.tif", np.array([values], np.float32))
    with pytest.raises(DataError, match=r"a\.tif: 32-bit float pixels from .* scale them to 0 to"):
        read_image(path)


@pytest.mark.parametrize("values", [VALUES.astype(np.float32), VALUES[..., 0].astype(np.float64)])
def test_other_kinds_of_tiff_are_named(values, tmp_path):
    path = write(tmp_path / "a.tif", values, photometric="rgb" if values.ndim == 3 else None)
    with pytest.raises(DataError, match=r"a\.tif: .*\(its kind of TIFF is not decoded.*save it as"):
        read_image(path)
