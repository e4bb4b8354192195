"""Selection of detections: from class scores and boxes of all priors to the detections of an image.

Legend: P priors, K classes including the background (class 0), M candidates, D detections. Sources:
SSD (arXiv:1512.02325) section 2.2 and ``detection_output_layer.cpp``; numbers of szq0214/DSOD; box
voting of Gidaris and Komodakis (arXiv:1505.01749) section 5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from densenet_backbones.messages import check_interval, check_whole


@dataclass(frozen=True)
class Selection:
    """Limits by which scored boxes become detections.

    Attributes:
        score_thresh: Lowest score, exclusive, in 0..1.
        nms_thresh: Within a class, a box that overlaps a better one by more is dropped, in 0..1.
        topk_candidates: Boxes of each class that enter non-maximum suppression.
        detections_per_img: Most detections of an image, of all classes together.
        vote_thresh: Lowest IoU, in 0..1, with which a box of the same class, dropped or not, votes
            on where a detection lies (see `vote_on_boxes`); 1, as published, for no votes.
    """

    score_thresh: float = 0.01
    nms_thresh: float = 0.45
    topk_candidates: int = 400
    detections_per_img: int = 200
    vote_thresh: float = 1.0

    def __post_init__(self) -> None:
        for name in ("score_thresh", "nms_thresh", "vote_thresh"):
            check_interval(name, getattr(self, name), "[0, 1]")
        for name in ("topk_candidates", "detections_per_img"):
            check_whole(name, getattr(self, name))


def select_detections(
    scores: Tensor, boxes: Tensor, image_size: tuple[int, int], selection: Selection
) -> dict[str, Tensor]:
    """Detections of one image.

    Boxes are clipped to the image before non-maximum suppression (as torchvision does; Caffe clips
    after it), and those without area inside the image are dropped.

    Args:
        scores: (P, K) probabilities.
        boxes: (P, 4) xyxy in pixels of the image.
        image_size: (H, W) in pixels.
        selection: Thresholds and numbers.

    Returns:
        ``boxes`` (D, 4) float32 xyxy inside the image, ``scores`` (D,) falling, ``labels`` (D,)
        int64 in 1..K-1; D may be 0.
    """
    boxes = clip_boxes_to_image(boxes, image_size)
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    candidates = scores[:, 1:].where(has_area[:, None], 0.0)  # (P, K - 1): without the background
    # The best of each class on their own: NMS costs the square of what enters it.
    best, prior = candidates.topk(min(selection.topk_candidates, len(boxes)), dim=0)
    row, column = torch.where(best > selection.score_thresh)
    scores, boxes, labels = best[row, column], boxes[prior[row, column]], column + 1
    # By class, so that objects of two classes may share a place; the result falls by score.
    keep = batched_nms(boxes, scores, labels, selection.nms_thresh)
    keep = keep[: selection.detections_per_img]
    kept = boxes[keep]
    if selection.vote_thresh < 1:
        kept = vote_on_boxes(kept, labels[keep], boxes, scores, labels, selection.vote_thresh)
    return {"boxes": kept, "scores": scores[keep], "labels": labels[keep]}


def vote_on_boxes(
    kept: Tensor,
    kept_labels: Tensor,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float,
) -> Tensor:
    """Move each kept box to the mean of the candidates that overlap it, weighted by their scores.

    Non-maximum suppression keeps the box with the best score, which need not lie best; what it
    drops says more about where the object ends. Scores stay as they are.

    Args:
        kept: (D, 4) xyxy boxes that non-maximum suppression kept.
        kept_labels: (D,) their classes.
        boxes: (M, 4) xyxy candidates, the kept boxes among them.
        scores: (M,) their scores, 0 for those that have no vote.
        labels: (M,) their classes.
        threshold: Lowest IoU with which a candidate of the same class votes.

    Returns:
        (D, 4) boxes, those of kept boxes without any vote as they were.
    """
    votes = (box_iou(kept, boxes) >= threshold) & (kept_labels[:, None] == labels)
    weights = votes * scores  # (D, M)
    total = weights.sum(dim=1, keepdim=True)
    # No product of matrices, which autocast would compute in half precision.
    sums = torch.stack([(weights * side).sum(dim=1) for side in boxes.unbind(dim=1)], dim=1)
    return torch.where(total > 0, sums / total.where(total > 0, 1.0), kept)
