"""Soft-NMS: overlapped boxes lose score instead of being dropped.

Legend: D boxes. Source: Bodla et al., "Soft-NMS -- Improving Object Detection With One Line of
Code" (arXiv:1704.04503), section 3 and figure 2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

from densenet_backbones.messages import check_choice, check_interval


@dataclass(frozen=True)
class SoftNMS:
    """Rule by which a box loses score to a better one of its class that it overlaps.

    Attributes:
        method: ``"linear"`` multiplies the score by ``1 - IoU`` from ``iou_threshold`` on (equation
            2 of the paper), ``"gaussian"`` by ``exp(-IoU^2 / sigma)`` at any overlap (equation 3).
        iou_threshold: lowest overlap that counts for ``"linear"``, in 0..1; the paper's 0.3.
        sigma: width of ``"gaussian"``, above 0; the paper's 0.5.
        min_score: boxes whose score falls below are dropped, in 0..1; 0.001 as the paper's code.
    """

    method: Literal["linear", "gaussian"] = "linear"
    iou_threshold: float = 0.3
    sigma: float = 0.5
    min_score: float = 0.001

    def __post_init__(self) -> None:
        check_choice("method", self.method, ("linear", "gaussian"))
        check_interval("iou_threshold", self.iou_threshold, "[0, 1]")
        check_interval("min_score", self.min_score, "[0, 1]")
        check_interval("sigma", self.sigma, "(0, inf)")

    def compute_decay(self, iou: Tensor) -> Tensor:
        """Return the factors on the scores of boxes at each overlap."""
        if self.method == "gaussian":
            return torch.exp(-(iou**2) / self.sigma)
        return torch.where(iou >= self.iou_threshold, 1 - iou, torch.ones_like(iou))


@torch.no_grad()
def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    soft: SoftNMS | None = None,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run Soft-NMS within each class.

    One box after the other is taken, always the one with the highest score left, so that the first
    ``max_detections`` are the same whether more are asked for or not. The loop runs on the CPU: on
    a GPU each of its steps would wait for the device.

    Args:
        boxes: (D, 4) xyxy in pixels.
        scores: (D,) in 0..1.
        labels: (D,) integers; boxes of different labels do not touch each other.
        soft: the rule; None for the paper's linear one.
        max_detections: stop after so many boxes; None for all.

    Returns:
        (M,) int64 positions of the kept boxes, by falling new score, and (M,) their new scores in
        the type of ``scores``; both on the device of ``boxes``.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    number = len(boxes)
    if boxes.shape != (number, 4) or scores.shape != (number,) or labels.shape != (number,):
        raise ValueError(
            "boxes must be (D, 4), scores and labels (D,), got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    soft = soft or SoftNMS()
    remaining, classes = scores.detach().float().cpu().clone(), labels.cpu()
    corners = boxes.detach().float().cpu()
    selected: list[int] = []
    new_scores: list[float] = []
    while number and len(selected) < (number if max_detections is None else max_detections):
        best = int(remaining.argmax())
        score = float(remaining[best])
        if score < soft.min_score or score <= 0:
            break
        selected.append(best)
        new_scores.append(score)
        # The other boxes of its class lose; those of other classes keep their score.
        iou = box_iou(corners[best : best + 1], corners)[0]
        remaining *= torch.where(
            classes == classes[best], soft.compute_decay(iou), torch.ones_like(iou)
        )
        remaining[best] = -1.0  # it is taken
    positions = torch.tensor(selected, dtype=torch.int64, device=boxes.device)
    return positions, torch.tensor(new_scores, dtype=scores.dtype, device=boxes.device)
