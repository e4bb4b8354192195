"""Every detector on any backbone, and the U-Net, on a CondenseNet."""

import pytest
import torch
from tiny_nets import tiny_fields

from densenet_backbones.condensenet import condense, convert, find_learned_groups
from densenet_backbones.heads.segmentation.unet import unet
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.torchvision_models import DETECTORS

NAME = "condensenet74_features"
BODY = {"backbone": NAME, "backbone_kwargs": tiny_fields(NAME, layers=1)}
GENERIC = [name for name in DETECTORS if "densenet" not in name and not name.startswith("dsod")]
FEW = {
    "rpn_pre_nms_top_n_test": 40,
    "rpn_post_nms_top_n_train": 8,
    "rpn_post_nms_top_n_test": 8,
    "box_batch_size_per_image": 4,
    "box_detections_per_img": 4,
    "box_score_thresh": 0.0,
}


def build(name: str):
    torch.manual_seed(0)
    options = {**BODY, "out_channels": 64}
    if name.startswith("ssd"):
        options |= {"image_size": 64}
    else:
        options |= {"min_size": 64, "max_size": 96}
    if "rcnn" in name:
        options |= FEW | ({"num_keypoints": 3} if name.startswith("keypoint") else {})
    else:
        options |= {"score_thresh": 0.0}
    return build_registered("detector", name, 4, options)


def make_target():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 8:40, 8:40] = 1
    points = torch.tensor([[[10.0, 10, 2], [20, 20, 2], [30, 30, 2]]])
    boxes = torch.tensor([[8.0, 8, 40, 40]])
    return {"boxes": boxes, "labels": torch.tensor([1]), "masks": mask, "keypoints": points}


@pytest.mark.parametrize("name", GENERIC)
def test_detectors_learn_and_detect_the_same_when_converted(name):
    detector = build(name)
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))] * 2
    losses = detector.train()(images, [make_target(), make_target()])
    torch.stack(list(losses.values())).sum().backward()
    layers = list(find_learned_groups(detector))
    assert layers and all(layer.weight.grad is not None for layer in layers)
    condense(detector, 1.0)
    with torch.no_grad():
        expected, found = detector.eval()(images), convert(detector).eval()(images)
    assert sum(len(result["boxes"]) for result in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-4, atol=1e-2)


def test_a_unet_reads_the_last_map_of_each_stride():
    channels = [8] * 5
    model = unet(num_classes=3, **BODY, decoder_channels=channels)
    levels = model.net.backbone.levels
    assert [(level.name, level.stride) for level in levels[:2]] == [("c2", 2), ("c3", 4)]
    condense(model, 1.0)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = convert(model).eval().net(x), model.eval().net(x)
    assert found.shape == (2, 3, 64, 96)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
