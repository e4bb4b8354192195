"""Save the results of many images in the formats of other programs, each as it comes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import yaml

from densenet_backbones.file_writing import GrowingList, GrowingText, save_json, save_text
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.results import formats
from densenet_backbones.inference.results.classification import Classification, format_classes
from densenet_backbones.inference.results.detections import Detections
from densenet_backbones.inference.results.segmentation import Segmentation, format_regions
from densenet_backbones.reporting.pictures import save_picture

_NOT_IN_NAMES = '<>:"/\\|?*'  # of folders, on one system or another


class Saved(NamedTuple):
    """Result to save.

    Attributes:
        result: The result.
        entry: Its entry of ``predictions.json``.
        stem: Name for files of its own.
        frame: Number of the frame in its video, or None.
    """

    result: Detections | Segmentation | Classification
    entry: dict[str, Any]
    stem: str
    frame: int | None = None


class Saver(Protocol):
    """Writer of one format."""

    def add(self, saved: Saved) -> None:
        """Write a result."""

    def close(self) -> None:
        """Write what can be written at the end alone."""


class JsonSaver:
    """Our JSON: ``predictions.json``, an entry an image."""

    def __init__(self, out: Path) -> None:
        self._list = GrowingList(out / "predictions.json")

    def add(self, saved: Saved) -> None:
        """Write an entry."""
        self._list.append(saved.entry)

    def close(self) -> None:
        """Write an empty list if there was no image."""
        self._list.close()


class CsvSaver:
    """``predictions.csv``: a line an object, class of a segmentation, or classified image."""

    def __init__(self, out: Path) -> None:
        self._text = GrowingText(out / "predictions.csv")

    def add(self, saved: Saved) -> None:
        """Write the lines of an image."""
        first = self._text.is_empty
        if isinstance(saved.result, Detections):
            lines = formats.format_csv(saved.result, saved.frame, with_header=first)
        elif isinstance(saved.result, Classification):
            lines = format_classes(saved.result, saved.frame, with_header=first)
        else:
            lines = format_regions(saved.result, saved.frame, with_header=first)
        self._text.append(lines)

    def close(self) -> None:
        """Nothing is left to write."""


class CocoSaver:
    """``coco.json``: a data set in COCO's form whose annotations have scores.

    It is written at the end, as images and annotations are two lists of one file.
    """

    def __init__(self, out: Path) -> None:
        self._file = out / "coco.json"
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: list[dict[str, Any]] = []

    def add(self, saved: Saved) -> None:
        """Take the results of an image."""
        result, number = saved.result, len(self._images) + 1
        assert not isinstance(result, Classification)
        height, width = result.size
        entry = {"id": number, "file_name": saved.entry["file"], "width": width, "height": height}
        self._images.append(entry if saved.frame is None else {**entry, "frame": saved.frame})
        for row in result.to_coco(number):
            self._annotations.append({"id": len(self._annotations) + 1, "iscrowd": 0, **row})
        self._categories = self._categories or _list_categories(result)

    def close(self) -> None:
        """Write the file."""
        content = {"images": self._images, "annotations": self._annotations}
        save_json(self._file, {**content, "categories": self._categories}, indent=None)


def _list_categories(result: Detections | Segmentation) -> list[dict[str, Any]]:
    if isinstance(result, Segmentation):
        return [{"id": label, "name": name} for label, name in enumerate(result.names)]
    known = result.categories
    assert known is not None
    pairs = zip(known.ids, known.names, strict=True)
    points: dict[str, Any] = {}
    if known.keypoints:
        skeleton = [[a + 1, b + 1] for a, b in known.skeleton]
        points = {"keypoints": list(known.keypoints), "skeleton": skeleton}
    return [{"id": number, "name": name, **points} for number, name in pairs]


class YoloSaver:
    """``yolo/labels/NAME.txt`` for each image, and ``yolo/data.yaml`` with the classes."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "yolo"
        self._is_first = True

    def add(self, saved: Saved) -> None:
        """Write the labels of an image."""
        assert isinstance(saved.result, Detections) and saved.result.categories
        if self._is_first:
            names = dict(enumerate(saved.result.categories.names))
            text = yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False)
            save_text(self._folder / "data.yaml", text)
            self._is_first = False
        file = self._folder / "labels" / f"{saved.stem}.txt"
        save_text(file, formats.format_yolo(saved.result))

    def close(self) -> None:
        """Nothing is left to write."""


class VocSaver:
    """``voc/NAME.xml`` for each image."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "voc"

    def add(self, saved: Saved) -> None:
        """Write the annotation of an image."""
        assert isinstance(saved.result, Detections)
        save_text(self._folder / f"{saved.stem}.xml", formats.format_voc(saved.result))

    def close(self) -> None:
        """Nothing is left to write."""


class LabelmeSaver:
    """``labelme/NAME.json`` for each image."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "labelme"

    def add(self, saved: Saved) -> None:
        """Write the annotation of an image."""
        assert isinstance(saved.result, Detections)
        image = saved.result.file
        if os.path.exists(image):  # an address stays as it is
            image = os.path.relpath(image, self._folder).replace(os.sep, "/")
        content = formats.to_labelme(saved.result, image)
        save_json(self._folder / f"{saved.stem}.json", content)

    def close(self) -> None:
        """Nothing is left to write."""


class CropSaver:
    """``crops/CLASS/NAME_NUMBER.png``: the pixels of each box at full size."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "crops"

    def add(self, saved: Saved) -> None:
        """Write the crops of an image."""
        result = saved.result
        assert isinstance(result, Detections) and result.image is not None
        if not len(result):
            return
        height, width = result.size
        windows = _open_windows(result.image)
        for number, (name, _, *box) in enumerate(result, start=1):
            # Whole pixels that the box touches, at least one.
            left = int(np.clip(np.floor(box[0]), 0, width - 1))
            top = int(np.clip(np.floor(box[1]), 0, height - 1))
            right = int(np.clip(np.ceil(box[2]), left + 1, width))
            bottom = int(np.clip(np.ceil(box[3]), top + 1, height))
            crop = windows.read((top, left, bottom, right))
            save_picture(self._folder / _name_folder(name) / f"{saved.stem}_{number}.png", crop)

    def close(self) -> None:
        """Nothing is left to write."""


def _open_windows(image: ReadImage) -> ImageWindows:
    if image.factor == 1:
        return ImageWindows(image.pixels)
    return ImageWindows(image.name if image.content is None else image.read_whole())


def _name_folder(name: str) -> str:
    """Return a class's name as that of a folder on any system."""
    plain = "".join("_" if c in _NOT_IN_NAMES or not c.isprintable() else c for c in name)
    return plain.strip(". ")[:100] or "_"


SAVERS: dict[str, Callable[[Path], Saver]] = {
    "json": JsonSaver,
    "coco": CocoSaver,
    "yolo": YoloSaver,
    "voc": VocSaver,
    "labelme": LabelmeSaver,
    "csv": CsvSaver,
    "crops": CropSaver,
}
"""Formats of `predict --save`."""

OF_CLASSIFIERS = ("json", "csv")
"""Those that hold classes of whole images."""

OF_SEGMENTERS = ("json", "coco", "csv")
"""Those that hold segmentations; masks are PNG files as VOC's besides."""
