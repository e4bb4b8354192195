"""Test-time augmentation and Soft-NMS: the detections of several views of an image, as one list.

Legend: D detections of an image of H x W pixels, Kp keypoints. Boxes are xyxy in pixels of the
image as it was given.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from densenet_backbones.data.run_lengths import (
    Detections,
    encode_detections,
    encode_predicted_masks,
    mirror_code,
)
from densenet_backbones.heads import Selection
from densenet_backbones.inference.soft_nms import SoftNMS, batched_soft_nms

CANDIDATES = 1000
"""Boxes of a view and image that enter Soft-NMS; as many as an RPN proposes."""


@dataclass(frozen=True)
class DetectionViews:
    """How a detector is asked, and how its answers are brought together.

    Every view (each of `scales`, with `flip` also mirrored) is detected on its own, mapped back to
    the image, and all go through the detector's own NMS once more, which keeps as many detections
    as the detector does. A detection keeps the mask and the keypoints of its view. With `soft_nms`
    the views are not suppressed on their own: their candidates go through Soft-NMS together.

    Attributes:
        flip: Look at the mirrored image too.
        scales: Factors on the size that the detector brings images to, each above 0.
        soft_nms: In the place of the detector's NMS.
        mirrored_keypoints: Position of the keypoint that each becomes in the mirror (left and right
            swapped); empty where they stay.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    soft_nms: SoftNMS | None = None
    mirrored_keypoints: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"scales must be one or more factors in (0, 8], got {self.scales}")

    def check(self, model: nn.Module) -> None:
        """Refuse what a detector cannot do.

        Raises:
            ValueError: It sees images of one size only, and scales are asked for; or nothing is
                known of its NMS.
        """
        _limits(model)
        if set(self.scales) != {1.0}:
            _sizes(model)

    def __call__(self, model: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        """Detections of each image, best first; called by `detect`."""
        nms, number = _limits(model)
        views: list[list[Detections]] = []
        with _candidates(model, self.soft_nms) if self.soft_nms else _as_it_is():
            for scale in self.scales:
                with _scaled(model, scale):
                    views.append([encode_detections(f) for f in model(list(images))])
                    if self.flip:
                        views.append(self._mirrored(model, images))
        return [self._merged(found, nms, number) for found in zip(*views, strict=True)]

    def _mirrored(self, model: nn.Module, images: Sequence[Tensor]) -> list[Detections]:
        found = model([image.flip(-1) for image in images])
        return [
            self._turned_back(encode_detections(f), image.shape[-1])
            for f, image in zip(found, images, strict=True)
        ]

    def _turned_back(self, found: Detections, width: int) -> Detections:
        x1, y1, x2, y2 = found["boxes"].unbind(1)
        found = {**found, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
        if "masks" in found:
            found["masks"] = [mirror_code(code) for code in found["masks"]]
        if "keypoints" in found:
            points = found["keypoints"].clone()
            points[..., 0] = width - points[..., 0]
            order = list(self.mirrored_keypoints) or list(range(points.shape[1]))
            found["keypoints"] = points[:, order]
            if "keypoints_scores" in found:
                found["keypoints_scores"] = found["keypoints_scores"][:, order]
        return found

    def _merged(self, views: Sequence[Detections], nms: float, number: int) -> Detections:
        together: Detections = {
            name: [mask for view in views for mask in view[name]]
            if name == "masks"
            else torch.cat([view[name] for view in views])
            for name in views[0]
        }
        boxes, scores, labels = (together[name] for name in ("boxes", "scores", "labels"))
        if self.soft_nms is None:
            keep = batched_nms(boxes.float(), scores.float(), labels, nms)[:number]
            return select_rows(together, keep)
        keep, scores = batched_soft_nms(boxes, scores, labels, self.soft_nms, number)
        return {**select_rows(together, keep), "scores": scores}


def detect(
    model: nn.Module, images: Sequence[Tensor], merged: DetectionViews | None = None
) -> list[Detections]:
    """Detections of each image, masks as run-length codes as soon as they are predicted.

    Args:
        model: A detector in evaluation mode.
        images: (3, H, W) float each, as the detector takes them.
        merged: How images are looked at; None: as the detector does.
    """
    with encode_predicted_masks(model):
        found = merged(model, images) if merged else model(list(images))
    return [encode_detections(one) for one in found]


def select_rows(found: Detections, keep: Tensor) -> Detections:
    """Some detections of one image, in the given order of positions."""
    positions = keep.tolist()
    return {
        name: [values[i] for i in positions] if isinstance(values, list) else values[keep]
        for name, values in found.items()
    }


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate` and `predict` that `parse_views` reads."""
    parser.add_argument(
        "--tta", choices=("flip",), help="detector: look at every image mirrored, too"
    )
    parser.add_argument(
        "--tta-scales",
        metavar="F,F,…",
        help="detector: look at every image at these factors of its size, such as 0.75,1,1.25",
    )
    parser.add_argument(
        "--soft-nms",
        choices=("linear", "gaussian"),
        help="detector: overlapped boxes lose score instead of being dropped",
    )


def parse_views(
    options: argparse.Namespace, model: Any, mirrored_keypoints: Sequence[int] = ()
) -> DetectionViews | None:
    """What the command line asks for; None where that is the detector as it is.

    Args:
        options: Of a parser with `add_view_options`.
        model: The detector, or None for another kind of model.
        mirrored_keypoints: As `DetectionViews`'s.

    Raises:
        ValueError: An option is out of its range, or the model cannot do it.
    """
    if options.tta is None and options.tta_scales is None and options.soft_nms is None:
        return None
    if model is None:
        raise ValueError("--tta, --tta-scales and --soft-nms are for detectors; leave them out")
    try:
        scales = tuple(float(part) for part in (options.tta_scales or "1").split(","))
    except ValueError:
        raise ValueError(
            f"--tta-scales must be numbers with commas between, such as 0.75,1,1.25, got "
            f"{options.tta_scales}"
        ) from None
    merged = DetectionViews(
        flip=options.tta == "flip",
        scales=scales,
        soft_nms=SoftNMS(options.soft_nms) if options.soft_nms else None,
        mirrored_keypoints=tuple(mirrored_keypoints),
    )
    merged.check(model)
    return merged


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


# -- what is changed of a detector for a while -----------------------------------------------------


def _holder(model: nn.Module) -> Any:
    """The module with torchvision's `nms_thresh` and `detections_per_img`."""
    for holder in (getattr(model, "roi_heads", None), model):
        if hasattr(holder, "nms_thresh") and hasattr(holder, "detections_per_img"):
            return holder
    raise ValueError(
        f"--tta and --soft-nms: nothing is known of how {type(model).__name__} selects its "
        "detections; leave them out"
    )


def _limits(model: nn.Module) -> tuple[float, int]:
    """A detector's NMS threshold, and how many detections of an image it keeps."""
    selection = getattr(model, "selection", None)
    if isinstance(selection, Selection):
        return selection.nms_thresh, selection.detections_per_img
    holder = _holder(model)
    return holder.nms_thresh, holder.detections_per_img


@contextmanager
def _candidates(model: Any, soft: SoftNMS) -> Iterator[None]:
    """A detector that drops no box for another's sake."""
    if isinstance(selection := getattr(model, "selection", None), Selection):
        model.selection = replace(selection, nms_thresh=1.0, detections_per_img=CANDIDATES)
        try:
            yield
        finally:
            model.selection = selection
        return
    holder = _holder(model)
    before = holder.nms_thresh, holder.detections_per_img
    holder.nms_thresh, holder.detections_per_img = 1.0, CANDIDATES
    try:
        with _few_for_the_heads(model, soft, before[1]):
            yield
    finally:
        holder.nms_thresh, holder.detections_per_img = before


@contextmanager
def _few_for_the_heads(model: Any, soft: SoftNMS, number: int) -> Iterator[None]:
    """Only boxes that Soft-NMS would keep of this view get a mask and keypoints.

    Their scores stay what they were: among the first boxes of Soft-NMS, it keeps the same ones
    again with the same losses.
    """
    heads = getattr(model, "roi_heads", None)
    if heads is None:
        yield
        return
    original = heads.postprocess_detections

    def fewer(*args: Any) -> tuple[list[Tensor], ...]:
        rows = [
            (boxes[keep], scores[keep], labels[keep])
            for boxes, scores, labels in zip(*original(*args), strict=True)
            for keep in [batched_soft_nms(boxes, scores, labels, soft, number)[0]]
        ]
        return tuple(list(column) for column in zip(*rows, strict=True))

    heads.postprocess_detections = fewer
    try:
        yield
    finally:
        del heads.postprocess_detections


def _sizes(model: Any) -> Any:
    """The part of a detector that brings images to its size, where it is not one fixed size."""
    transform = getattr(model, "transform", None)
    if not hasattr(transform, "min_size") or getattr(transform, "fixed_size", None) is not None:
        raise ValueError(
            f"--tta-scales: {type(model).__name__} sees every image at one size, which it was "
            "built for; leave the scales out (--tta flip works)"
        )
    return transform


@contextmanager
def _scaled(model: Any, scale: float) -> Iterator[None]:
    """A detector that brings images to a multiple of its usual size."""
    if scale == 1:
        yield
        return
    transform = _sizes(model)
    before = transform.min_size, transform.max_size
    sides = before[0] if isinstance(before[0], tuple | list) else (before[0],)
    transform.min_size = tuple(max(1, round(side * scale)) for side in sides)
    transform.max_size = max(1, round(before[1] * scale))
    try:
        yield
    finally:
        transform.min_size, transform.max_size = before
