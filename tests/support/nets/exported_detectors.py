"""Detectors with random weights whose non-maximum suppression has work to do, for tests of export.

Scores are spread over a range without ties, since the order of equal scores is nobody's to say, and
boxes lie near their anchors.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from tiny_nets import randomise_norms
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork

from densenet_backbones.heads import dsod300
from densenet_backbones.heads.detection.one_stage import fcos_fpn, retinanet_fpn
from densenet_backbones.heads.detection.ssd import ssd300

CLASSES = 5
BODY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
DSOD_ARGS = {
    "image_size": 64,
    "adapter_channels": [8, 8, 8],
    "backbone": "dsod_smallest_features",
    "backbone_kwargs": BODY,
}
# Two levels: a third of the time that five take to export, and nothing less to go wrong.
PYRAMID_ARGS = {
    "backbone_kwargs": BODY,
    "out_channels": 64,
    "min_stride": 16,
    "extra": None,
    "min_size": 128,
    "max_size": 200,
    "topk_candidates": 200,  # less than the finer level has
}


class TwoMaps(nn.Module):
    """Maps of strides 8 and 16, as a pyramid of 64 channels or as they are."""

    def __init__(self, pyramid: bool) -> None:
        super().__init__()
        width = 64
        self.fine = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.coarse = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.pyramid = FeaturePyramidNetwork([width, width], width) if pyramid else None
        self.out_channels: Any = width if pyramid else [width, width]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.fine(x)
        maps = OrderedDict(fine=fine, coarse=self.coarse(fine))
        return maps if self.pyramid is None else self.pyramid(maps)


def torchvisions_retinanet() -> nn.Module:
    anchors = AnchorGenerator(((24, 32), (48, 64)), ((0.5, 1.0, 2.0),) * 2)
    sizes = {"min_size": 128, "max_size": 200, "topk_candidates": 300}
    return RetinaNet(TwoMaps(True), CLASSES, anchor_generator=anchors, **sizes)


def torchvisions_fcos() -> nn.Module:
    points = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(TwoMaps(True), CLASSES, anchor_generator=points, min_size=96, max_size=128)


def torchvisions_ssd() -> nn.Module:
    boxes = DefaultBoxGenerator([[2], [2, 3]], steps=[8, 16])
    return SSD(TwoMaps(False), boxes, (96, 80), CLASSES, topk_candidates=30)


KINDS = {
    "dsod": lambda: dsod300(num_classes=CLASSES, **DSOD_ARGS),
    "dsod with votes": lambda: dsod300(num_classes=CLASSES, vote_thresh=0.3, **DSOD_ARGS),
    "ssd": lambda: ssd300(
        num_classes=CLASSES, image_size=64, backbone_kwargs=BODY, out_channels=64
    ),
    "retinanet": lambda: retinanet_fpn(num_classes=CLASSES, **PYRAMID_ARGS),
    "fcos": lambda: fcos_fpn(num_classes=CLASSES, **PYRAMID_ARGS),
    "torchvision's retinanet": torchvisions_retinanet,
    "torchvision's fcos": torchvisions_fcos,
    "torchvision's ssd": torchvisions_ssd,
}

_LAST_LAYERS = {  # of logits, of codes: names within the head
    "class_norms": "logits",
    "box_norms": "codes",
    "classification_head.module_list": "logits",
    "regression_head.module_list": "codes",
    "classification_head.cls_logits": "logits",
    "regression_head.bbox_reg": "codes",
    "regression_head.bbox_ctrness": "centres",
}


def lively(kind: str) -> Any:
    """A detector in evaluation mode that finds much in noise.

    RetinaNets find nothing in a `plain_image`.
    """
    torch.manual_seed(0)
    model: Any = randomise_norms(KINDS[kind]())
    model.eval()
    for name, parameter in model.head.named_parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
    noise = noise_images([(150, 170)])[0]
    largest = _largest_outputs(model, noise)
    for name, layer in model.head.named_modules():
        # Below 6 a sigmoid is far from where float32 has no more numbers below 1.
        wanted = {"logits": 4.0, "codes": 1.5, "centres": 3.0}
        what = next((w for part, w in _LAST_LAYERS.items() if part in name), None)
        if what is not None and hasattr(layer, "weight"):
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.data.mul_(wanted[what] / largest[what])
    if hasattr(model, "center_sampling_radius"):  # FCOS: distances below 0 make no box
        model.head.regression_head.bbox_reg.bias.data.add_(1.0)
    # The others' heads norm their input: they are as sure of plain gray as of noise.
    retinanet = "retinanet" in kind
    set_threshold(model, highest_score(model, plain_image()) * 1.01 if retinanet else 0.1)
    return model


@torch.no_grad()
def _largest_outputs(model: Any, image: Tensor) -> dict[str, float]:
    if hasattr(model, "predict"):
        batch, _ = model.transform([image])
        codes, logits = model.predict(batch.tensors)
        return {"codes": codes.abs().max().item(), "logits": logits.abs().max().item()}
    batch, _ = model.transform([image])
    found = model.head(list(model.backbone(batch.tensors).values()))
    names = {"cls_logits": "logits", "bbox_regression": "codes", "bbox_ctrness": "centres"}
    return {names[key]: value.abs().max().item() for key, value in found.items()}


@torch.no_grad()
def highest_score(model: Any, image: Tensor) -> float:
    set_threshold(model, 0.0)
    return model([image])[0]["scores"].max().item()


def set_threshold(model: Any, threshold: float) -> None:
    if hasattr(model, "selection"):
        model.selection = dataclasses.replace(model.selection, score_thresh=threshold)
    else:
        model.score_thresh = threshold


def plain_image() -> Tensor:
    return torch.full((3, 120, 100), 0.5)


def noise_images(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]
