"""SSD's box code: by hand, and there and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.heads.multibox.box_coding import decode, encode

pixels = st.floats(-50, 350, width=32)
sides = st.floats(1, 300, width=32)
boxes = st.tuples(pixels, pixels, sides, sides).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


def test_a_code_by_hand() -> None:
    prior = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # center (20, 40), 20 x 40
    box = torch.tensor([[20.0, 40.0, 60.0, 60.0]])  # center (40, 50), 40 x 20
    expected = [20 / 20 / 0.1, 10 / 40 / 0.1, math.log(2) / 0.2, math.log(1 / 2) / 0.2]
    assert encode(box, prior)[0].tolist() == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=5))
def test_there_and_back(pairs: list[tuple[list[float], list[float]]]) -> None:
    box = torch.tensor([pair[0] for pair in pairs])
    prior = torch.tensor([pair[1] for pair in pairs])
    # torchvision keeps decoded sides below 62.5 times the prior's.
    ratio = (box[:, 2:] - box[:, :2]) / (prior[:, 2:] - prior[:, :2])
    keep = (ratio < 62).all(dim=1)
    box, prior = box[keep], prior[keep]
    torch.testing.assert_close(decode(encode(box, prior), prior), box, atol=0.01, rtol=1e-3)


def test_decodes_batches_in_float32_and_never_overflows() -> None:
    priors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]])
    codes = torch.full((3, 2, 4), 1e4, dtype=torch.bfloat16)
    codes[0] = 0
    decoded = decode(codes, priors)
    assert decoded.shape == (3, 2, 4)
    assert decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded[0], priors)
