"""Multibox loss and hard negative mining, against an image-by-image version."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.heads.multibox.losses import hardest_negatives, multibox_loss
from densenet_backbones.heads.multibox.matching import PriorTargets


def _case(positives: list[int], priors: int = 40, classes: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(positives))
    images = len(positives)
    logits = torch.randn(images, priors, classes, generator=generator)
    codes, wanted = torch.randn(2, images, priors, 4, generator=generator) * 2
    labels = torch.zeros(images, priors, dtype=torch.int64)
    for row, number in zip(labels, positives, strict=True):
        chosen = torch.randperm(priors, generator=generator)[:number]
        row[chosen] = torch.randint(1, classes, (number,), generator=generator)
    return logits, codes, labels, wanted


def _slow_loss(
    logits: Tensor, codes: Tensor, labels: Tensor, wanted: Tensor, beta: float
) -> dict[str, float]:
    class_sum = box_sum = 0.0
    for image in range(len(labels)):
        losses = [
            -F.log_softmax(logits[image, p], dim=0)[labels[image, p]].item()
            for p in range(labels.shape[1])
        ]
        positive = [p for p in range(labels.shape[1]) if labels[image, p] > 0]
        negative = sorted(losses[p] for p in range(labels.shape[1]) if labels[image, p] == 0)
        class_sum += sum(losses[p] for p in positive)
        class_sum += sum(negative[::-1][: 3 * len(positive)])
        for p in positive:
            difference = (codes[image, p] - wanted[image, p]).abs().tolist()
            box_sum += sum(d * d / beta / 2 if d < beta else d - beta / 2 for d in difference)
    number = max(int((labels > 0).sum()), 1)
    return {"classification": class_sum / number, "bbox_regression": box_sum / number}


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("positives", [[1], [3], [1, 0, 8], [12, 2], [40, 1], [0, 0]])
def test_equals_the_image_by_image_version(positives: list[int], beta: float) -> None:
    logits, codes, labels, wanted = _case(positives)
    losses = multibox_loss(logits, codes, PriorTargets(labels, wanted), smooth_l1_beta=beta)
    expected = _slow_loss(logits, codes, labels, wanted, beta)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_three_negatives_a_positive_image_by_image() -> None:
    loss = torch.arange(40.0).repeat(4, 1)
    positive = torch.zeros(4, 40, dtype=torch.bool)
    positive[0, 38:] = True
    positive[1, :15] = True
    positive[3, :] = True
    chosen = hardest_negatives(loss, positive)
    assert chosen.sum(dim=1).tolist() == [6, 25, 0, 0]  # the second image has 25 negatives only
    assert chosen[0].nonzero().flatten().tolist() == [32, 33, 34, 35, 36, 37]
    assert not (chosen & positive).any()


def test_a_batch_without_objects_gives_zeros_that_reach_the_network() -> None:
    logits, codes, labels, wanted = _case([0, 0])
    logits.requires_grad_()
    codes.requires_grad_()
    losses = multibox_loss(logits, codes, PriorTargets(labels, wanted))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values(), torch.zeros(())).backward()
    assert logits.grad is not None and not logits.grad.any()
    assert codes.grad is not None and not codes.grad.any()


def test_gradients_reach_positives_and_mined_negatives_only() -> None:
    logits, codes, labels, wanted = _case([2, 0])
    logits.requires_grad_()
    codes.requires_grad_()
    losses = multibox_loss(logits, codes, PriorTargets(labels, wanted))
    sum(losses.values(), torch.zeros(())).backward()
    assert logits.grad is not None and codes.grad is not None
    assert logits.grad.any(dim=-1).sum(dim=1).tolist() == [8, 0]
    assert torch.equal(codes.grad.any(dim=-1), labels > 0)


def test_losses_are_float32_under_autocast() -> None:
    logits, codes, labels, wanted = _case([3, 1])
    exact = multibox_loss(logits, codes, PriorTargets(labels, wanted))
    with torch.autocast("cpu", torch.bfloat16):
        losses = multibox_loss(logits.bfloat16(), codes.bfloat16(), PriorTargets(labels, wanted))
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.02, atol=0)
