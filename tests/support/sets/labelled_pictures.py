"""Few labelled pictures, and what writes them: the same data for every layout.

`PICTURES` are four for training and two for evaluation, with objects of two classes whose outlines
have whole coordinates, so that every format can say the same.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import recognize

CLASSES = ("cat", "dog")
KEYPOINTS = ("nose", "tail")
PALETTE = (0, 0, 0, 200, 30, 40, 20, 160, 220)


@dataclass(frozen=True)
class Thing:
    """Object: its class, its outline [x1, y1, ...], and the places of its keypoints."""

    name: str
    outline: tuple[int, ...]

    @property
    def box(self):
        xs, ys = self.outline[::2], self.outline[1::2]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def keypoints(self):
        x1, y1, x2, y2 = self.box
        return (x1 + 1, y1 + 2), (x2 - 2, y2 - 1)


@dataclass(frozen=True)
class Picture:
    stem: str
    split: str
    size: tuple[int, int]  # (W, H)
    things: tuple[Thing, ...]

    @property
    def name(self):
        return f"{self.stem}.jpg"

    def draw(self):
        """The picture, whose objects have the colors of their classes."""
        noise = np.random.default_rng(len(self.stem) + self.size[0])
        image = Image.fromarray(noise.integers(60, 120, (*self.size[::-1], 3), np.uint8))
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            pen.polygon(thing.outline, fill=(250, 20, 20) if thing.name == "cat" else (20, 20, 250))
        return image

    def draw_labels(self, values=(0, 1, 2)):
        """(H, W) uint8: 0, 1 for cats, 2 for dogs; or other values for them."""
        mask = Image.new("L", self.size, values[0])
        for thing in self.things:
            value = values[1 + CLASSES.index(thing.name)]
            ImageDraw.Draw(mask).polygon(thing.outline, fill=value)
        return np.asarray(mask)


def _make_pictures():
    pictures = []
    for n, (width, height) in enumerate(
        ((64, 48), (60, 60), (48, 64), (80, 40), (64, 64), (50, 70))
    ):
        x, y = 4 + n, 3 + n
        things = [
            Thing("cat", (x, y, x + 14, y, x + 18, y + 16, x + 2, y + 12)),
            Thing("dog", (x + 20, y + 4, x + 36, y + 6, x + 30, y + 24)),
        ]
        pictures.append(
            Picture(f"photo {n}", "train" if n < 4 else "val", (width, height), tuple(things))
        )
    return tuple(pictures)


PICTURES = _make_pictures()


def save_image(picture, folder, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    picture.draw().save(folder / (name or picture.name))


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def of_split(split):
    return [picture for picture in PICTURES if picture.split == split]


def change_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def read_all(root, **options):
    """All splits of what is recognized, as one set."""
    parts = recognize(root, "detection").splits
    return read_detection([dict(part.source) for part in parts], **options)
