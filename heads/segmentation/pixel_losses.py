"""Losses over labelled pixels, in which ignored pixels never count.

Legend: N images, K classes (labels with a sigmoid each outside of ``multiclass``), P pixels of the
batch. Every loss divides by what is counted, and is 0 with a zero gradient where nothing is.

segmentation_models.pytorch (0.6.0) has all of them but online hard examples, and where it counts
the same pixels the numbers are equal. They are written here because its Dice divides by classes
that the batch lacks, its focal loss cannot ignore single labels of a pixel, its Lovász loss knows
only float32, and heads need torch and torchvision alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORED", "Mode", "Pixels", "cross_entropy", "dice", "focal", "lovasz", "ohem"]

Mode = Literal["multiclass", "binary", "multilabel"]

IGNORED = 255


@dataclass(frozen=True, eq=False)
class Pixels:
    """Logits and targets in the form that every loss reads.

    Every map of all classes takes a pass over memory, forward and backward: what several losses
    need is computed once, here.

    Attributes:
        logits: (N, K, H, W), float32 or float64, 0 where ignored; of ``multiclass`` the logarithm
            of their softmax, which is as good.
        labels: (N, H, W) int64 in 0..K-1 for ``multiclass``, else (N, K, H, W) of 0 and 1; 0 where
            ignored.
        valid: Bool, shaped as ``labels``: what counts.
        negative_log_likelihood: -log of the probability of what is right, shaped as ``labels``.
        mode: ``multiclass`` for a softmax; ``binary`` (K = 1) and ``multilabel`` for sigmoids.
    """

    logits: Tensor
    labels: Tensor
    valid: Tensor
    negative_log_likelihood: Tensor
    mode: Mode

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, mode: Mode) -> "Pixels":
        """Reads logits of any precision and targets that hold 255 where they are ignored.

        Args:
            logits: (N, K, H, W).
            target: Integers shaped as ``labels``; (N, H, W) will do for ``binary``.
            mode: See the attribute.
        """
        if mode == "binary":
            target = target.view_as(logits)
        valid = target != IGNORED
        labels = target.long().where(valid, 0)
        # Class by class in memory, as a softmax over classes is fastest; without a trace of what
        # stands at ignored pixels, not even of an infinity.
        precision = torch.promote_types(logits.dtype, torch.float32)
        logits = logits.to(precision, memory_format=torch.contiguous_format)
        logits = logits.masked_fill(~(valid[:, None] if mode == "multiclass" else valid), 0.0)
        if mode == "multiclass":
            logits = logits.log_softmax(dim=1)
            nll = F.nll_loss(logits, labels, reduction="none")
        else:
            truth = labels.to(precision)
            nll = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return cls(logits, labels, valid, nll, mode)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values shaped as ``labels`` over the pixels that count."""
        return values.where(self.valid, 0.0).sum() / self.valid.sum().clamp(min=1)

    @property
    def probabilities(self) -> Tensor:
        """(N, K, H, W): softmax or sigmoid."""
        return self.logits.exp() if self.mode == "multiclass" else self.logits.sigmoid()

    @property
    def truth(self) -> Tensor:
        """(K, P) bool: whether the pixel is of the class; false where ignored."""
        if self.mode != "multiclass":
            return self.by_class(self.labels).bool()
        classes = torch.arange(self.logits.shape[1], device=self.labels.device)
        return (self.labels.flatten() == classes[:, None]) & self.counted

    @property
    def counted(self) -> Tensor:
        """(K, P) or (1, P) bool: ``valid`` in the form of ``truth``."""
        if self.mode == "multiclass":
            return self.valid.flatten()[None]
        return self.by_class(self.valid)

    def sum_by_class(self, values: Tensor) -> Tensor:
        """(K,): sum of values shaped as ``labels`` over the pixels of each class that count."""
        values = values.where(self.valid, 0.0)
        if self.mode != "multiclass":
            return self.by_class(values * self.labels).sum(dim=1)
        # Row by row first: the float32 sum of a million pixels would lose the digits of the next.
        classes, rows = self.logits.shape[1], self.labels.flatten(0, 1)
        first = torch.arange(0, len(rows) * classes, classes, device=rows.device)
        sums = values.new_zeros(len(first) * classes)
        sums = sums.index_add(0, (rows + first[:, None]).flatten(), values.flatten())
        return sums.view(-1, classes).sum(dim=0)

    @staticmethod
    def by_class(maps: Tensor) -> Tensor:
        """(N, K, H, W) to (K, P)."""
        return maps.movedim(1, 0).flatten(1)


def cross_entropy(
    pixels: Pixels, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, the mean over the pixels that count; what torch's own function gives.

    Args:
        pixels: What to compare.
        class_weights: (K,). ``multiclass``: of each class, and the mean is a weighted one. Else:
            of the pixels that have the label (torch's ``pos_weight``).
        label_smoothing: Share of the probability that goes to all classes alike, or to either
            answer of a sigmoid.
    """
    weights = None if class_weights is None else class_weights.to(pixels.logits.dtype)
    if pixels.mode == "multiclass":
        loss = pixels.negative_log_likelihood
        each = None if weights is None else weights[pixels.labels].where(pixels.valid, 0.0)
        if each is not None:
            loss = loss * each
        if label_smoothing:
            maps = pixels.logits if weights is None else pixels.logits * weights[:, None, None]
            evenly = -maps.mean(dim=1)
            loss = loss * (1 - label_smoothing) + evenly * label_smoothing
        if each is None:
            return pixels.mean(loss)
        total = each.sum()
        return loss.where(pixels.valid, 0.0).sum() / total.where(total > 0, 1.0)
    truth = pixels.labels.to(pixels.logits.dtype)
    truth = truth * (1 - label_smoothing) + label_smoothing / 2
    positive = None if weights is None else weights[:, None, None]
    return pixels.mean(
        F.binary_cross_entropy_with_logits(
            pixels.logits, truth, reduction="none", pos_weight=positive
        )
    )


def focal(pixels: Pixels, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Focal loss: cross-entropy times (1 - p)^gamma, p the probability of what is right.

    Lin et al., "Focal Loss for Dense Object Detection" (1708.02002), equations 4 and 5.

    Args:
        pixels: What to compare.
        gamma: How much less the easy pixels count; 0 for cross-entropy.
        alpha: With sigmoids, weight of the pixels that have the label, against 1 - alpha for the
            others; None for 1 everywhere.
    """
    loss = pixels.negative_log_likelihood
    # Away from 0, where a power below 1 has no finite slope.
    easy = (-torch.expm1(-loss)).clamp(min=1e-7)
    loss = easy.pow(gamma) * loss
    if alpha is not None:
        loss = loss * torch.where(pixels.labels > 0, alpha, 1 - alpha)
    return pixels.mean(loss)


def dice(pixels: Pixels, smooth: float = 0.0) -> Tensor:
    """1 - Dice of the probabilities, the mean over the classes that the batch has.

    Milletari et al., "V-Net" (1606.04797), section 3, with the plain sum below as in most
    implementations: Dice = (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth), over all pixels of
    the batch that count.

    Args:
        pixels: What to compare.
        smooth: Added above and below.
    """
    size = pixels.sum_by_class(torch.ones_like(pixels.negative_log_likelihood))
    multiclass = pixels.mode == "multiclass"
    probabilities = pixels.probabilities
    ignored = ~(pixels.valid[:, None] if multiclass else pixels.valid)
    expected = probabilities.masked_fill(ignored, 0.0).sum(dim=(0, 2, 3))  # (K,)
    right = (-pixels.negative_log_likelihood).exp() if multiclass else probabilities
    both = pixels.sum_by_class(right)
    score = (2 * both + smooth) / (expected + size + smooth).clamp(min=1e-7)
    return _average_present(1 - score, size)


def lovasz(pixels: Pixels) -> Tensor:
    """Lovász extension of the Jaccard loss over the pixels of the batch.

    Berman et al., "The Lovász-Softmax loss" (1705.08790): ``multiclass`` Lovász-Softmax, the mean
    over the classes that the batch has; else the Lovász hinge, the mean over the K labels.

    Args:
        pixels: What to compare.
    """
    truth = pixels.truth
    if pixels.mode == "multiclass":
        errors = (truth.to(pixels.logits.dtype) - pixels.by_class(pixels.probabilities)).abs()
    else:
        signs = torch.where(truth, 1.0, -1.0)
        errors = 1 - pixels.by_class(pixels.logits) * signs
    # Ignored pixels come last, where they change no weight before them, and cost nothing.
    errors, order = errors.where(pixels.counted, -1.0).sort(dim=1, descending=True)
    weights = _compute_jaccard_steps(truth.gather(1, order), errors.dtype)
    losses = (errors.clamp(min=0) * weights).sum(dim=1)  # (K,)
    if pixels.mode == "multiclass":
        return _average_present(losses, truth.sum(dim=1))
    return losses.mean()


def ohem(pixels: Pixels, threshold: float = 0.7, share: float = 1 / 16) -> Tensor:
    """Cross-entropy of the hard pixels only (online hard example mining), their mean.

    Shrivastava et al. (1604.03540); for pixels Wu et al., "Bridging Category-level and Instance-
    level Semantic Image Segmentation" (1605.06885), section 3.2.

    Args:
        pixels: What to compare.
        threshold: A pixel is hard where the probability of what is right is below it.
        share: At least this share of the pixels that count is kept, the hardest ones.
    """
    loss = pixels.negative_log_likelihood.where(pixels.valid, -1.0).flatten()
    loss, _ = loss.sort(descending=True)  # ignored pixels last
    rank = torch.arange(len(loss), device=loss.device)
    counted = pixels.valid.sum()
    hard = ((-loss).exp() < threshold) | (rank < (counted * share).ceil())
    hard = hard & (rank < counted)  # the share is rounded in float32
    return loss.where(hard, 0.0).sum() / hard.sum().clamp(min=1)


def _compute_jaccard_steps(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Growth of the Jaccard loss with each further pixel that is wrong (algorithm 1).

    With I pixels of the class still right and a union of U, one more of the class adds 1 / U, and
    one more that is not adds I / (U (U - 1)). The paper subtracts neighboring values of the loss
    instead, which loses most digits where there are millions of pixels.

    Args:
        truth: (K, P) bool, by falling error.
        dtype: Of the result.

    Returns:
        (K, P).
    """
    total = truth.sum(dim=1, keepdim=True)
    wrong = truth.cumsum(dim=1)  # of the class, so far: int64, exact
    right = (total - wrong).to(dtype)
    others = torch.arange(1, truth.shape[1] + 1, device=truth.device) - wrong
    union = (total + others).to(dtype)
    steps = torch.where(truth, 1 / union, right / (union * (union - 1)).clamp(min=1))
    # Without pixels of the class, the first wrong one makes the loss 1.
    steps[:, :1] = steps[:, :1].where(total > 0, 1.0)
    return steps


def _average_present(losses: Tensor, size: Tensor) -> Tensor:
    """Mean of (K,) losses over the classes with ``size`` (K,) above 0; 0 where there is none."""
    present = size > 0
    return losses.where(present, 0.0).sum() / present.sum().clamp(min=1)
