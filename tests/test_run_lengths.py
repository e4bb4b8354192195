"""Run-length codes of instance masks against pycocotools, mask by mask."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from densenet_backbones.training.run_lengths import decode_mask, encode_masks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_codes_are_pycocotools_and_come_back(seed, number, height, width):
    masks = np.random.default_rng(seed).random((number, height, width)) > 0.6
    codes = encode_masks(torch.from_numpy(masks))
    assert len(codes) == number
    for mask, code in zip(masks, codes, strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code == {"size": [height, width], "counts": expected["counts"].decode()}
        assert (decode_mask(json.loads(json.dumps(code))) == mask).all()


def test_probabilities_count_from_above_a_half():
    masks = torch.tensor([0.2, 0.5, 0.500001, 1.0]).reshape(1, 1, 2, 2)
    (code,) = encode_masks(masks)
    assert decode_mask(code).tolist() == [[False, False], [True, True]]
    (code,) = encode_masks(masks, threshold=0.1)
    assert decode_mask(code).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.int64])
def test_masks_of_any_type(dtype):
    masks = torch.tensor([[[0, 1, 0], [0, 1, 1]]]).to(dtype)
    assert decode_mask(encode_masks(masks)[0]).tolist() == [[0, 1, 0], [0, 1, 1]]


def test_nothing_and_other_shapes():
    assert encode_masks(torch.zeros(0, 1, 5, 5)) == []
    with pytest.raises(ValueError, match=r"must be \(n, H, W\) or \(n, 1, H, W\), got \(2, 3\)"):
        encode_masks(torch.zeros(2, 3))
