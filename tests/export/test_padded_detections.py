"""Non-maximum suppression of fixed shapes, against torchvision's function."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from densenet_backbones.export.padded_detections import (
    Candidates,
    PaddedDetections,
    keep_marked,
    run_padded_nms,
    select_by_class,
)
from densenet_backbones.heads.multibox.selection import Selection, select_detections


def random_candidates(number: int, seed: int = 0, classes: int = 4, side: float = 60) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * side
    extent = 20 + torch.rand(number, 2, generator=generator) * 20
    boxes = torch.cat((corner, corner + extent), dim=1)
    labels = torch.randint(0, classes, (number,), generator=generator)
    return Candidates(boxes, torch.rand(number, generator=generator), labels)


def torchvisions(candidates: Candidates, selection: Selection) -> Candidates:
    kept = candidates.scores > selection.score_thresh
    boxes, scores, labels = (part[kept] for part in candidates)
    best = batched_nms(boxes, scores, labels, selection.nms_thresh)
    best = best[: selection.detections_per_img]
    return Candidates(boxes[best], scores[best], labels[best])


def assert_padded(found: PaddedDetections, expected: Candidates, size: int) -> None:
    count = len(expected.boxes)
    assert found.num_detections.item() == count and found.num_detections.shape == ()
    for part, wanted in zip(found[:3], expected, strict=True):
        assert len(part) == size and part.dtype == wanted.dtype
        assert torch.equal(part[:count], wanted)
        assert (part[count:] == 0).all()


@pytest.mark.parametrize("number", [1, 60, 700, 2500])  # above 1000 torchvision goes by classes
@pytest.mark.parametrize(
    "selection",
    [
        Selection(0.05, 0.5, 400, 100),
        Selection(0.6, 0.2, 400, 7),
        Selection(0.0, 0.45, 400, 3000),
        Selection(0.0, 1.0, 400, 80),  # nothing is suppressed
        Selection(0.5, 0.0, 400, 40),  # whatever touches
    ],
)
def test_equals_torchvision(number: int, selection: Selection) -> None:
    candidates = random_candidates(number)
    expected = torchvisions(candidates, selection)
    if number > 60 and selection.nms_thresh < 1:
        assert len(expected.boxes) < number / 2  # there is something to suppress
    found = run_padded_nms(candidates, selection)
    assert_padded(found, expected, selection.detections_per_img)


def test_nothing_above_the_threshold_is_all_zeros() -> None:
    candidates = random_candidates(50)._replace(scores=torch.full((50,), 0.3))
    found = run_padded_nms(candidates, Selection(0.3, 0.5, 400, 9))
    assert_padded(found, Candidates(*(part[:0] for part in candidates)), 9)


def test_no_candidates_at_all() -> None:
    candidates = Candidates(*(part[:0] for part in random_candidates(3)))
    assert_padded(run_padded_nms(candidates, Selection(0.0, 0.5, 400, 4)), candidates, 4)


def test_of_equal_scores_the_first_comes_first() -> None:
    box = torch.tensor([[1.0, 1, 9, 9]])
    far = torch.tensor([[50.0, 50, 60, 60]])
    candidates = Candidates(
        torch.cat((far, box, box + 0.5, far + 30, box)),
        torch.full((5,), 0.5),
        torch.tensor([2, 1, 1, 1, 3]),
    )
    found = run_padded_nms(candidates, Selection(0.1, 0.5, 400, 6))
    kept = [0, 1, 3, 4]  # the third is suppressed by the second, the last is of another class
    assert_padded(found, Candidates(*(part[kept] for part in candidates)), 6)


def test_boxes_without_area_and_at_the_origin_count() -> None:
    """They are what empty slots look like, and torchvision keeps them."""
    boxes = torch.tensor([[0.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 5, 5], [3.0, 3, 3, 8]])
    candidates = Candidates(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4).long())
    selection = Selection(0.1, 0.5, 400, 8)
    expected = torchvisions(candidates, selection)
    assert len(expected.boxes) == 4
    assert_padded(run_padded_nms(candidates, selection), expected, 8)


def test_only_closes_gaps() -> None:
    found = run_padded_nms(random_candidates(30), Selection(0.2, 0.5, 400, 12))
    count = int(found.num_detections)
    assert 4 < count <= 12
    wanted = torch.arange(12) % 3 != 1
    kept = [index for index in range(count) if wanted[index]]
    assert_padded(keep_marked(found, wanted), Candidates(*(part[kept] for part in found[:3])), 12)
    none = Candidates(*(part[:0] for part in found[:3]))
    assert_padded(keep_marked(found, torch.zeros(12, dtype=torch.bool)), none, 12)
    everything = Candidates(*(part[:count] for part in found[:3]))
    assert_padded(keep_marked(found, torch.ones(12, dtype=torch.bool)), everything, 12)


@pytest.mark.parametrize("vote_thresh", [1.0, 0.4])
@pytest.mark.parametrize(("priors", "number"), [(60, 10), (12, 400)])
def test_with_the_candidates_of_dsod(priors: int, number: int, vote_thresh: float) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = (torch.randn(priors, 5, generator=generator) * 2).softmax(dim=1)
    boxes = random_candidates(priors).boxes
    selection = Selection(0.1, 0.45, number, 50, vote_thresh)
    found = run_padded_nms(select_by_class(scores, boxes, number), selection)
    wanted = select_detections(scores, boxes, (200, 200), selection)
    expected = Candidates(wanted["boxes"], wanted["scores"], wanted["labels"])
    assert len(set(wanted["labels"].tolist())) == 4
    assert_padded(found, expected, 50)


@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint")  # torchvision's
def test_shapes_can_be_followed_by_torch_export() -> None:
    class Ending(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> PaddedDetections:
            candidates = Candidates(boxes, scores, labels)
            found = run_padded_nms(candidates, Selection(0.5, 0.5, 9, 20, vote_thresh=0.3))
            return keep_marked(found, found.boxes[:, 2] > 30)

    number = torch.export.Dim("number", min=2, max=5000)
    shapes = ({0: number}, {0: number}, {0: number})
    program = torch.export.export(Ending(), tuple(random_candidates(80)), dynamic_shapes=shapes)
    for candidates in (random_candidates(300, 1), random_candidates(5, 2)):
        for scale in (1.0, 0.4):  # with the second, nothing is found
            given = candidates._replace(scores=candidates.scores * scale)
            for one, other in zip(program.module()(*given), Ending()(*given), strict=True):
                assert torch.equal(one, other)
