"""Crops of the boxes of a detection set, as a folder of labelled pictures."""

import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from densenet_backbones.data.classification.prepared import name_class_folder, prepare_folder
from densenet_backbones.data.images import read_image
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.recognition.recognize import Recognized, recognize
from densenet_backbones.data.samples import DetectionSet

CONTEXT = 1.2
"""Side of a crop as a multiple of the box's longer side: a little of what surrounds the object."""
LEAST_SIDE = 8
"""Pixels below which a box shows nothing to learn from."""


def prepare_crops(path: str | Path, layout: str = "auto") -> tuple[Path, Recognized]:
    """Write square crops around the boxes of detection data, ``SPLIT/CLASS/IMAGE_N.png``, once.

    Args:
        path: Folder, annotation file or zip archive of detection data.
        layout: Its layout.

    Returns:
        The folder of the crops, and what the data was recognized as.

    Raises:
        DataError: There is no detection data, or it cannot be read.
    """
    found = recognize(path, "detection", layout=layout)
    parts: list[tuple[str, DetectionSet]] = []
    for split in found.splits:
        parts.append((split.name, read_detection([dict(split.source)], masks=False)))
    digest = 0
    for name, part in parts:
        columns = part.packed.columns
        text = repr((name, part.categories.names, CONTEXT)).encode()
        for content in (text, columns.boxes.tobytes(), columns.labels.tobytes()):
            digest = zlib.crc32(content, digest)
    pictures = (
        (f"{name}/{stem}" if found.whole is None else stem, crop)
        for name, part in parts
        for stem, crop in cut_objects(part)
    )
    root = found.root
    folder = prepare_folder(root, f"{root.name}-crops-{digest:08x}", pictures, "Cutting crops")
    return folder, found


def cut_objects(part: DetectionSet) -> Iterator[tuple[str, np.ndarray]]:
    """Yield ``CLASS/IMAGE_N`` and the square crop around each object, (S, S, 3) uint8 RGB.

    What lies beyond the image repeats its border. Difficult objects and tiny ones are left out.
    """
    numbers: dict[str, int] = defaultdict(int)
    for record in part.records:
        sides = (record.boxes[:, 2:] - record.boxes[:, :2]).max(axis=1, initial=0)
        usable = np.flatnonzero(
            ~record.difficult & ((record.boxes[:, 2:] - record.boxes[:, :2]).min(1) >= LEAST_SIDE)
            if len(record.boxes)
            else sides > 0
        )
        if not len(usable):
            continue
        image = read_image(record.path, (record.width, record.height))
        for n in usable.tolist():
            name = part.categories.name_of_label(int(record.labels[n]))
            stem = f"{name_class_folder(name)}/{record.path.stem}"
            numbers[stem] += 1
            yield f"{stem}_{numbers[stem]}", cut_square(image, record.boxes[n])


def cut_square(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cut the square around a box out of an image; `CONTEXT` says how much larger it is.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) xyxy in pixels.
    """
    x1, y1, x2, y2 = box.tolist()
    side = max(1, round(CONTEXT * max(x2 - x1, y2 - y1)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    return np.ascontiguousarray(image[rows[:, None], columns[None]])
