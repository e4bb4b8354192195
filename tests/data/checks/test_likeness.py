"""Pictures with the same pixels are found, whatever file they are in."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.checks import likeness
from densenet_backbones.data.checks.image_files import find_copies, list_image_files
from densenet_backbones.data.checks.likeness import find_same_pictures, refuse_shared
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.sets.splitting import SplitOptions, split_set


def draw_scene(n, width=64, height=48):
    """A smooth picture of its own."""
    small = np.random.default_rng(n).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_set(root, names):
    records = [
        ImageRecord(
            n,
            root / name,
            64,
            48,
            np.array([[1, 2, 9, 9]], np.float32),
            np.array([1]),
            np.array([False]),
        )
        for n, name in enumerate(names, 1)
    ]
    return DetectionSet("x/all", records, Categories.from_names(["a"]))


@pytest.fixture
def scenes(tmp_path):
    """Six scenes; the first is in four files, one of them turned by its tag, the second in two."""
    for n in range(6):
        draw_scene(n).save(tmp_path / f"{n}.jpg", quality=95)
    first = Image.open(tmp_path / "0.jpg").convert("RGB")
    first.save(tmp_path / "saved.png")
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "the same")
    first.save(tmp_path / "noted.png", pnginfo=note, compress_level=1)
    exif = Image.Exif()
    exif[0x0112] = 3
    first.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "tagged.jpg").write_bytes(content[:2] + b"\xff\xfe\x00\x06note" + content[2:])
    # Looks like the third scene, and is another file of other pixels.
    Image.open(tmp_path / "2.jpg").save(tmp_path / "again.jpg", quality=60)
    return tmp_path


def find(root, names):
    data = make_set(root, names)
    files = list_image_files(data)
    assert find_copies(files) == []
    return [
        sorted(file.path.rpartition("/")[2] for file in same)
        for same in find_same_pictures(data, files)
    ]


def test_files_with_the_same_pixels_are_one_group(scenes):
    names = sorted(path.name for path in scenes.iterdir())
    assert sorted(find(scenes, names)) == [
        ["0.jpg", "noted.png", "saved.png", "turned.png"],
        ["1.jpg", "tagged.jpg"],
    ]


def test_copies_of_pixels_stay_on_one_side_of_a_split(scenes):
    names = sorted(path.name for path in scenes.iterdir() if path.name != "again.jpg")
    for seed in range(8):
        split = split_set(make_set(scenes, names), scenes, SplitOptions(0.3, seed=seed))
        held_out = {record.path.name for record in split.val.records}
        for same in ({"0.jpg", "noted.png", "saved.png", "turned.png"}, {"1.jpg", "tagged.jpg"}):
            assert same <= held_out or not same & held_out


def test_unreadable_files_and_the_rest_of_large_sets_are_passed_over(scenes, monkeypatch):
    (scenes / "broken.png").write_bytes(b"\x89PNG broken")
    names = ["0.jpg", "broken.png", "1.jpg", "saved.png", "tagged.jpg"]
    assert len(find(scenes, names)) == 2
    monkeypatch.setattr(likeness, "PICTURES_COMPARED", 4)
    assert find(scenes, names) == [["0.jpg", "saved.png"]]
    monkeypatch.setattr(likeness, "PIXELS_COMPARED", 64 * 48)
    assert find(scenes, names) == []


def test_training_images_saved_anew_are_not_evaluated(scenes, monkeypatch):
    """What looks the same is no copy; what was not compared is said."""
    trained = make_set(scenes, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    said = (
        r"x/all: evaluated images that are training images too: 2 of 4 .*saved\.png has the same "
        r"pixels as .*0\.jpg\).* data\.allow_shared_images true"
    )
    with pytest.raises(DataError, match=said):
        refuse_shared(trained, make_set(scenes, ["4.jpg", "saved.png", "tagged.jpg", "again.jpg"]))
    others = make_set(scenes, ["4.jpg", "5.jpg", "again.jpg"])
    assert refuse_shared(trained, others) == []
    assert refuse_shared(make_set(scenes, ["0.jpg", "saved.png"]), others) == []
    monkeypatch.setattr(likeness, "SHARED_PIXELS", 4 * 64 * 48)
    (line,) = refuse_shared(trained, others)
    assert "of 7 images whose size is that of one in the other part 4 were compared." in line
