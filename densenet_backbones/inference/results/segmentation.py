"""Segmentation of one image: the class of every pixel, and how sure the model is of it.

Legend: H x W pixels, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from densenet_backbones.data.mask_samples import Color
from densenet_backbones.data.masks.run_lengths import encode_masks
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.results import formats
from densenet_backbones.inference.results.base import ImageResult, import_extra
from densenet_backbones.reporting.mask_pictures import draw_mask


class Region(NamedTuple):
    """All pixels of one class.

    Attributes:
        name: Name of the class.
        label: Its place in `Segmentation.names`.
        pixels: Number of pixels.
        share: Part of the image, in [0, 1].
        score: Mean probability of its pixels.
    """

    name: str
    label: int
    pixels: int
    share: float
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(ImageResult):
    """Classes of the pixels of an image.

    ``len(result)`` counts the classes that were found; iterating yields a `Region` each, and
    ``result["sky"]`` is the mask of a class, (H, W) bool.

    Attributes:
        labels: (H, W) uint8 in ``0 .. K - 1``; (K, H, W) of 0 and 1 for a multilabel model.
        scores: Float32 of the same shape: the model's probability of each label.
        names: K class names.
        colors: RGB of each class.
        image: The image, of large ones every 2nd or 4th pixel.
    """

    labels: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    image: ReadImage | None = None

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Region]:
        for label, name in enumerate(self.names):
            if pixels := self.count_pixels(label):
                share, score = self.measure_share(label), self.mean_score(label)
                yield Region(name, label, pixels, share, score)

    _rows = __iter__

    def __getitem__(self, name: str | int) -> np.ndarray:
        """Return the mask of a class by its name or label, (H, W) bool.

        Raises:
            KeyError: The model has no such class.
        """
        label = self.names.index(name) if isinstance(name, str) and name in self.names else name
        if not isinstance(label, int) or not 0 <= label < len(self.names):
            raise KeyError(f"the model has no class {name!r}, it has {', '.join(self.names)}")
        return self._find(label)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image in pixels."""
        height, width = self.labels.shape[-2:]
        return height, width

    def count_pixels(self, label: int) -> int:
        """Return the number of pixels of a class."""
        return int(self._find(label).sum())

    def measure_share(self, label: int) -> float:
        """Return the part of the image that a class covers, in [0, 1]."""
        return float(self._find(label).mean())

    def mean_score(self, label: int) -> float:
        """Return the mean probability of the pixels of a class; NaN if there are none."""
        area = self._find(label)
        scores = self.scores if self.scores.ndim == 2 else self.scores[label]
        return float(scores[area].mean()) if area.any() else float("nan")

    def _find(self, label: int) -> np.ndarray:
        if self.labels.ndim == 2:
            return np.asarray(self.labels == label)
        return np.asarray(self.labels[label] == 1)

    def count_classes(self) -> dict[str, str]:
        """Return the share of each class, the largest first; black ones (background) left out."""
        regions = sorted(self, key=lambda region: -region.pixels)
        return {r.name: f"{r.share:.1%}" for r in regions if any(self.colors[r.label])}

    def _colors(self) -> dict[str, Color]:
        return dict(zip(self.names, self.colors, strict=True))

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns of `to_pandas`."""
        return Region._fields

    def _draw(self, image: ReadImage) -> np.ndarray:
        step = image.factor
        labels = np.ascontiguousarray(self.labels[..., ::step, ::step])
        return draw_mask(image.pixels, labels, self.colors)

    def _texts(self) -> dict[str, Any]:
        return {
            ".json": lambda: formats.dump(describe_regions(self)),
            ".csv": lambda: format_regions(self, with_header=True),
        }

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return the classes in COCO's results format: a mask as run-length code each.

        Args:
            image_id: The image's id in its data set.

        Returns:
            A dictionary each: image_id, category_id (the label), category_name, segmentation, bbox
            (xywh in pixels around all of it), area and the mean score.
        """
        results = []
        for region in self:
            mask = self._find(region.label)
            x1, y1, x2, y2 = _bound(mask)
            entry: dict[str, Any] = {"image_id": image_id, "category_id": region.label}
            entry |= {"category_name": region.name, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            code = encode_masks(torch.from_numpy(mask.astype(np.uint8))[None])[0]
            entry |= {"segmentation": code, "area": region.pixels, "score": region.score}
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections`` with one mask for each class that was found.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        supervision = import_extra("supervision", "to_supervision()")
        regions = list(self)
        if not regions:
            return supervision.Detections.empty()
        masks = np.stack([self._find(region.label) for region in regions])
        return supervision.Detections(
            xyxy=np.array([_bound(mask) for mask in masks], np.float32),
            mask=masks,
            confidence=np.array([region.score for region in regions], np.float32),
            class_id=np.array([region.label for region in regions]),
            data={"class_name": np.array([region.name for region in regions], dtype=str)},
        )


def describe_regions(segmentation: Segmentation) -> list[dict[str, Any]]:
    """Return the classes of an image for JSON."""
    return [
        {**r._asdict(), "share": round(r.share, 6), "score": round(r.score, 4)}
        for r in segmentation
    ]


def format_regions(
    segmentation: Segmentation, frame: int | None = None, *, with_header: bool = False
) -> str:
    """Return a line of CSV for each class: file, frame and what `Region` says."""
    rows: list[tuple[object, ...]] = [("file", "frame", *Region._fields)] * with_header
    rows += [
        (segmentation.file, "" if frame is None else frame, r.name, r.label, r.pixels,
         f"{r.share:.6f}", f"{r.score:.4f}")
        for r in segmentation
    ]  # fmt: skip
    return formats.format_rows(rows)


def _bound(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return xyxy around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
