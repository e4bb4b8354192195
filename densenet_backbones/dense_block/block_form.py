"""Forms of dense blocks: what the executions over one buffer know of a block before they run it.

A dense block is that of Huang et al. (1608.06993, section 3).

Shapes: N images, C channels, H and W pixels, k a layer's new maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from densenet_backbones.dense_block.interfaces import (
    DenseLayerLike,
    find_change,
    find_layer_change,
)
from densenet_backbones.dense_block.units import PARAMETERS, UnitForm, read_unit

__all__ = ["SAVED", "BlockForm", "LayerForm", "read_block"]

SAVED = PARAMETERS + 2  # a unit's parameters and the statistics it went by


@dataclass(frozen=True)
class LayerForm:
    """A dense layer in its present mode.

    Attributes:
        units: Norm-ReLU-convolution, once, or twice with a bottleneck.
        start: Channels it reads, C.
        width: New maps it makes, k.
        drop_rate: Probability of a new value to be dropped.
        drop_path_rate: Probability of a sample to go without the new maps.
    """

    units: tuple[UnitForm, ...]
    start: int
    width: int
    drop_rate: float
    drop_path_rate: float

    @property
    def end(self) -> int:
        """Channels of the concatenation with its new maps."""
        return self.start + self.width

    @property
    def bottleneck(self) -> bool:
        """True if there are bottleneck maps between two units."""
        return len(self.units) > 1

    @property
    def saved(self) -> int:
        """Number of tensors kept: parameters and statistics of each unit, bottleneck, two drops."""
        return SAVED * len(self.units) + 3


@dataclass(frozen=True)
class BlockForm:
    """A dense block in its present mode.

    Attributes:
        layers: Its layers, in order.
        group: Processes whose batches are normed as one; None for this process alone.
        lean: True if bottlenecks are computed again in the backward pass.
    """

    layers: tuple[LayerForm, ...]
    group: dist.ProcessGroup | None
    lean: bool

    @property
    def in_channels(self) -> int:
        """Channels of the block's input."""
        return self.layers[0].start

    @property
    def channels(self) -> int:
        """Channels of the block's output."""
        return self.layers[-1].end

    @property
    def of_batch(self) -> bool:
        """True if any layer norms its concatenation by the batch's statistics."""
        return any(layer.units[0].norm.of_batch for layer in self.layers)


def read_block(
    device: torch.device, layers: Sequence[DenseLayerLike], lean: bool
) -> BlockForm | str:
    """Return the form of a block in its present mode, or why `shared.run_shared` cannot run it.

    Args:
        device: Where the block's input is.
        layers: Dense layers in order, at least one.
        lean: Compute bottlenecks again in the backward pass instead of keeping them.

    Returns:
        The form; or the end of a sentence about the block, if a layer or a module in it is not
        known to `find_change`: a subclass, with hooks or parametrizations, an activation other than
        ReLU, a norm other than batch norm (its frozen and synchronized forms included); or if a
        layer does not take the channels that there are behind the one before it.
    """
    forms: list[LayerForm] = []
    for number, layer in enumerate(layers, start=1):
        form = _read_layer(device, layer)
        if form is None:
            name = f"denselayer{number}"
            change = find_layer_change(cast(nn.Module, layer), name, conv="masked_conv")
            change = change or f"parts of {name} do not fit together"
            return (
                "with other layers than (frozen, synchronized) batch norm, ReLU and unchanged "
                f"convolutions ({change})"
            )
        if forms and form.start != forms[-1].end:
            there = f"where there are {forms[-1].end}"
            return f"whose denselayer{number} takes {form.start} channels {there}"
        forms.append(form)
    norms = [unit.norm for form in forms for unit in form.units if unit.norm.of_batch]
    groups = {id(norm.group): norm.group for norm in norms}
    if len(groups) > 1:
        return "whose norms are synchronized over different processes"
    return BlockForm(tuple(forms), next(iter(groups.values()), None), lean)


def _read_layer(device: torch.device, layer: DenseLayerLike) -> LayerForm | None:
    if find_change(cast(nn.Module, layer), "layer") is not None:
        return None
    units = [read_unit(device, layer.norm1, layer.relu1, layer.conv1)]
    last = layer.conv1
    if layer.bottleneck:
        units.append(read_unit(device, layer.norm2, layer.relu2, layer.conv2))
        last = layer.conv2
    known = tuple(unit for unit in units if unit is not None)
    fits = not layer.bottleneck or layer.conv2.in_channels == layer.conv1.out_channels
    if len(known) < len(units) or not fits:
        return None
    rates = (layer.drop_rate, layer.drop_path_rate) if layer.training else (0.0, 0.0)
    return LayerForm(known, layer.conv1.in_channels, last.out_channels, *rates)
