"""Non-maximum suppression with fixed shapes, the last step of exported detectors.

Legend: D detections that an image can have at most, M candidates, P priors, K classes including the
background (class 0). Boxes are xyxy in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from densenet_backbones.heads.multibox.selection import Selection, vote_on_boxes

__all__ = [
    "Candidates",
    "PaddedDetections",
    "keep_marked",
    "run_padded_nms",
    "select_by_class",
]


class Candidates(NamedTuple):
    """Scored boxes before non-maximum suppression, those below the threshold among them.

    Attributes:
        boxes: (M, 4) float32, no coordinate below 0.
        scores: (M,) float32 in 0..1.
        labels: (M,) int64, 0 or more.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class PaddedDetections(NamedTuple):
    """Detections of one image, best first; behind them empty slots, in which all is 0.

    Attributes:
        boxes: (D, 4) float32.
        scores: (D,) float32.
        labels: (D,) int64.
        num_detections: () int64, the number of detections before the empty slots.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    num_detections: Tensor


def run_padded_nms(candidates: Candidates, selection: Selection) -> PaddedDetections:
    """Suppress overlapped boxes of each class, and keep the D best in tensors of fixed shapes.

    The result is that of `torchvision.ops.batched_nms` on the candidates above the threshold, and
    of equal scores the candidate that comes first goes first. Classes are kept apart as that
    function does it for up to 1000 boxes on a CPU, by moving each by a multiple of the largest
    coordinate. For more boxes it goes by single classes: then, two boxes whose overlap is within
    float32's rounding of the threshold, at coordinates of as many image sides as there are classes,
    may fare differently here.

    Args:
        candidates: Candidates of one image.
        selection: ``score_thresh`` (exclusive), ``nms_thresh``, ``vote_thresh`` and
            ``detections_per_img``, which is D; ``topk_candidates`` belongs to the making of
            candidates.
    """
    # Two candidates that are none come first. Empty slots point at the first; and since neither
    # suppresses the other, two boxes are always kept, as torchvision promises `torch.export`.
    boxes = torch.cat((candidates.boxes.new_zeros(2, 4), candidates.boxes))
    scores = torch.cat((candidates.scores.new_full((2,), -1), candidates.scores))
    labels = torch.cat((candidates.labels.new_zeros(2), candidates.labels))
    valid = scores > selection.score_thresh

    # All that do not count share one box beyond the image, so that the first of them suppresses
    # the others: a long list of mutually distinct boxes would be compared pair by pair.
    apart = labels.to(boxes) * (boxes.where(valid[:, None], 0.0).max() + 1)
    beyond = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    moved = (boxes + apart[:, None]).where(valid[:, None], beyond[0])
    moved = torch.cat((beyond, moved[2:]))
    selected = nms(moved, scores.where(valid, -1.0), selection.nms_thresh)

    size = selection.detections_per_img
    selected = torch.cat((selected, selected.new_zeros(size)))[:size]
    filled = valid[selected]
    kept = boxes[selected]
    if selection.vote_thresh < 1:
        weights = scores.where(valid, 0.0)
        kept = vote_on_boxes(kept, labels[selected], boxes, weights, labels, selection.vote_thresh)
    return PaddedDetections(
        kept.where(filled[:, None], 0.0),
        scores[selected].where(filled, 0.0),
        labels[selected].where(filled, 0),
        filled.sum(),
    )


def keep_marked(detections: PaddedDetections, marked: Tensor) -> PaddedDetections:
    """Keep the marked detections in their order, and close the gaps.

    Args:
        detections: Detections of one image.
        marked: (D,) bool; marks of empty slots do not count.
    """
    size = len(marked)
    place = torch.arange(size, device=marked.device)
    marked = marked & (place < detections.num_detections)
    # Distinct numbers: the order does not hang on how ties are broken.
    order = (place + size * (~marked).long()).topk(size, largest=False).indices
    filled = marked[order]
    return PaddedDetections(
        detections.boxes[order].where(filled[:, None], 0.0),
        detections.scores[order].where(filled, 0.0),
        detections.labels[order].where(filled, 0),
        filled.sum(),
    )


def select_by_class(scores: Tensor, boxes: Tensor, number: int) -> Candidates:
    """Select the best boxes of each class but the background, as SSD and DSOD do.

    Args:
        scores: (P, K) probabilities.
        boxes: (P, 4).
        number: Boxes to select of each class, or all P if these are fewer.
    """
    best, prior = scores[:, 1:].topk(min(number, len(boxes)), dim=0)  # (number, K - 1)
    labels = torch.arange(1, scores.shape[1], device=scores.device).expand_as(prior)
    return Candidates(boxes[prior.flatten()], best.flatten(), labels.flatten())
