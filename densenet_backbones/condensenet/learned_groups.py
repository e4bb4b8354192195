"""Learned group convolution: a 1x1 convolution whose groups choose their inputs in training.

Huang et al., "CondenseNet: An Efficient DenseNet using Learned Group Convolutions" (1711.09224,
section 3.1). A layer has G groups of outputs and a condensation factor C. In C - 1 stages each
group drops 1 / C of its inputs, those with the smallest sum of absolute weights, until it reads
1 / C of them. The stage and the inputs that are left are buffers of the layer: they travel in its
state, and nothing but `LearnedGroups.condense_to` changes them, so a forward pass decides nothing.

As in the authors' code (ShichenLiu/CondenseNet, ``layers.py``), output ``o`` belongs to group
``o % G``: what their converted layers interleave by a shuffle stands interleaved from the start.

Shapes: N images, I inputs (channels), O outputs, G groups, H and W pixels.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LearnedGroupConv2d",
    "LearnedGroupLinear",
    "LearnedGroups",
    "count_kept",
    "find_learned_groups",
]


def count_kept(inputs: int, condense_factor: int, stage: int) -> int:
    """Return how many inputs each group reads at a stage: ``inputs`` * (C - stage) / C, rounded up.

    Args:
        inputs: Inputs of the layer, I.
        condense_factor: Condensation factor C.
        stage: 0 (all) to C - 1.
    """
    return -(-inputs * (condense_factor - stage) // condense_factor)


class LearnedGroups(nn.Module):
    """Mask, stage and condensation of a layer with a ``weight``, into which this is mixed.

    Attributes:
        mask: True where a group reads an input, (G, I), bool.
        stage: Stages of condensation that are done, 0 to C - 1, int64 scalar.
        learned_groups: Number of groups G.
        condense_factor: Condensation factor C; 1 for a layer that keeps all inputs.
    """

    # Buffers that no forward pass changes: memory modes may run one again.
    constant_buffers = True

    weight: Tensor  # of the layer it is mixed into
    mask: Tensor
    stage: Tensor
    learned_groups: int
    condense_factor: int

    def _set_groups(self, learned_groups: int, condense_factor: int) -> None:
        outputs, inputs = self.weight.shape[:2]
        if learned_groups < 1 or outputs % learned_groups:
            raise ValueError(f"learned groups must divide the {outputs} outputs: {learned_groups}")
        if not 1 <= condense_factor <= inputs:
            raise ValueError(f"condense_factor must be 1 to {inputs} inputs: {condense_factor}")
        self.learned_groups, self.condense_factor = learned_groups, condense_factor
        self.register_buffer("mask", torch.ones(learned_groups, inputs, dtype=torch.bool))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))

    def masked_weight(self) -> Tensor:
        """Return the weight that is in use: 0 where a group has dropped an input."""
        raise NotImplementedError

    @torch.no_grad()
    def condense_to(self, stage: int) -> None:
        """Drop inputs up to a stage; a layer that is there, or further, stays as it is.

        It goes stage by stage, as each looks at the weights that the one before has left. Of equal
        sums the first input is dropped, so that every process drops the same.

        Args:
            stage: 0 to C - 1; higher ones mean C - 1.
        """
        inputs = self.mask.shape[1]
        for done in range(int(self.stage), min(stage, self.condense_factor - 1)):
            sums = self._group_weights().abs().sum(0).masked_fill(~self.mask, torch.inf)
            kept, next_kept = (
                count_kept(inputs, self.condense_factor, s) for s in (done, done + 1)
            )
            dropped = sums.argsort(dim=1, stable=True)[:, : kept - next_kept]
            # In place: compiled code and DDP hold on to the buffers.
            self.mask.scatter_(1, dropped, False)
            self.stage.fill_(done + 1)

    def group_lasso(self) -> Tensor:
        """Return the group lasso: each group's Euclidean norm of each input's weights, summed.

        It makes all outputs of a group drop the same inputs (section 3.1, "Group lasso"). It is 0
        once the last stage is done, when there is nothing left to drop.
        """
        # sqrt has no gradient at 0; the mask leaves out what was dropped, which adds nothing.
        norms = self._group_weights().square().sum(0).clamp(min=1e-12).sqrt()
        return (norms * self.mask).sum() * (self.stage < self.condense_factor - 1)

    def _group_weights(self) -> Tensor:
        """Return the weights in use, (O / G, G, I)."""
        return self.masked_weight().reshape(-1, *self.mask.shape)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take weights without mask and stage for those of a layer that dropped nothing."""
        if f"{prefix}weight" in state_dict:
            state_dict.setdefault(f"{prefix}mask", torch.ones_like(self.mask))
            state_dict.setdefault(f"{prefix}stage", torch.zeros_like(self.stage))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LearnedGroupConv2d(LearnedGroups, nn.Conv2d):
    """A 1x1 convolution without bias whose G groups of outputs learn which inputs they read.

    Args:
        in_channels: Input channels I.
        out_channels: Output channels O, a multiple of G.
        learned_groups: Groups G.
        condense_factor: Condensation factor C.

    Raises:
        ValueError: G does not divide O, or C is not within 1 and I.
    """

    convolves_masked_weight = True  # not said of heirs: see `dense_block.interfaces`

    def __init__(
        self, in_channels: int, out_channels: int, learned_groups: int, condense_factor: int
    ) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)
        self._set_groups(learned_groups, condense_factor)

    def masked_weight(self) -> Tensor:
        """Return the weight that is in use, (O, I, 1, 1): 0 where a group has dropped an input."""
        # The mask meets the weight as it is: torch.fx would keep what is made of it as a constant.
        rows = self.weight.reshape(-1, self.learned_groups, self.in_channels) * self.mask
        return rows.reshape(self.out_channels, self.in_channels, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H, W)."""
        maps: Tensor = self._conv_forward(input, self.masked_weight(), self.bias)
        return maps

    def extra_repr(self) -> str:
        """Return the settings that `print` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, learned_groups={self.learned_groups}, "
            f"condense_factor={self.condense_factor}"
        )


class LearnedGroupLinear(LearnedGroups, nn.Linear):
    """A classifier that drops inputs for all of its outputs alike: one group.

    Args:
        in_features: Inputs I.
        out_features: Outputs O.
        condense_factor: Condensation factor C; 2 drops half of the inputs, in one stage.

    Raises:
        ValueError: C is not within 1 and I.
    """

    def __init__(self, in_features: int, out_features: int, condense_factor: int) -> None:
        super().__init__(in_features, out_features)
        self._set_groups(1, condense_factor)

    def masked_weight(self) -> Tensor:
        """Return the weight that is in use, (O, I): 0 where an input was dropped."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, I) to (N, O)."""
        return F.linear(input, self.masked_weight(), self.bias)

    def extra_repr(self) -> str:
        """Return the settings that `print` shows."""
        return f"{super().extra_repr()}, condense_factor={self.condense_factor}"


def find_learned_groups(model: nn.Module) -> Iterator[LearnedGroups]:
    """Yield all layers of a model whose groups are learned."""
    return (module for module in model.modules() if isinstance(module, LearnedGroups))
