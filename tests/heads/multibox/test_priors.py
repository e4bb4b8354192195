"""Prior boxes: counts, sizes and centers computed by hand, and torchvision's generator."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from densenet_backbones.heads.multibox.priors import (
    DSOD300_STRIDES,
    PriorSpec,
    compute_ratio_sizes,
    dsod_priors,
)

GRIDS = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2))
FIRST_OF_LEVEL = (0, 5776, 7942, 8542, 8692, 8728)  # rows * columns * A, summed by hand


@pytest.fixture(scope="module")
def voc() -> PriorSpec:
    return dsod_priors((300, 300), DSOD300_STRIDES)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ("voc", (30, 60, 111, 162, 213, 264, 315)),
        ("coco", (21, 45, 99, 153, 207, 261, 315)),
    ],
)
def test_the_ratio_rule_gives_the_published_sizes(sizes: str, expected: tuple[int, ...]) -> None:
    assert compute_ratio_sizes(300, 6, sizes) == pytest.approx(expected)
    spec = dsod_priors((300, 300), DSOD300_STRIDES, sizes)
    assert spec.min_sizes == pytest.approx(expected[:-1])
    assert spec.max_sizes == pytest.approx(expected[1:])


def test_dsod300_has_8744_priors(voc: PriorSpec) -> None:
    assert voc.priors_per_cell == (4, 6, 6, 6, 4, 4)
    boxes = voc.boxes(GRIDS)
    assert boxes.shape == (8744, 4)
    assert boxes.dtype == torch.float32
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_priors_of_one_cell_by_hand(voc: PriorSpec) -> None:
    boxes = voc.boxes(GRIDS)
    # First map, row 1, column 2: center (2.5 * 8, 1.5 * 8) = (20, 12).
    cell = boxes[(1 * 38 + 2) * 4 :][:4]
    middle = math.sqrt(30 * 60)
    wide, narrow = 30 * math.sqrt(2), 30 / math.sqrt(2)
    for prior, (width, height) in zip(
        cell, [(30, 30), (middle, middle), (wide, narrow), (narrow, wide)], strict=True
    ):
        expected = [20 - width / 2, 12 - height / 2, 20 + width / 2, 12 + height / 2]
        assert prior.tolist() == pytest.approx(expected, abs=1e-4)
    # Second map, first cell, last prior: ratio 1 : 3 of size 60 around (8, 8).
    width, height = 60 / math.sqrt(3), 60 * math.sqrt(3)
    expected = [8 - width / 2, 8 - height / 2, 8 + width / 2, 8 + height / 2]
    assert boxes[FIRST_OF_LEVEL[1] + 5].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("level", "center"),
    [(0, (4, 4)), (1, (8, 8)), (2, (16, 16)), (3, (32, 32)), (4, (50, 50)), (5, (75, 75))],
)
def test_center_of_the_first_cell(voc: PriorSpec, level: int, center: tuple[int, int]) -> None:
    box = voc.boxes(GRIDS)[FIRST_OF_LEVEL[level]]
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx(center)


def test_the_numbers_of_dsod300_are_the_published_ones() -> None:
    """DSOD's `train.py`: the stride of each map, and the step of its priors' centers."""
    assert DSOD300_STRIDES == (8, 16, 32, 64, 128, 256)
    published = dsod_priors((300, 300), DSOD300_STRIDES, faithful=True)
    assert published.steps == (8, 16, 32, 64, 100, 300)
    assert dsod_priors((300, 300), DSOD300_STRIDES).steps == (8, 16, 32, 64, 100, 150)


def _centers_of_last_map(*, faithful: bool) -> torch.Tensor:
    boxes = dsod_priors((300, 300), DSOD300_STRIDES, faithful=faithful).boxes(GRIDS)[-16:]
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_the_published_last_step_puts_twelve_priors_off_the_image() -> None:
    published, corrected = _centers_of_last_map(faithful=True), _centers_of_last_map(faithful=False)
    assert published.round().unique().tolist() == [150, 450]
    assert (published > 300).any(dim=1).sum() == 12
    assert corrected.round().unique().tolist() == [75, 225]


def test_faithful_priors_exist_for_dsod300_only() -> None:
    with pytest.raises(ValueError, match=r"image_size 300.*got \(320, 320\)"):
        dsod_priors((320, 320), DSOD300_STRIDES, faithful=True)
    with pytest.raises(ValueError, match="strides"):
        dsod_priors((300, 300), (8, 16, 32), faithful=True)


@pytest.mark.parametrize("steps", [None, (8.0, 16.0, 32.0)])
def test_equals_torchvision_on_square_images(steps: tuple[float, ...] | None) -> None:
    sizes = (16.0, 40.0, 90.0, 128.0)
    ratios = ((2.0,), (2.0, 3.0), (2.0,))
    spec = PriorSpec((128, 128), sizes[:-1], sizes[1:], ratios, steps)
    generator = DefaultBoxGenerator(
        [list(r) for r in ratios],
        scales=[size / 128 for size in sizes],
        steps=list(steps) if steps else None,
        clip=False,
    )
    maps = [torch.zeros(1, 1, side, side) for side in (17, 8, 4)]
    expected = generator(ImageList(torch.zeros(1, 3, 128, 128), [(128, 128)]), maps)[0]
    torch.testing.assert_close(
        spec.boxes([(17, 17), (8, 8), (4, 4)]), expected, atol=1e-4, rtol=1e-5
    )


def test_centers_spread_evenly_over_images_that_are_not_square() -> None:
    spec = dsod_priors((160, 320), (8, 16, 32), (10.0, 30.0, 60.0, 100.0))
    boxes = spec.boxes([(20, 40), (10, 20), (5, 10)])
    assert len(boxes) == 4 * (800 + 200 + 50)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centers[-1].tolist() == pytest.approx([320 - 16, 160 - 16])


def test_prior_numbers_of_other_depths() -> None:
    assert dsod_priors((512, 512), [8 << i for i in range(7)]).priors_per_cell == (
        (4,) + (6,) * 4 + (4,) * 2
    )
    assert dsod_priors((128, 128), [8, 16, 32]).priors_per_cell == (4, 4, 4)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"one of 'voc', 'coco', .* got 'imagenet'"):
        dsod_priors((300, 300), DSOD300_STRIDES, "imagenet")
    with pytest.raises(ValueError, match="needs 7 sizes in pixels for 6 maps, got 2"):
        dsod_priors((300, 300), DSOD300_STRIDES, (30.0, 60.0))
    with pytest.raises(ValueError, match="min size < max size, got 60"):
        dsod_priors((96, 96), (8, 16, 32), (60.0, 30.0, 70.0, 80.0))
    with pytest.raises(ValueError, match="3 or more levels, got 2"):
        dsod_priors((96, 96), (8, 16))
    with pytest.raises(ValueError, match="one entry a level, got 1, 1, 2 and none"):
        PriorSpec((96, 96), (8.0,), (16.0,), ((2.0,), (2.0,)))
    with pytest.raises(ValueError, match="one entry a level, got 0, 0, 0 and none"):
        PriorSpec((96, 96), (), (), ())
    assert PriorSpec((96, 96), (8.0,), (16.0,), ((2.0,),)).priors_per_cell == (4,)
    with pytest.raises(ValueError, match="3 levels of priors, 1 maps"):
        dsod_priors((96, 96), (8, 16, 32)).boxes([(12, 12)])
