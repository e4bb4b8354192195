"""Run-length codes of instance masks against pycocotools, mask by mask."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from tiny_runs import RCNN_ARGS, shallow_heads
from torchvision.models import get_model

import densenet_backbones.torchvision_models  # noqa: F401 - registers our models
from densenet_backbones.data.masks import run_lengths
from densenet_backbones.data.masks.run_lengths import decode_mask, encode_masks, mirror_code
from densenet_backbones.inference.merging.detection_views import detect


@settings(max_examples=40)
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


def test_a_mirror_code_is_that_of_the_mirrored_mask():
    mask = torch.rand(1, 5, 8) > 0.5
    (code,), (mirrored,) = encode_masks(mask), encode_masks(mask.flip(-1))
    assert mirror_code(code) == mirrored


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    with shallow_heads():
        return get_model("maskrcnn_fpn", num_classes=3, **RCNN_ARGS).eval()


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 2 * 4 * 48 * 80, 2**28])
def test_masks_become_codes_piece_by_piece(piece, detector, monkeypatch):
    images = [torch.rand(3, 48, 80), torch.rand(3, 64, 50)]
    plain = detector(images)
    shapes, original = [], run_lengths.encode_masks
    monkeypatch.setattr(run_lengths, "PIECE", piece)
    monkeypatch.setattr(
        run_lengths, "encode_masks", lambda masks: shapes.append(masks.shape) or original(masks)
    )
    found = detect(detector, images)
    for one, expected in zip(found, plain, strict=True):
        assert len(one["masks"]) == len(expected["masks"]) == 5
        assert one["masks"] == original(expected["masks"])
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(one[name], expected[name])
    at_once = {1: [1] * 10, 2**28: [5, 5]}.get(piece, [2, 2, 1, 2, 2, 1])
    assert [len(shape) and shape[0] for shape in shapes] == at_once
    assert isinstance(detector(images)[0]["masks"], torch.Tensor)  # put back as it was


@torch.no_grad()
def test_an_image_without_detections_has_no_codes(detector, monkeypatch):
    monkeypatch.setattr(detector.roi_heads, "score_thresh", 1.0)
    (found,) = detect(detector, [torch.rand(3, 48, 80)])
    assert found["masks"] == [] and found["boxes"].shape == (0, 4)
