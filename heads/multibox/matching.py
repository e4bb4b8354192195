"""Matching of priors and objects: SSD's bipartite and per-prior matching.

Legend: B boxes (objects), P priors, N images. Source: SSD (arXiv:1512.02325) section 2.2 and
``MatchBBox`` of its Caffe code (``bbox_util.cpp``, match type PER_PREDICTION).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from densenet_backbones.heads.multibox.box_coding import encode

UNMATCHED = -1


class PriorTargets(NamedTuple):
    """Targets of every prior of a batch.

    Attributes:
        labels: (N, P) int64, 0 for the background.
        codes: (N, P, 4) float32; meaningless where the label is 0.
    """

    labels: Tensor
    codes: Tensor


def match_best_priors(iou: Tensor) -> Tensor:
    """The bipartite step: every box gets a prior of its own.

    The same pairs as picking, again and again, the highest overlap between a box and a prior that
    are both free. When two boxes have the same best prior, the one with the higher overlap gets it
    (the earlier one on a tie) and the other takes its best prior among the rest; so no object is
    lost, which a plain arg-max would do.

    Here all boxes ask at once, a prior keeps its best suitor and the others ask on: with overlap as
    the preference of both sides that ends in the same pairs (Gale and Shapley 1962), after one or
    two rounds instead of B.

    Args:
        iou: (B, P) overlaps.

    Returns:
        (B,) int64 prior of each box, all different; `UNMATCHED` where a box overlaps no prior that
        is left.
    """
    remaining = iou.clone()
    order = torch.arange(len(iou), device=iou.device)
    while True:
        # Every box asks for its best prior among those that have not refused it.
        overlap, prior = remaining.max(dim=1)
        # (B, B): which boxes go before which, by overlap and on a tie by order, as one at a time.
        ahead = (overlap[None, :] > overlap[:, None]) | (
            (overlap[None, :] == overlap[:, None]) & (order[None, :] < order[:, None])
        )
        refused = (ahead & (prior[None, :] == prior[:, None])).any(dim=1) & (overlap > 0)
        if not refused.any():
            return torch.where(overlap > 0, prior, UNMATCHED)
        # A refused box asks on; a prior only ever changes to a better suitor, so this ends.
        remaining[order[refused], prior[refused]] = 0


def match_priors(boxes: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """The object of each prior.

    A prior learns the box it overlaps most if their IoU is at least ``threshold``; besides, every
    box keeps the prior of `match_best_priors`, however small the overlap.

    Args:
        boxes: (B, 4) xyxy, B may be 0.
        priors: (P, 4) xyxy in the same frame.
        threshold: Lowest IoU, in 0..1.

    Returns:
        (P,) int64 index into ``boxes``, `UNMATCHED` for priors that learn the background.
    """
    if len(boxes) == 0:
        return torch.full((len(priors),), UNMATCHED, dtype=torch.int64, device=priors.device)
    iou = box_iou(boxes, priors)  # (B, P)
    overlap, best_box = iou.max(dim=0)
    matches = torch.where(overlap >= threshold, best_box, UNMATCHED)
    # Last, so that a box keeps its own prior although another one overlaps that prior more.
    own_prior = match_best_priors(iou)
    overlaps = own_prior != UNMATCHED
    matches[own_prior[overlaps]] = torch.arange(len(boxes), device=boxes.device)[overlaps]
    return matches


def out_of_reach(boxes: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """Boxes that no prior can match: even their best prior overlaps less than ``threshold``.

    Such an object still trains the one prior that the bipartite step gives it, but a dataset with
    many of them needs other prior sizes or a larger input.

    Args:
        boxes: (B, 4) xyxy.
        priors: (P, 4) xyxy in the same frame.
        threshold: IoU, in 0..1.

    Returns:
        (B,) bool.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.bool, device=boxes.device)
    overlap: Tensor = box_iou(boxes, priors)
    return overlap.amax(dim=1) < threshold


@torch.no_grad()
def assign_targets(
    targets: Sequence[dict[str, Tensor]], priors: Tensor, threshold: float = 0.5
) -> PriorTargets:
    """Labels and codes that the priors of a batch should predict.

    Args:
        targets: N dicts with ``boxes`` (B, 4) xyxy in the priors' frame and ``labels`` (B,) int64
            from 1.
        priors: (P, 4) xyxy float32.
        threshold: Lowest IoU of a match, in 0..1.
    """
    labels, codes = [], []
    for target in targets:
        boxes = target["boxes"].float()
        matches = match_priors(boxes, priors, threshold)
        # Without objects there is no row to gather: all priors learn the background.
        if len(boxes) == 0:
            labels.append(torch.zeros_like(matches))
            codes.append(torch.zeros_like(priors))
            continue
        # Unmatched priors gather row 0: their codes are finite, and the loss leaves them out.
        index = matches.clamp(min=0)
        labels.append(torch.where(matches == UNMATCHED, 0, target["labels"][index]))
        codes.append(encode(boxes[index], priors))
    return PriorTargets(torch.stack(labels), torch.stack(codes))
