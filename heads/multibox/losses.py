"""SSD's multibox loss with hard negative mining.

Legend: N images, P priors, K classes including the background (class 0). Source: SSD
(arXiv:1512.02325) section 2.2 and ``multibox_loss_layer.cpp`` (mining type MAX_NEGATIVE,
normalization VALID), as DSOD uses it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.heads.multibox.matching import PriorTargets


def hardest_negatives(class_loss: Tensor, positive: Tensor, per_positive: float = 3.0) -> Tensor:
    """Background priors that take part in the loss, chosen for each image on its own.

    Args:
        class_loss: (N, P) classification loss of each prior, of the background where not positive.
        positive: (N, P) bool, priors that are matched to an object.
        per_positive: Number of negatives for each positive of the same image.

    Returns:
        (N, P) bool: the priors with the highest loss among the negatives, ``per_positive`` times
        the image's positives, or all negatives where there are fewer. None in an image without
        objects.
    """
    loss = class_loss.detach().masked_fill(positive, -torch.inf)
    number = (positive.sum(dim=1, keepdim=True) * per_positive).long()  # (N, 1)
    # Positives sort last, at minus infinity; the first ranks of each image go back to their places.
    by_loss = loss.argsort(dim=1, descending=True)
    rank = torch.arange(loss.shape[1], device=loss.device).expand_as(loss)
    chosen = torch.zeros_like(positive).scatter(1, by_loss, rank < number)
    return chosen & ~positive  # where the number exceeds the negatives, positives are in it


def multibox_loss(
    class_logits: Tensor,
    box_codes: Tensor,
    targets: PriorTargets,
    negatives_per_positive: float = 3.0,
    smooth_l1_beta: float = 1.0,
) -> dict[str, Tensor]:
    """Classification and localization loss of a batch.

    Softmax cross-entropy over the positives and the hardest negatives, and smooth L1 over the
    positives' codes, both divided by the number of positives in the batch. An image without objects
    adds nothing (SSD mines negatives by the positives of the same image); a batch without objects
    gives zeros that still reach every parameter, so that distributed training goes on.

    Computed in float32 whatever the precision of the inputs.

    Args:
        class_logits: (N, P, K).
        box_codes: (N, P, 4).
        targets: Labels (N, P) in 0..K-1 and codes (N, P, 4).
        negatives_per_positive: SSD's 3.
        smooth_l1_beta: Error of a code below which the loss is a parabola: SSD's 1. Less makes
            small errors weigh more.

    Returns:
        ``classification`` and ``bbox_regression`` (torchvision's names), scalars, float32.
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        positive = targets.labels > 0
        # Of every prior, since mining ranks the negatives by it.
        class_loss = F.cross_entropy(
            class_logits.float().flatten(0, 1), targets.labels.flatten(), reduction="none"
        ).view_as(targets.labels)
        negative = hardest_negatives(class_loss, positive, negatives_per_positive)
        box_loss = F.smooth_l1_loss(
            box_codes.float(), targets.codes, reduction="none", beta=smooth_l1_beta
        ).sum(dim=-1)
        # One number for the batch, as Caffe's VALID, and at least 1 for a batch without objects.
        normalizer = positive.sum().clamp(min=1)
        return {
            "classification": class_loss.where(positive | negative, 0.0).sum() / normalizer,
            "bbox_regression": box_loss.where(positive, 0.0).sum() / normalizer,
        }
