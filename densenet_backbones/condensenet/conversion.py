"""The condensed form of learned groups: an index of the inputs in use, and a standard layer.

Huang et al. (1711.09224, figure 3 and section 3.1): a learned group convolution becomes an index
layer, which copies and reorders channels, and a group convolution.

Shapes: N images, I inputs (channels), O outputs, G groups, K inputs a group keeps, H and W pixels.
"""

import copy

import torch
from torch import Tensor, nn

from densenet_backbones.condensenet.learned_groups import (
    LearnedGroupConv2d,
    LearnedGroupLinear,
    LearnedGroups,
    find_learned_groups,
)

__all__ = ["CondensedConv2d", "CondensedLinear", "convert"]


class CondensedConv2d(nn.Module):
    """An index of channels, a 1x1 group convolution, and outputs in the order they had.

    Args:
        layer: Learned group convolution that it computes.

    Attributes:
        index: Channels that the groups read, group after group, (G * K,).
        stage: Stage of condensation of ``layer``.
        in_channels: Input channels I.
        out_channels: Output channels O.
    """

    constant_buffers = True
    index: Tensor

    def __init__(self, layer: LearnedGroupConv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.groups = layer.learned_groups
        index = _list_kept(layer)  # (G, K)
        self.register_buffer("index", index.flatten())
        self.register_buffer("stage", layer.stage.clone())
        # Row o of the weight belongs to group o % G; a group convolution wants groups in a row.
        rows = layer.weight.detach().flatten(1).view(-1, *layer.mask.shape).transpose(0, 1)
        kept = rows.gather(2, index[:, None].expand(-1, rows.shape[1], -1))  # (G, O / G, K)
        with torch.device("meta"):  # its own weights are not needed
            conv = nn.Conv2d(index.numel(), self.out_channels, 1, groups=self.groups, bias=False)
        self.conv = conv
        self.conv.weight = _like(layer.weight, kept.reshape(self.out_channels, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H, W)."""
        maps: Tensor = self.conv(x.index_select(1, self.index))
        maps = maps.unflatten(1, (self.groups, -1))
        return maps.transpose(1, 2).flatten(1, 2)

    def masked_weight(self) -> Tensor:
        """Return the weight of the layer before, (O, I, 1, 1): 0 where a group reads nothing."""
        rows = self.conv.weight.reshape(self.groups, -1, self.index.numel() // self.groups)
        dense = rows.new_zeros(*rows.shape[:2], self.in_channels)
        index = self.index.view(self.groups, 1, -1).expand_as(rows)
        dense = dense.scatter(2, index, rows).transpose(0, 1)
        return dense.reshape(self.out_channels, self.in_channels, 1, 1)


class CondensedLinear(nn.Module):
    """An index of features, and a linear layer that reads these.

    Args:
        layer: Layer with learned inputs that it computes.

    Attributes:
        index: Features that are read, (K,).
        stage: Stage of condensation of ``layer``.
        in_features: Inputs I.
        out_features: Outputs O.
    """

    constant_buffers = True
    index: Tensor

    def __init__(self, layer: LearnedGroupLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        index = _list_kept(layer)[0]
        self.register_buffer("index", index)
        self.register_buffer("stage", layer.stage.clone())
        with torch.device("meta"):
            self.linear = nn.Linear(index.numel(), self.out_features)
        self.linear.weight = _like(layer.weight, layer.weight.detach()[:, index])
        self.linear.bias = _like(layer.bias, layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I) to (N, O)."""
        y: Tensor = self.linear(x.index_select(1, self.index))
        return y

    def masked_weight(self) -> Tensor:
        """Return the weight of the layer before, (O, I): 0 for features that are not read."""
        dense = self.linear.weight.new_zeros(self.out_features, self.in_features)
        return dense.index_copy(1, self.index, self.linear.weight)


def _list_kept(layer: LearnedGroups) -> Tensor:
    """List the inputs that each group reads, ascending, (G, K); all groups read as many."""
    return layer.mask.nonzero()[:, 1].view(layer.mask.shape[0], -1)


def _like(parameter: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=parameter.requires_grad)


def convert(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose learned groups are indices and standard layers.

    It computes the same from fewer parameters and multiply-adds, may be trained further and
    exported, and its weights load into the model as it was built (`checkpoints.to_ours`). Groups
    read what they have kept so far, so convert after condensing is done; a layer that has dropped
    nothing becomes a plain one.

    Args:
        model: A classifier, a feature net, or whatever holds one: a detector, a segmenter. It stays
            as it is.

    Raises:
        ValueError: The model has no learned groups.
    """
    if not any(find_learned_groups(model)):
        raise ValueError(
            f"{type(model).__name__} has no learned groups to convert; CondenseNets have, such as "
            "timm.create_model('condensenet74_features')"
        )
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LearnedGroups):
            model.set_submodule(name, _convert_layer(module).train(module.training))
    return model


def _convert_layer(layer: LearnedGroups) -> nn.Module:
    if isinstance(layer, LearnedGroupConv2d):
        if not layer.mask.all():
            return CondensedConv2d(layer)
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False, device="meta")
        conv.weight = _like(layer.weight, layer.weight.detach().clone())
        return conv
    assert isinstance(layer, LearnedGroupLinear)
    if not layer.mask.all():
        return CondensedLinear(layer)
    linear = nn.Linear(layer.in_features, layer.out_features, device="meta")
    linear.weight = _like(layer.weight, layer.weight.detach().clone())
    linear.bias = _like(layer.bias, layer.bias.detach().clone())
    return linear
