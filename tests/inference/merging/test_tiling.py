"""Images predicted by tiles against images predicted as a whole."""

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.inference.inputs import image_windows
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.merging.tiling import Tiling, blend_tiles
from densenet_backbones.untrusted.limits import MAX_PIXELS


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(image, scores_of, tiling):
    """All rows that `blend_tiles` yields, checked to follow each other."""
    windows = ImageWindows(image)
    rows = []
    for top, scores in blend_tiles(windows.read, windows.size, scores_of, tiling):
        assert top == sum(part.shape[1] for part in rows)
        rows.append(scores)
    return torch.cat(rows, 1)


@given(st.integers(1, 90), st.integers(2, 40), st.integers(0, 20), st.integers(0, 10))
@settings(max_examples=200)
def test_weights_of_all_tiles_add_up_to_one(length, tile, overlap, margin):
    if 2 * overlap > tile or 2 * margin > overlap:
        with pytest.raises(ValueError, match=r"must lie in \[0, "):
            Tiling(tile, overlap, margin)
        return
    tiling = Tiling(tile, overlap, margin)
    total = torch.zeros(length)
    for span in tiling.split(length):
        assert span[1] - span[0] <= tile
        total[span[0] : span[1]] += tiling.compute_weights(span, length)
    torch.testing.assert_close(total, torch.ones(length))


def test_tiles_begin_at_multiples_of_the_stride():
    tiling = Tiling(100, 20, stride=32)
    assert (tiling.tile, tiling.overlap) == (128, 32)
    assert tiling.split(300) == [(0, 128), (96, 224), (192, 300)]
    assert Tiling(256, stride=32).overlap == 64


def test_blending_keeps_what_all_tiles_agree_on():
    image = noise(70, 53)
    found = whole(image, lambda w: torch.from_numpy(w).permute(2, 0, 1), Tiling(32, 12, 2))
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("margin", "largest"), [(8, 1e-5), (0, None)])
def test_with_a_margin_of_the_receptive_field_tiles_equal_the_whole(margin, largest):
    """Four 3x3 convolutions and a pooling see 8 pixels away; tiles that overlap less differ."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, padding=1), nn.Upsample(scale_factor=2)),
    ).eval()

    @torch.no_grad()
    def scores_of(window):
        return net(torch.from_numpy(window).permute(2, 0, 1).float()[None] / 255)[0]

    image = noise(94, 130)
    difference = (
        whole(image, scores_of, Tiling(48, 2 * margin or 8, margin, stride=2)) - scores_of(image)
    ).abs()
    if largest is not None:
        assert float(difference.max()) < largest
    else:  # the seams: beside them, and nowhere else, tiles see less than the whole
        assert float(difference.max()) > 1e-3
        assert float(difference[:, 8:32, 8:32].max()) < 1e-5


# -- reading parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "in_parts"),
    [
        ("a.tif", {}, True),
        ("strips.tif", {"strip_size": 53 * 3 * 7}, True),
        ("a.ppm", {}, True),
        ("packed.tif", {"compression": "tiff_lzw"}, False),
        ("a.png", {}, False),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_windows_are_parts_of_the_image(name, options, in_parts, mode, tmp_path):
    Image.fromarray(noise(70, 53)).convert(mode).save(tmp_path / name, **options)
    source = ImageWindows(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (source.size, source.in_parts) == ((70, 53), in_parts)
    for window in ((0, 0, 70, 53), (3, 5, 21, 40), (69, 52, 70, 53), (0, 10, 70, 11)):
        top, left, bottom, right = window
        assert np.array_equal(source.read(window), image[top:bottom, left:right])
    assert np.array_equal(source.subsample(4), image[::4, ::4])


@pytest.mark.parametrize("bands", ["RGB", "gray", "inverted", "RGB and alpha"])
@pytest.mark.parametrize("layout", [{"tile": (64, 48)}, {"rowsperstrip": 7}])
def test_tiles_and_strips_of_tiff_files(layout, bands, tmp_path):
    """Files of tens of megabytes and more are often written in tiles, and past 4 GB as BigTIFF."""
    pixels = np.concatenate([noise(150, 203), noise(150, 203, seed=1)[..., :1]], axis=2)
    pixels, options = {
        "RGB": (pixels[..., :3], {"photometric": "rgb", "bigtiff": True}),
        "gray": (pixels[..., 0], {"photometric": "minisblack", "byteorder": ">"}),
        "inverted": (pixels[..., 0], {"photometric": "miniswhite"}),
        "RGB and alpha": (pixels, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    }[bands]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **layout, **options)
    source = ImageWindows(tmp_path / "a.tif")
    assert source.in_parts
    whole = read_image(tmp_path / "a.tif")
    assert np.array_equal(source.read((3, 5, 140, 200)), whole[3:140, 5:200])


TAGS = [(340, "f", 1, -10.0, True), (341, "f", 1, 30.0, True)]  # SMinSampleValue, SMaxSampleValue
TIFF_KINDS = {
    "RGB": (3, np.uint8, {"photometric": "rgb"}),
    "RGB of 16 bits": (3, np.uint16, {"photometric": "rgb"}),
    "RGB in planes": (3, np.uint8, {"photometric": "rgb", "planarconfig": "separate"}),
    "RGB of 16 bits in planes": (3, np.uint16, {"photometric": "rgb", "planarconfig": "separate"}),
    "RGB and alpha": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "RGB and another": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "RGB and alpha of 16 bits": (
        *(4, np.uint16),
        {"photometric": "rgb", "extrasamples": ["unassalpha"]},
    ),
    "premultiplied": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "gray": (1, np.uint8, {"photometric": "minisblack"}),
    "gray, white is 0": (1, np.uint8, {"photometric": "miniswhite"}),
    "gray of 16 bits": (1, np.uint16, {"photometric": "minisblack"}),
    "gray of 16 bits, white is 0": (1, np.uint16, {"photometric": "miniswhite"}),
    "float gray": (1, np.float32, {"photometric": "minisblack"}),
    "float gray with a range": (1, np.float32, {"photometric": "minisblack", "extratags": TAGS}),
    "palette": (
        *(1, np.uint8),
        {
            "photometric": "palette",
            "colormap": np.arange(768, dtype=np.uint16).reshape(3, 256) * 85,
        },
    ),
}
DECODED_AT_ONCE = ("premultiplied", "palette")


@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_windows_of_every_kind_of_tiff_are_those_of_the_whole(kind, tmp_path, monkeypatch):
    """In either order of bytes, in tiles and strips; compressed once they are too large."""
    bands, dtype, options = TIFF_KINDS[kind]
    values = np.random.default_rng(0).integers(0, 65536, (50, 67, bands)).astype(np.uint16)
    if dtype is np.float32:
        values = values / np.float32(65535) * (40 if "range" in kind else 1)
        values -= np.float32(10 if "range" in kind else 0)
    values = (values >> 8 if dtype is np.uint8 else values).astype(dtype)
    if options.get("planarconfig"):
        values = values.transpose(2, 0, 1)
    path = tmp_path / "a.tif"
    for order, layout, compression in (
        *(("<", {"tile": (32, 16)}, None), (">", {"rowsperstrip": 7}, None)),
        *((">", {"tile": (32, 16)}, "zlib"), ("<", {"rowsperstrip": 7}, "zlib")),
    ):
        if kind == "gray of 16 bits, white is 0":
            order = "<"  # Pillow reads no other
        more = {"byteorder": order, "compression": compression, **layout, **options}
        tifffile.imwrite(path, np.squeeze(values), metadata=None, **more)
        expected = read_image(path)
        with monkeypatch.context() as patch:
            patch.setattr(image_windows, "MAX_PIXELS", 1 if compression else MAX_PIXELS)
            if compression and (kind in DECODED_AT_ONCE or dtype is np.float32):
                with pytest.raises(DataError, match="too many to decode at once"):
                    ImageWindows(path)
                continue
            source = ImageWindows(path)
        assert source.in_parts == (kind not in DECODED_AT_ONCE)
        for window in ((0, 0, 50, 67), (5, 17, 33, 60), (49, 66, 50, 67)):
            top, left, bottom, right = window
            np.testing.assert_array_equal(source.read(window), expected[top:bottom, left:right])


@pytest.mark.parametrize("values", [[0.5, 7], [0, np.nan]])
def test_windows_of_float_gray_of_no_known_range_are_refused(values, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([values], np.float32))
    for read in (read_image, ImageWindows):
        with pytest.raises(DataError, match=r"a\.tif: 32-bit float pixels from .* scale them"):
            read(tmp_path / "a.tif")


def test_images_too_large_to_decode_are_read_in_parts_or_refused(tmp_path, monkeypatch):
    assert MAX_PIXELS > 50 * 60
    monkeypatch.setattr(image_windows, "MAX_PIXELS", 50 * 60 - 1)
    for name in ("a.tif", "a.png"):
        Image.fromarray(noise(50, 60)).save(tmp_path / name)
    assert ImageWindows(tmp_path / "a.tif").in_parts
    with pytest.raises(DataError, match=r"a\.png: 60x50 pixels are too many .*uncompressed TIFF"):
        ImageWindows(tmp_path / "a.png")


def test_a_picture_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.tif", exif=exif)
    source = ImageWindows(tmp_path / "a.tif")
    assert source.size == (30, 20) and not source.in_parts
    assert np.array_equal(source.read((0, 0, 30, 20)), read_image(tmp_path / "a.tif"))


def test_damaged_files_are_named(tmp_path):
    Image.fromarray(noise(50, 60)).save(tmp_path / "a.ppm")
    content = (tmp_path / "a.ppm").read_bytes()
    (tmp_path / "a.ppm").write_bytes(content[:-100])
    (tmp_path / "b.tif").write_text("no image")
    for name, message in (("a.ppm", "is truncated"), ("b.tif", "cannot be read"), ("c", "no such")):
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            ImageWindows(tmp_path / name)
