"""Freezing the first stages of a feature network, as torchvision counts its trainable layers.

Source: torchvision ``models/detection/backbone_utils.py``, ``_validate_trainable_layers``; timm's
networks say in ``feature_info`` which module ends each stage.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from densenet_backbones.heads.backbones import create_features
from densenet_backbones.heads.options import Keywords
from densenet_backbones.heads.validation import PythonModule
from densenet_backbones.stages import DenseStages

__all__ = ["FreezableModule", "count_frozen_stages", "freeze_layers", "list_stages"]

# Layers of a ResNet, which torchvision counts: stem and four stages.
ALL_LAYERS = 5


class FreezableModule(PythonModule):
    """Holds a feature network whose first stages can be frozen.

    Attributes:
        frozen_stages: Number of stages that are not trained.
    """

    frozen_stages = 0

    @property
    def feature_net(self) -> nn.Module:
        """Feature network whose stages are frozen."""
        raise NotImplementedError

    @property
    def num_stages(self) -> int:
        """Number of stages that `freeze` can count: the stem and the blocks behind it."""
        return len(list_stages(self.feature_net))

    def freeze(self, stages: int) -> None:
        """Freeze the first stages: no gradients, and norms and dropout in eval mode.

        Stages frozen earlier and no longer among the first ones are trained again.

        Args:
            stages: 0 for none, 1 for the stem, 1 + i up to block i.

        Raises:
            ValueError: There are fewer stages, or the network does not say which modules make them.
        """
        net = self.feature_net
        if isinstance(net, DenseStages):
            net.freeze(stages)
        elif stages or self.frozen_stages:
            _freeze_first(list_stages(net), stages, self.frozen_stages, self.training)
        self.frozen_stages = stages

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of all but the frozen stages."""
        super().train(mode)
        if self.frozen_stages and not isinstance(self.feature_net, DenseStages):
            for stage in list_stages(self.feature_net)[: self.frozen_stages]:
                for module in stage:
                    module.training = False
        return self


def _freeze_first(stages: list[list[nn.Module]], number: int, frozen: int, training: bool) -> None:
    """Freeze the first ``number`` of a network's stages, and train again what else is frozen."""
    if not 0 <= number <= len(stages):
        raise ValueError(f"stages must be 0 to {len(stages)}, got {number}")
    for index, stage in enumerate(stages[: max(number, frozen)]):
        for module in stage:
            module.training = training and index >= number
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(index >= number)


def count_frozen_stages(net: nn.Module, whole: nn.Module, layers: int) -> int:
    """Return how many first stages are frozen if the last ``layers`` are trained.

    Args:
        net: Feature network, which may end before its last stage.
        whole: The same with all its stages, from whose end layers are counted; the meta device
            does.
        layers: ``trainable_backbone_layers``.

    Raises:
        ValueError: ``layers`` is out of range.
    """
    number = len(list_stages(whole))
    if not 0 <= layers <= max(ALL_LAYERS, number):
        raise ValueError(
            f"trainable_backbone_layers must be 0 to {max(ALL_LAYERS, number)}, got {layers}"
        )
    return min(max(number - layers, 0), len(list_stages(net)))


def freeze_layers(model: FreezableModule, name: str, kwargs: Keywords, layers: int | None) -> None:
    """Freeze all but the last layers of a model's feature network.

    Args:
        model: Model that holds the network.
        name: timm name of the network.
        kwargs: Keyword arguments it was built with.
        layers: ``trainable_backbone_layers``; None trains all of them.

    Raises:
        ValueError: ``layers`` is out of range.
    """
    if layers is None:
        return
    with torch.device("meta"):
        whole = create_features(name, **{k: v for k, v in kwargs.items() if k != "out_indices"})
    model.freeze(count_frozen_stages(model.feature_net, whole, layers))


def list_stages(net: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of a feature network by stage: the stem, then what leads to each tap.

    Those of networks not ours are taken in the order of their registration, which in timm is that
    of the forward pass. A stem ends with the tap of stride 2, or where there is none before the
    first tap.

    Raises:
        ValueError: The network's taps are not modules of it.
    """
    if isinstance(net, DenseStages):
        return net.stage_children()
    # A stage is what lies between two taps in the order of registration.
    modules = [(name, module) for name, module in net.named_modules() if name]
    stages: list[list[nn.Module]] = []
    start = 0
    for level in net.feature_info.info:  # type: ignore[union-attr]
        span = _find_span([name for name, _ in modules], level["module"])
        if span is None:
            if stages:
                break  # the network ends before this tap
            raise ValueError(
                f"{type(net).__name__} does not say which modules make its stages, so they cannot "
                "be frozen: leave out trainable_backbone_layers and weights_backbone, or choose "
                "another"
            )
        first, last = span
        # A tap at full size ends no stage; what leads to it belongs to the stem.
        if level["reduction"] < 2:
            continue
        # Without a tap of stride 2 the stem is all that comes before the first tap.
        if not stages and level["reduction"] > 2 and first > start:
            stages.append([module for _, module in modules[start:first]])
            start = first
        stages.append([module for _, module in modules[start : last + 1]])
        start = last + 1
    return stages


def _find_span(names: Sequence[str], tap: str) -> tuple[int, int] | None:
    """First and last position of a module and all inside it, by timm's name or the flattened."""
    for name in (tap, tap.replace(".", "_")):
        inside = [i for i, n in enumerate(names) if n == name or n.startswith(f"{name}.")]
        if inside:
            return inside[0], inside[-1]
    return None
