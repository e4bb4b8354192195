"""Test-time augmentation, Soft-NMS, box voting: detect in views of an image, merge what they show.

Legend: D detections of an image of H x W pixels, Kp keypoints. Boxes are xyxy in pixels of the
image as it was given.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from densenet_backbones.data.masks.run_lengths import (
    Detections,
    encode_detections,
    encode_predicted_masks,
    mirror_code,
)
from densenet_backbones.heads import Selection
from densenet_backbones.heads.multibox.selection import vote_on_boxes
from densenet_backbones.inference.merging.soft_nms import SoftNMS, batched_soft_nms
from densenet_backbones.messages import check_interval

CANDIDATES = 1000
"""Boxes of a view and image that enter Soft-NMS, which takes them one by one; an RPN's number."""


@dataclass(frozen=True)
class DetectionViews:
    """Views of an image that a detector is run on, and how their detections are merged.

    Every view (each of `scales`, with `flip` also mirrored) is detected on its own, mapped back to
    the image, and all go through the detector's own NMS once more, which keeps as many detections
    as the detector does. A detection keeps the mask and the keypoints of its view. With `soft_nms`,
    or where boxes vote (see `vote_on_boxes`), the views are not suppressed on their own: their
    candidates go through NMS together, and all of them vote on where the kept boxes lie. Detectors
    of two stages vote within a view before they give masks, and then once more across the views.

    Attributes:
        flip: Run the detector on the mirrored image too.
        scales: Factors on the size that the detector resizes images to, each in (0, 8].
        soft_nms: Takes the place of the detector's NMS.
        mirrored_keypoints: Position of the keypoint that each becomes in the mirror (left and right
            swapped); empty where they stay.
        vote_thresh: Lowest IoU, in 0..1, with which a candidate votes on a box of its class; 1 for
            no votes, None for as the detector does (torchvision's do not vote).
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    soft_nms: SoftNMS | None = None
    mirrored_keypoints: tuple[int, ...] = ()
    vote_thresh: float | None = None

    def __post_init__(self) -> None:
        if self.vote_thresh is not None:
            check_interval("vote_thresh", self.vote_thresh, "[0, 1]")
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"scales must be one or more factors in (0, 8], got {self.scales}")

    def check(self, model: nn.Module) -> None:
        """Refuse what a detector cannot do.

        Raises:
            ValueError: It resizes images to one fixed size, and scales are given; or its NMS is of
                an unknown kind.
        """
        find_limits(model)
        if set(self.scales) != {1.0}:
            _find_resizing(model)

    def __call__(self, model: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        """Return the detections of each image, best first; `detect` calls it."""
        limits = find_limits(model)
        own_votes = limits.vote_thresh if isinstance(limits, Selection) else 1.0
        vote_thresh = own_votes if self.vote_thresh is None else self.vote_thresh
        merging = _Merging(limits.nms_thresh, limits.detections_per_img, self.soft_nms, vote_thresh)
        needs_candidates = self.soft_nms is not None or min(vote_thresh, own_votes) < 1
        views: list[list[Detections]] = []
        with _give_candidates(model, merging) if needs_candidates else nullcontext():
            for scale in self.scales:
                with _resize_by(model, scale):
                    views.append([encode_detections(d) for d in model(list(images))])
                    if self.flip:
                        views.append(self._detect_mirrored(model, images))
        if len(views) == 1 and hasattr(model, "roi_heads"):
            # Its boxes have been selected and have voted; only Soft-NMS has their scores to lower.
            merging = replace(merging, nms_thresh=1.0, vote_thresh=1.0)
        return [merging.merge(parts) for parts in zip(*views, strict=True)]

    def _detect_mirrored(self, model: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        detections = model([image.flip(-1) for image in images])
        return [
            self._turn_back(encode_detections(d), image.shape[-1])
            for d, image in zip(detections, images, strict=True)
        ]

    def _turn_back(self, detections: Detections, width: int) -> Detections:
        """Map the detections of a mirrored image to the image itself."""
        # Left and right corners change places; keypoints change sides with their partners.
        x1, y1, x2, y2 = detections["boxes"].unbind(1)
        turned = {**detections, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
        if "masks" in turned:
            turned["masks"] = [mirror_code(code) for code in turned["masks"]]
        if "keypoints" in turned:
            points = turned["keypoints"].clone()
            points[..., 0] = width - points[..., 0]
            order = list(self.mirrored_keypoints) or list(range(points.shape[1]))
            turned["keypoints"] = points[:, order]
            if "keypoints_scores" in turned:
                turned["keypoints_scores"] = turned["keypoints_scores"][:, order]
        return turned


@dataclass(frozen=True)
class _Merging:
    """Rule by which the candidates of one image, of all views, become its detections."""

    nms_thresh: float
    number: int
    soft_nms: SoftNMS | None
    vote_thresh: float

    def select(
        self, boxes: Tensor, scores: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (D,) positions of the kept boxes, where they lie (D, 4), and their new scores."""
        if self.soft_nms is None:
            keep = batched_nms(boxes.float(), scores.float(), labels, self.nms_thresh)
            keep = keep[: self.number]
            new_scores = scores[keep]
        else:
            keep, new_scores = batched_soft_nms(boxes, scores, labels, self.soft_nms, self.number)
        kept = boxes[keep]
        if self.vote_thresh < 1:
            kept = vote_on_boxes(kept, labels[keep], boxes, scores, labels, self.vote_thresh)
        return keep, kept, new_scores

    def merge(self, views: Sequence[Detections]) -> Detections:
        """Select from the detections of all views of one image, in the frame of the image."""
        joined: Detections = {
            name: [mask for view in views for mask in view[name]]
            if name == "masks"
            else torch.cat([view[name] for view in views])
            for name in views[0]
        }
        keep, boxes, scores = self.select(joined["boxes"], joined["scores"], joined["labels"])
        return {**select_rows(joined, keep), "boxes": boxes, "scores": scores}


def detect(
    model: nn.Module, images: Sequence[Tensor], views: DetectionViews | None = None
) -> list[Detections]:
    """Return the detections of each image, masks as run-length codes as soon as predicted.

    Args:
        model: A detector in evaluation mode.
        images: (3, H, W) float each, as the detector takes them.
        views: Views to run it on; None runs it on the images as they are.
    """
    with encode_predicted_masks(model):
        detections = views(model, images) if views else model(list(images))
    return [encode_detections(d) for d in detections]


def enlarge(detections: Detections, factor: int, size: tuple[int, int]) -> Detections:
    """Return the detections of an image that was read smaller in the frame of the full one.

    Args:
        detections: Without masks, unless the factor is 1.
        factor: Pixels of the full image's sides that one of the detector's stands for.
        size: (H, W) of the full image.
    """
    if factor == 1:
        return detections
    enlarged = {**detections, "boxes": clip_boxes_to_image(detections["boxes"] * factor, size)}
    if "keypoints" in enlarged:
        points = enlarged["keypoints"].clone()
        points[..., :2] *= factor
        enlarged["keypoints"] = points
    return enlarged


def select_rows(detections: Detections, keep: Tensor) -> Detections:
    """Return some detections of one image, in the given order of positions."""
    positions = keep.tolist()
    return {
        name: [values[i] for i in positions] if isinstance(values, list) else values[keep]
        for name, values in detections.items()
    }


def parse_views(
    options: argparse.Namespace, model: nn.Module | None, mirrored_keypoints: Sequence[int] = ()
) -> DetectionViews | None:
    """Return the views that the command line asks for; None for the images as they are.

    Args:
        options: Of a parser with `add_view_options`.
        model: The detector, or None for another kind of model.
        mirrored_keypoints: As `DetectionViews`'s.

    Raises:
        ValueError: An option is out of its range, or the model cannot do it.
    """
    asked = (options.tta, options.tta_scales, options.soft_nms, options.box_votes)
    if all(value is None for value in asked):
        return None
    if model is None:
        raise ValueError(
            "--tta, --tta-scales, --soft-nms and --box-votes are for detectors; leave them out"
        )
    if options.box_votes is not None:
        check_interval("--box-votes", options.box_votes, "[0, 1]")
    try:
        scales = tuple(float(part) for part in (options.tta_scales or "1").split(","))
    except ValueError:
        raise ValueError(
            f"--tta-scales must be numbers with commas between, such as 0.75,1,1.25, got "
            f"{options.tta_scales}"
        ) from None
    views = DetectionViews(
        flip=options.tta == "flip",
        scales=scales,
        soft_nms=SoftNMS(options.soft_nms) if options.soft_nms else None,
        vote_thresh=options.box_votes,
        mirrored_keypoints=tuple(mirrored_keypoints),
    )
    views.check(model)
    return views


# -- what is changed of a detector for a while -----------------------------------------------------


class _Limits(Protocol):
    """torchvision's names of the last step of a detector."""

    nms_thresh: float
    detections_per_img: int


class _Selecting(Protocol):
    """Our own detectors keep their limits in one frozen value."""

    selection: Selection


class _Resizing(Protocol):
    """torchvision's names of the sizes that a detector resizes images to."""

    min_size: tuple[int, ...]
    max_size: int


def find_limits(model: nn.Module) -> _Limits:
    """Return the part of a detector with its NMS threshold and its number of detections."""
    for holder in (getattr(model, "selection", None), getattr(model, "roi_heads", None), model):
        if hasattr(holder, "nms_thresh") and hasattr(holder, "detections_per_img"):
            return cast(_Limits, holder)
    raise ValueError(
        f"--tta, --soft-nms and --box-votes: nothing is known of how {type(model).__name__} "
        "selects its detections; leave them out"
    )


@contextmanager
def _give_candidates(model: nn.Module, merging: _Merging) -> Iterator[None]:
    """Make a detector return its candidates, of which none was dropped for another's sake."""
    # A threshold of 1 drops nothing. Ours is a frozen value, torchvision's are two attributes.
    limits = find_limits(model)
    number = CANDIDATES if merging.soft_nms else sys.maxsize
    if isinstance(limits, Selection):
        detector = cast(_Selecting, model)
        detector.selection = replace(
            limits, nms_thresh=1.0, detections_per_img=number, vote_thresh=1.0
        )
        try:
            yield
        finally:
            detector.selection = limits
        return
    before = limits.nms_thresh, limits.detections_per_img
    limits.nms_thresh, limits.detections_per_img = 1.0, number
    try:
        with _spare_heads(model, merging):
            yield
    finally:
        limits.nms_thresh, limits.detections_per_img = before


@contextmanager
def _spare_heads(model: nn.Module, merging: _Merging) -> Iterator[None]:
    """Give masks and keypoints only to boxes that would be kept of this view, where these lie.

    Their scores stay what they were: among the first boxes of Soft-NMS, it keeps the same ones
    again with the same losses.
    """
    heads = getattr(model, "roi_heads", None)
    if heads is None:
        yield
        return
    # Between the boxes and the other heads, which cost time for every box that is left.
    original: Callable[..., tuple[list[Tensor], ...]] = heads.postprocess_detections

    def select_fewer(*args: object) -> tuple[list[Tensor], ...]:
        rows = [
            (kept, scores[keep], labels[keep])
            for boxes, scores, labels in zip(*original(*args), strict=True)
            for keep, kept, _ in [merging.select(boxes, scores, labels)]
        ]
        return tuple(list(column) for column in zip(*rows, strict=True))

    with patch.object(heads, "postprocess_detections", select_fewer):
        yield


def _find_resizing(model: nn.Module) -> _Resizing:
    """Return the part of a detector that resizes images, unless to one fixed size."""
    transform = getattr(model, "transform", None)
    if not hasattr(transform, "min_size") or getattr(transform, "fixed_size", None) is not None:
        raise ValueError(
            f"--tta-scales: {type(model).__name__} sees every image at one size, which it was "
            "built for; leave the scales out (--tta flip works)"
        )
    return cast(_Resizing, transform)


def resize_images_to(model: nn.Module, size: int) -> None:
    """Make a detector resize the shorter side of images to another number of pixels.

    The longest that it takes grows in proportion.

    Raises:
        ValueError: It sees every image at one size.
    """
    try:
        transform = _find_resizing(model)
    except ValueError:
        raise ValueError(
            f"--size: {type(model).__name__} sees every image at one size, which it was built "
            "for; leave it out"
        ) from None
    before = transform.min_size
    shortest = before[-1] if isinstance(before, tuple | list) else before
    transform.max_size = round(transform.max_size * size / shortest)
    transform.min_size = (size,)


@contextmanager
def _resize_by(model: nn.Module, scale: float) -> Iterator[None]:
    """Make a detector resize images to a multiple of its usual size."""
    if scale == 1:
        yield
        return
    transform = _find_resizing(model)
    before = transform.min_size, transform.max_size
    sides = before[0] if isinstance(before[0], tuple | list) else (before[0],)
    transform.min_size = tuple(max(1, round(side * scale)) for side in sides)
    transform.max_size = max(1, round(before[1] * scale))
    try:
        yield
    finally:
        transform.min_size, transform.max_size = before
