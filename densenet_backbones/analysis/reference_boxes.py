"""Priors and anchors of a detector against boxes: overlaps, matches, and sizes that fit better.

Legend: B boxes of an image, P priors or anchors, S shapes (width and height). Boxes are xyxy in
pixels; the frame is said at each place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from densenet_backbones.heads.multibox.matching import UNMATCHED, match_priors

__all__ = ["BoxMatches", "ReferenceBoxes", "cluster_shapes", "overlap_shapes", "read_references"]


@dataclass(frozen=True)
class BoxMatches:
    """Overlaps of an image's boxes with a detector's priors or anchors.

    Attributes:
        best_iou: (B,) IoU of each box with the best of them.
        matched: (B,) bool: at least one of them learns the box, by the detector's own matching.
    """

    best_iou: Tensor
    matched: Tensor


class ReferenceBoxes:
    """Priors or anchors of a detector, in the frame of the image that its network sees.

    Args:
        model: A detector of ours that has priors or anchors.

    Attributes:
        kind: ``priors`` or ``anchors``.
        threshold: IoU from which one of them learns a box.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.is_dsod = hasattr(model, "prior_spec")
        self.generator: Any = getattr(model, "anchor_generator", None) or getattr(
            getattr(model, "rpn", None), "anchor_generator", None
        )
        self.has_priors = self.is_dsod or hasattr(self.generator, "_wh_pairs")
        self.kind = "priors" if self.has_priors else "anchors"
        part = model if hasattr(model, "proposal_matcher") else getattr(model, "rpn", None)
        matcher: Any = getattr(part, "proposal_matcher", None)
        self.matcher = matcher
        high = matcher.high_threshold if matcher is not None else self.model.match_threshold
        self.threshold = float(high)
        self._known: dict[tuple[int, int], Tensor] = {}

    def scale_boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring boxes of an image of (H, W) pixels to the network's frame."""
        height, width = self._see(size)
        factors = boxes.new_tensor([width / size[1], height / size[0]] * 2)
        scaled: Tensor = boxes * factors
        return scaled

    def match(self, boxes: Tensor, size: tuple[int, int]) -> BoxMatches:
        """Match the boxes of an image.

        Args:
            boxes: (B, 4) in the image's frame, B may be 0.
            size: (H, W) of the image.
        """
        boxes = self.scale_boxes(boxes.float(), size)
        if len(boxes) == 0:
            return BoxMatches(boxes.new_zeros(0), boxes.new_zeros(0, dtype=torch.bool))
        references = self.boxes(self._see(size))
        iou = box_iou(boxes, references)
        if self.is_dsod:
            owners = match_priors(boxes, references, self.threshold)
            owners = owners[owners != UNMATCHED]
        else:
            owners = self.matcher(iou)
            owners = owners[owners >= 0]
        matched = torch.zeros(len(boxes), dtype=torch.bool)
        matched[owners] = True
        return BoxMatches(iou.amax(dim=1), matched)

    def boxes(self, size: tuple[int, int]) -> Tensor:
        """Return (P, 4) boxes for an image that the network sees at (H, W)."""
        if self.is_dsod:
            priors: Tensor = self.model.priors("cpu")
            return priors
        if size not in self._known:
            self._known = {size: self._generate(size)}  # the last size alone: sets have many
        return self._known[size]

    def shapes(self) -> Tensor:
        """Return (S, 2) different widths and heights, in the network's frame."""
        if self.is_dsod:
            spec = self.model.prior_spec
            pairs = [s for level in range(len(spec.min_sizes)) for s in spec.shapes(level)]
            return torch.tensor(pairs)
        boxes = self.boxes(self._see((800, 800)))
        sides = (boxes[:, 2:] - boxes[:, :2]).double().round(decimals=1)
        return cast(Tensor, sides.unique(dim=0)).float()

    def _see(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (H, W) at which the network sees an image, without its padding."""
        transform = self.model.transform
        fixed = getattr(transform, "fixed_size", None)  # (W, H)
        if fixed is not None:
            return int(fixed[1]), int(fixed[0])
        shortest = transform.min_size
        shortest = shortest if isinstance(shortest, int) else shortest[-1]
        factor = min(shortest / min(size), transform.max_size / max(size))
        return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))

    def _generate(self, size: tuple[int, int]) -> Tensor:
        images = ImageList(torch.empty(1, 3, 1, 1).expand(1, 3, *size), [size])
        if self.has_priors:  # SSD's, whose levels end in a single cell
            grids = [(cells, cells) for cells in self.model.backbone.adapter.cells]
        else:
            whole = int(self.model.transform.size_divisible)
            padded = [-(-side // whole) * whole for side in size]
            strides = self.generator.strides
            grids = [(-(-padded[0] // s), -(-padded[1] // s)) for s in strides]
        maps = [torch.empty(1, 1, *grid) for grid in grids]
        boxes: Tensor = self.generator(images, maps)[0]
        return boxes


def read_references(model: nn.Module) -> ReferenceBoxes | None:
    """Return a detector's priors or anchors; None if it has none, or is not of ours.

    FCOS learns from points, not from boxes.
    """
    generator = getattr(getattr(model, "rpn", model), "anchor_generator", None)
    known = hasattr(model, "prior_spec")
    adapter = getattr(getattr(model, "backbone", None), "adapter", None)
    known = known or (hasattr(generator, "_wh_pairs") and hasattr(adapter, "cells"))
    known = known or (hasattr(generator, "strides") and type(model).__name__ != "FCOS")
    return ReferenceBoxes(model) if known else None


def overlap_shapes(sides: Tensor, shapes: Tensor) -> Tensor:
    """Return (B, S) IoUs of widths and heights (B, 2) with shapes (S, 2) on the same center."""
    common = torch.minimum(sides[:, None], shapes[None]).prod(dim=2)
    union = sides.prod(dim=1)[:, None] + shapes.prod(dim=1)[None] - common
    overlap: Tensor = common / union.clamp(min=1e-9)
    return overlap


def cluster_shapes(sides: Tensor, count: int, rounds: int = 100) -> Tensor:
    """Cluster widths and heights by k-means under IoU.

    Redmon and Farhadi, "YOLO9000" (1612.08242), section 2, "Dimension Clusters": the distance of a
    box to a shape is 1 - IoU. It starts from quantiles of the area, so equal data give equal
    shapes.

    Args:
        sides: (B, 2) widths and heights in pixels, above 0.
        count: Number of shapes, S.
        rounds: Most rounds.

    Returns:
        (S', 2) float64 shapes by rising area, S' at most S: no two are alike.

    Raises:
        ValueError: There are no boxes, or ``count`` is below 1.
    """
    if count < 1 or len(sides) == 0:
        raise ValueError(f"clusters need boxes and a count of 1 or more, got {count}")
    sides = sides.double()
    order = sides[sides.prod(dim=1).argsort()]
    places = ((torch.arange(count) + 0.5) / count * len(order)).long()
    shapes = cast(Tensor, order[places].unique(dim=0))
    owners = torch.full((len(sides),), -1)
    for _ in range(rounds):
        nearest = overlap_shapes(sides, shapes).argmax(dim=1)
        if torch.equal(nearest, owners):
            break
        owners = nearest
        for number in range(len(shapes)):
            if (mine := sides[owners == number]).numel():
                shapes[number] = mine.mean(dim=0)
    return shapes[shapes.prod(dim=1).argsort()]


def mean_overlap(sides: Tensor, shapes: Sequence[Sequence[float]] | Tensor) -> float:
    """Return the mean IoU of boxes with the best of some shapes on the same center."""
    known = torch.as_tensor(shapes, dtype=torch.float64)
    return float(overlap_shapes(sides.double(), known).amax(dim=1).mean())
