"""Costs of everything that is registered: backbones, detectors and segmenters, a line each."""

from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch
from rich.progress import track
from torch import nn

from densenet_backbones.analysis.plan import plan
from densenet_backbones.anatomy.opening import CLASSES
from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.inference.detector_facts import read_model_input
from densenet_backbones.messages import print_lines
from densenet_backbones.reporting.console import has_terminal
from densenet_backbones.torchvision_models import BACKBONES, DETECTORS, SEGMENTERS

__all__ = ["CostRow", "list_costs", "print_costs"]

CostRow = tuple[str, int, int, tuple[int, int], tuple[int, ...]]
"""Name, parameters, multiply-adds of an image, (H, W) it has, and strides of the levels."""

KINDS = {
    "backbones": tuple(BACKBONES),
    "detectors": tuple(DETECTORS),
    "segmenters": tuple(SEGMENTERS),
}


def print_costs(kinds: Sequence[str] = tuple(KINDS)) -> None:
    """Print a table a kind: ``backbones``, ``detectors``, ``segmenters``."""
    for kind in kinds:
        names = KINDS[kind]
        rows = track(names, kind, transient=True) if has_terminal() else names
        lines = [_format(row) for row in list_costs(kind, list(rows))]
        width = max(len(name) for name in names)
        head = f"  {'':{width}}  {'parameters':>12}  {'GMAC':>9}  {'at':>9}  strides"
        print_lines(f"{kind}:", head, *(f"  {name:{width}}  {rest}" for name, rest in lines))


def _format(row: CostRow) -> tuple[str, str]:
    name, parameters, macs, (height, width), strides = row
    size = f"{width}x{height}"
    levels = " ".join(map(str, strides))
    return name, f"{parameters:12,}  {macs / 1e9:9.3f}  {size:>9}  {levels}"


def list_costs(kind: str, names: Sequence[str]) -> Iterator[CostRow]:
    """Yield the costs of registered models; nothing is computed or allocated.

    A detector's are those of the part that every image runs: backbone, pyramid and dense heads. An
    R-CNN's second stage, whose work depends on the number of boxes, counts in the parameters alone.

    Args:
        kind: ``backbones``, ``detectors`` or ``segmenters``.
        names: Registered names of that kind.
    """
    for name in names:
        with torch.device("meta"):
            model = _build(kind, name)
        yield _measure(kind, name, model)


def _build(kind: str, name: str) -> nn.Module:
    if kind == "backbones":
        return timm.create_model(name)
    builder = DETECTORS[name] if kind == "detectors" else SEGMENTERS[name]
    return builder(num_classes=CLASSES)


def _measure(kind: str, name: str, model: nn.Module) -> CostRow:
    parameters = sum(p.numel() for p in model.parameters())
    if kind == "detectors":
        dense = DenseStage(model)
        strides = tuple(level.stride for level in dense.levels)
        macs = plan(dense, (1, 3, *dense.size)).macs
        return name, parameters, macs, dense.size, strides
    size = (224, 224)
    if kind == "backbones":
        cfg = timm.get_pretrained_cfg(name)
        size = size if cfg is None else (cfg.input_size[1], cfg.input_size[2])
    net = model if kind == "backbones" else _find_feature_net(model)
    strides = tuple(level.stride for level in feature_levels(net))
    return name, parameters, plan(model, (1, 3, *size)).macs, size, strides


def _find_feature_net(model: nn.Module) -> nn.Module:
    holder: Any = model
    net: nn.Module = holder.net.feature_net
    return net


class DenseStage(nn.Module):
    """Part of a detector that maps an image without looking at its values.

    Args:
        model: A detector of ours.

    Attributes:
        levels: Its prediction maps.
        size: (H, W) of the image it is made for, or its shorter side twice.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.is_dsod = hasattr(model, "prior_spec")
        publisher = self.model.adapter if self.is_dsod else self.model.backbone
        self.levels: tuple[FeatureLevel, ...] = publisher.levels
        facts = read_model_input(model)
        side = -(-facts.min_size // 32) * 32
        self.size = facts.size or (side, side)

    def forward(self, images: torch.Tensor) -> object:
        """Map images (N, 3, H, W) to the outputs of the dense head."""
        if self.is_dsod:
            return self.model.predict(images)
        maps = list(self.model.backbone(images).values())
        rpn = getattr(self.model, "rpn", None)
        head = self.model.head if rpn is None else rpn.head
        return head(maps)
