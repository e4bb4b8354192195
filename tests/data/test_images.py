"""Image files of every kind come out upright, RGB and 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from fuzzed_pictures import HEIC
from PIL import EpsImagePlugin, Image

from densenet_backbones.data import images
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image, read_image_size, read_reduced_image

UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
# What a camera that was held so stores of the upright scene: EXIF 2.3, section 4.6.4.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"image.{suffix}"
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    picture.save(path, exif=exif(orientation), **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), UPRIGHT)
    assert read_image_size(path) == (10, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_after_decoding(tmp_path, orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    plain, turned = io.BytesIO(), tmp_path / "turned.jpg"
    stored.save(plain, "JPEG", quality=95)
    stored.save(turned, "JPEG", quality=95, exif=exif(orientation))
    decoded = np.asarray(Image.open(plain))
    undo = {1: 0, 3: 2, 6: -1, 8: 1}
    if orientation in undo:
        np.testing.assert_array_equal(read_image(turned), np.rot90(decoded, undo[orientation]))
    assert read_image(turned).shape == (6, 10, 3)
    assert read_image_size(turned) == (10, 6)


def test_orientation_variants_of_a_photograph_agree(shared_data):
    folder = shared_data / "exif_orientation"
    pictures = [read_image(folder / f"Landscape_{n}.jpg") for n in range(1, 9)]
    assert {p.shape for p in pictures} == {(1200, 1800, 3)}
    assert {read_image_size(folder / f"Landscape_{n}.jpg") for n in range(1, 9)} == {(1800, 1200)}
    for number, picture in enumerate(pictures[1:], start=2):
        stored = np.asarray(Image.open(folder / f"Landscape_{number}.jpg"))
        back = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]}
        back |= {5: stored.transpose(1, 0, 2), 6: np.rot90(stored, -1), 8: np.rot90(stored, 1)}
        back |= {7: stored[::-1, ::-1].transpose(1, 0, 2)}
        np.testing.assert_array_equal(picture, back[number])
        # Each was compressed by itself, so across the files the scene is only nearly the same.
        assert np.abs(picture.astype(int) - pictures[0]).mean() < 12


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientations_that_do_not_exist_are_ignored(tmp_path, orientation):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif(orientation))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), UPRIGHT)
    assert read_image_size(tmp_path / "a.png") == (10, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), UPRIGHT)
    assert read_image_size(tmp_path / "a.png") == (10, 6)


def test_result_is_contiguous_and_writable(tmp_path):
    Image.fromarray(STORED[6]).save(tmp_path / "a.png", exif=exif(6))
    image = read_image(str(tmp_path / "a.png"))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    image[0, 0] = 0


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_gray_is_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65535, 65406, 65407]], dtype=np.uint16)
    if suffix == "pgm":  # which older releases of Pillow read, but do not write
        (tmp_path / "a.pgm").write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = np.array([[0, 0, 1, 1], [128, 255, 254, 255]])  # round(value / 257)
    image = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_rgb_is_scaled(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 65535, 32896, 257, 514, 65278) for _ in range(2))
    (tmp_path / "a.png").write_bytes(png(2, 2, bit_depth=16, color_type=2, rows=rows))
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image[0], [[0, 255, 128], [1, 2, 254]])


def png(width, height, *, bit_depth, color_type, rows, before=b""):
    """A PNG file by hand, for what Pillow does not write."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_gray_and_palette_become_rgb(tmp_path, mode):
    picture = Image.fromarray(UPRIGHT).convert(mode)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png"), np.asarray(picture.convert("RGB"))
    )


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff")[0, 0].tolist() == [255, 0, 0]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg")[8, 8].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("mode", "clear", "solid", "color"),
    [
        ("RGBA", (10, 20, 30, 0), (10, 20, 30, 255), [10, 20, 30]),
        ("LA", (10, 0), (10, 255), [10, 10, 10]),
    ],
)
def test_transparency_is_laid_on_white(tmp_path, mode, clear, solid, color):
    picture = Image.new(mode, (4, 1), clear)
    picture.putpixel((1, 0), solid)
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :2].tolist() == [[255, 255, 255], color]


def test_half_transparency_is_half_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 100, 200, 128)).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png")[0, 0].astype(int) - [127, 177, 227]).max() <= 1


def test_transparent_palette_entry_is_white(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([1, 2, 3, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_animation_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_32_bit_integers_outside_16_bits_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff.*outside 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_missing_file_and_folder_are_named(tmp_path):
    for function in (read_image, read_image_size):
        with pytest.raises(DataError, match=r"nowhere\.jpg: there is no such image file"):
            function(tmp_path / "nowhere.jpg")
        with pytest.raises(DataError, match="cannot be read as an image"):
            function(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]
)
def test_files_that_are_no_images_are_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    for function in (read_image, read_image_size):
        with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image"):
            function(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix}: cannot be read as an image"):
        read_image(path)


def test_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(60000, 60000, bit_depth=8, color_type=2, rows=b"\0" * 100))
    for function in (read_image, read_image_size):
        with pytest.raises(DataError, match=r"a\.png: has more than the 89478485 pixels"):
            function(tmp_path / "a.png")
    Image.fromarray(UPRIGHT).save(tmp_path / "small.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 59)
    with pytest.raises(DataError, match="10x6 pixels, more than the 59 pixels"):
        read_image_size(tmp_path / "small.png")


def test_size_needs_the_header_only(tmp_path):
    Image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif(6))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:700])
    assert read_image_size(tmp_path / "a.jpg") == (300, 200)


def test_sizes_agree_with_pixels(tmp_path):
    for number, size in enumerate([(1, 1), (3, 7), (7, 3)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.bmp")
        height, width = read_image(tmp_path / f"{number}.bmp").shape[:2]
        assert read_image_size(tmp_path / f"{number}.bmp") == (width, height) == size


def smooth_picture(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40 + k) + np.cos(y / 30 - k) for k in range(3)]
    return Image.fromarray((np.stack(waves, 2) * 50 + 128).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_at_a_reduced_size(tmp_path, orientation):
    path = tmp_path / "image.jpg"
    smooth_picture(801, 600).save(path, exif=exif(orientation), quality=95)
    full = read_image(path)
    reduced, factor = read_reduced_image(path, (150, 150))
    assert reduced.shape == ((201, 150, 3) if orientation == 6 else (150, 201, 3))
    assert factor == 4
    assert reduced.flags["C_CONTIGUOUS"] and reduced.flags["WRITEABLE"]
    inside = full[:800, :800].reshape(full.shape[0] // 4, 4, full.shape[1] // 4, 4, 3)
    expected = inside.mean((1, 3))
    assert np.abs(reduced[: expected.shape[0], : expected.shape[1]] - expected).max() <= 4


@pytest.mark.parametrize(
    ("suffix", "at_least"), [("jpg", (301, 100)), ("jpg", (100, 401)), ("png", (10, 10))]
)
def test_no_image_becomes_smaller_than_asked_for(tmp_path, suffix, at_least):
    path = tmp_path / f"image.{suffix}"
    smooth_picture(801, 600).save(path)
    found, factor = read_reduced_image(path, at_least)
    assert factor == 1
    np.testing.assert_array_equal(found, read_image(path))


def test_truncated_files_are_refused_at_a_reduced_size_too(tmp_path):
    path = tmp_path / "image.jpg"
    smooth_picture(801, 600).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_reduced_image(path, (60, 80))


@pytest.mark.parametrize("look", [read_image, read_image_size, read_reduced_image])
def test_no_file_starts_a_program(tmp_path, monkeypatch, look):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: started.append(1))
    path = tmp_path / "a.jpg"
    Image.new("RGB", (9, 9)).save(path, "EPS")
    with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image \(it is none of JPEG"):
        look(path)
    assert not started


def test_photos_of_phones_are_read(tmp_path):
    pytest.importorskip("pi_heif", reason="reads HEIC")
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(HEIC)
    pixels = read_image(path)
    assert pixels.shape == (48, 64, 3) and read_image_size(path) == (64, 48)
    assert np.abs(pixels[:, :30].astype(int) - (200, 40, 30)).max() < 12
    assert np.abs(pixels[:, 34:].astype(int) - (20, 60, 210)).max() < 12
    path.write_bytes(HEIC[:-40])
    with pytest.raises(DataError, match=r"IMG_1\.HEIC: cannot be read as an image"):
        read_image(path)
    # 53 rows of pixels, of which three would lie beyond the picture's edge
    path.write_bytes(HEIC.replace(b"\0\0\x000\0\0\0\x01", b"\0\0\x005\0\0\0\x01"))
    assert read_image_size(path) == (64, 53)
    with pytest.raises(DataError, match=r"IMG_1\.HEIC: .* \(decodes to 64x51, not 64x53\)"):
        read_image(path)


def test_photos_of_phones_say_what_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "list_formats", lambda: images.FORMATS)
    path = tmp_path / "IMG_1.heic"
    path.write_bytes(HEIC)
    with pytest.raises(
        DataError, match=r"IMG_1\.heic: .*densenet-backbones\[heic\].* or export it"
    ):
        read_image(path)


def test_avif_is_read(tmp_path):
    values = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 30, 0).repeat(3, 2)
    Image.fromarray(values).save(tmp_path / "a.avif", quality=95)
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - values).max() < 8
