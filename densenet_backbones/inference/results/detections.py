"""Detections of one image: boxes with classes and scores, perhaps masks and keypoints.

Legend: D detections, Kp keypoints of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.masks.run_lengths import decode_mask
from densenet_backbones.data.samples import RunLengths
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.results import formats
from densenet_backbones.inference.results.base import ImageResult, import_extra
from densenet_backbones.reporting.colors import RGB, get_class_color
from densenet_backbones.reporting.instance_pictures import (
    DrawnInstances,
    draw_instances,
    mark_visible,
)


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        name: Name of its class.
        score: Confidence in [0, 1].
        x1: Left edge of its box, in pixels of the image as shown.
        y1: Top edge.
        x2: Right edge.
        y2: Bottom edge.
    """

    name: str
    score: float
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, eq=False, repr=False)
class Detections(ImageResult):
    """Detections of one image, best first.

    ``len(result)`` counts them, iterating yields `Detection` tuples, ``result[0]`` is the best one.
    Slices, lists of positions and lists of booleans choose some:
    ``result[[name == "dog" for name in result.names]]``.

    Attributes:
        boxes: (D, 4) float32 xyxy, absolute pixels of the image as shown.
        labels: (D,) int64 in ``1 .. K - 1``.
        scores: (D,) float32 in [0, 1].
        names: Class name of each.
        masks: D masks as COCO's run-length codes, or None for a detector of boxes alone.
        keypoints: (D, Kp, 3) float32 of x, y and 1, in pixels of the image as shown, or None.
        keypoint_scores: (D, Kp) float32, the higher the surer (no probabilities), or None.
        categories: All classes of the model, with their ids in its training data.
        image: The image.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    names: list[str]
    masks: list[RunLengths] | None = None
    keypoints: Tensor | None = None
    keypoint_scores: Tensor | None = None
    categories: Categories | None = None
    image: ReadImage | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Detection]:
        for name, score, box in zip(
            self.names, self.scores.tolist(), self.boxes.tolist(), strict=True
        ):
            yield Detection(name, score, *box)

    _rows = __iter__

    @overload
    def __getitem__(self, key: int) -> Detection: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[bool] | Tensor) -> "Detections": ...
    def __getitem__(
        self, key: int | slice | Sequence[int] | Sequence[bool] | Tensor
    ) -> "Detection | Detections":
        """Return one detection by its position, or some as a result of their own."""
        if isinstance(key, int):
            score, box = float(self.scores[key]), self.boxes[key].tolist()
            return Detection(self.names[key], score, *box)
        rows = np.arange(len(self))[key if isinstance(key, slice) else _to_index(key)]
        keep, positions = torch.from_numpy(rows), rows.tolist()
        points, point_scores = self.keypoints, self.keypoint_scores
        return replace(
            self,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            scores=self.scores[keep],
            names=[self.names[i] for i in positions],
            masks=None if self.masks is None else [self.masks[i] for i in positions],
            keypoints=None if points is None else points[keep],
            keypoint_scores=None if point_scores is None else point_scores[keep],
        )

    def decode_mask(self, index: int) -> np.ndarray:
        """Return the mask of one detection, (H, W) bool.

        Raises:
            ValueError: The detector gives no masks.
        """
        if self.masks is None:
            raise ValueError("this detector gives boxes without masks; use a Mask R-CNN")
        return decode_mask(self.masks[index])

    def count_classes(self) -> dict[str, str]:
        """Return the number of detections of each class, the most frequent first."""
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        return {name: str(counts[name]) for name in sorted(counts, key=counts.__getitem__)[::-1]}

    def _colors(self) -> dict[str, RGB]:
        labels = zip(self.names, self.labels.tolist(), strict=True)
        return {name: get_class_color(label) for name, label in labels}

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns of `to_pandas`."""
        return Detection._fields

    def _draw(self, image: ReadImage) -> np.ndarray:
        points = self.keypoints
        drawn = DrawnInstances(
            self.boxes.numpy(),
            self.labels.numpy(),
            self.scores.numpy(),
            self.masks,
            None if points is None else mark_visible(points.numpy()),
        )
        known = self.categories
        skeleton = known.skeleton if known else ()
        names = known.names if known else formats.name_labels(self.names, self.labels.tolist())
        return draw_instances(image.pixels, drawn.scale(1 / image.factor), names, skeleton)

    def _texts(self) -> dict[str, Any]:
        return {
            ".json": lambda: formats.dump(formats.to_json(self)),
            ".csv": lambda: formats.format_csv(self, with_header=True),
            ".xml": lambda: formats.format_voc(self),
            ".txt": lambda: formats.format_yolo(self),
        }

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format, as its tools read them.

        Args:
            image_id: The image's id in its data set.

        Returns:
            A dictionary each: image_id, category_id (the training data's own id), category_name,
            bbox (xywh in pixels), score, and segmentation and keypoints where there are some.
        """
        return formats.to_coco(self, image_id)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``, for its annotators, trackers and filters.

        Its `class_id` counts the model's classes from 0; ``data["class_name"]`` names them.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        supervision = import_extra("supervision", "to_supervision()")
        masks = [decode_mask(mask) for mask in self.masks] if self.masks else None
        return supervision.Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=(self.labels - 1).numpy(),
            mask=None if masks is None else np.stack(masks),
            data={"class_name": np.array(self.names, dtype=str)},
        )


def _to_index(key: Sequence[int] | Sequence[bool] | Tensor) -> np.ndarray:
    index = np.asarray(key.cpu() if isinstance(key, Tensor) else key)
    return index.astype(np.int64) if not index.size else index
