"""Condensation of a whole model: its stage as a function of a training's progress, and the lasso.

Huang et al. (1711.09224, section 3.1): condensing takes the first half of a training, in C - 1
stages of equal length, each of which ends by dropping 1 / C of the inputs; the other half trains
what is left.
"""

import math

import torch
from torch import Tensor, nn

from densenet_backbones.condensenet.learned_groups import (
    LearnedGroupConv2d,
    find_learned_groups,
)
from densenet_backbones.messages import check_interval

__all__ = ["choose_stage", "condense", "group_lasso", "is_condensing"]


def choose_stage(progress: float, condense_factor: int, until: float = 0.5) -> int:
    """Return the stage of a layer at a training's progress, 0 to C - 1.

    Args:
        progress: Part of the training that is done, in [0, 1].
        condense_factor: Condensation factor C.
        until: Progress at which the last inputs are dropped, in (0, 1].

    Raises:
        ValueError: ``progress`` or ``until`` is out of range.
    """
    check_interval("progress", progress, "[0, 1]")
    check_interval("until", until, "(0, 1]")
    # 1e-9: 0.15 / 0.5 * 10 is 2.9999999999999996 in binary and means 3.
    stage = math.floor(progress / until * (condense_factor - 1) + 1e-9)
    return min(stage, condense_factor - 1)


def condense(model: nn.Module, progress: float, until: float = 0.5) -> int:
    """Bring all learned groups of a model to the stage of a training's progress.

    Stages go up only: a model that is further stays as it is, such as one that starts from
    condensed weights.

    Args:
        model: A model with learned groups anywhere in it; one without stays as it is.
        progress: Part of the training that is done, in [0, 1].
        until: Progress at which the last inputs are dropped, in (0, 1].

    Returns:
        Layers that dropped inputs.

    Raises:
        ValueError: ``progress`` or ``until`` is out of range.
    """
    changed = 0
    for layer in find_learned_groups(model):
        before = int(layer.stage)
        layer.condense_to(choose_stage(progress, layer.condense_factor, until))
        changed += int(layer.stage) > before
    return changed


def is_condensing(model: nn.Module) -> bool:
    """Return True if a learned group of the model has stages of condensation before it."""
    return any(int(layer.stage) < layer.condense_factor - 1 for layer in find_learned_groups(model))


def group_lasso(model: nn.Module) -> Tensor | None:
    """Sum the group lasso of all learned group convolutions; None for a model without any.

    The loss takes it times 1e-5 (the authors' ``--group-lasso-lambda``). Each convolution's part
    is 0 once its last stage, C - 1, is done.
    """
    layers = [m for m in model.modules() if isinstance(m, LearnedGroupConv2d)]
    return torch.stack([layer.group_lasso() for layer in layers]).sum() if layers else None
