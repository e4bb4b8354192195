"""Weights of another model to start from, as far as they fit."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.model_file import (
    compare_names,
    read_spec,
    read_weights,
    select_fitting_weights,
)
from densenet_backbones.messages import pluralize
from densenet_backbones.training.tasks.task import AnyTask

LEAST_SHARE = 0.2
"""Share of a model's tensors that a network must have to be taken for its trunk."""
LEAST_TAKEN = 0.2
"""Share of the smaller one's values below which two models have little in common."""
MOST_LINES = 40
"""Tensors that are named one by one when they were left out."""


def match_trunks(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, str] | None:
    """Find the network that two models of different kinds share, by names and shapes.

    A classifier's trunk is ``net.``, a detector's ``backbone.feature_net.`` or the like.

    Args:
        weights: Tensors of a file.
        own: Tensors of the model.

    Returns:
        What stands in front of the network's names in the file, and in the model; None if no pair
        agrees in anything.
    """
    best, pair = 0, None
    for ours in _list_trunks(own):
        shapes = {
            name.removeprefix(ours): value.shape
            for name, value in own.items()
            if name.startswith(ours)
        }
        for theirs in _list_trunks(weights):
            agreeing = sum(
                shapes.get(name.removeprefix(theirs)) == value.shape
                for name, value in weights.items()
                if name.startswith(theirs)
            )
            # Of equal pairs the longest names: nothing beside the trunk is in them.
            if agreeing and (agreeing, len(ours) + len(theirs)) > (
                best,
                len("".join(pair)) if pair else -1,
            ):
                best, pair = agreeing, (theirs, ours)
    return pair


def _list_trunks(weights: Mapping[str, Tensor]) -> list[str]:
    """List the beginnings of names, up to a dot, that many of a model's tensors share."""
    counts: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")[:-1]
        counts.update(".".join((*parts[:n], "")) if n else "" for n in range(min(len(parts), 5)))
    return [name for name, count in counts.items() if count >= LEAST_SHARE * len(weights)]


def start_from(task: AnyTask, source: str) -> list[str]:
    """Take the weights of a file, or of a run's best model, that fit the model.

    Returns:
        Lines that say how many were taken and which were not, and whether that is little.

    Raises:
        CheckpointError: The file cannot be read safely, nothing in it fits, or its classes are the
            data's in another order.
    """
    file = str(find_model_file(source))
    described = read_spec(file, task.spec_type)
    other = compare_names(file, described, task.spec) if described else []
    weights = read_weights(file)
    fitting, left = select_fitting_weights(task.model, weights)
    if (trunk := match_trunks(weights, task.model.state_dict())) is not None:
        theirs, ours = trunk
        moved = {
            ours + name.removeprefix(theirs): value
            for name, value in weights.items()
            if name.startswith(theirs)
        }
        trunk_fitting, trunk_left = select_fitting_weights(task.model, moved)
        if len(trunk_fitting) > len(fitting):
            fitting, left = trunk_fitting, trunk_left
            names = (theirs or "all", ours or "all")
            other = ["  {} of the file is {} of the model".format(*names)]
    if not fitting:
        raise CheckpointError(
            f"{file}: of its {pluralize(len(weights), 'weight')} none fits {task.spec.name}; "
            f"first: {', '.join(list(weights)[:3])}"
        )
    task.model.load_state_dict(fitting, strict=False)
    own = task.model.state_dict()
    lines = [
        f"Started from {file}: {len(fitting)} of {pluralize(len(own), 'tensor')} taken.",
        *other,
        *(f"  left out: {line}" for line in left[:MOST_LINES]),
    ]
    if len(left) > MOST_LINES:
        lines.append(f"  left out: {pluralize(len(left) - MOST_LINES, 'more tensor')}")
    taken = _count_values(fitting)
    if taken < LEAST_TAKEN * min(_count_values(weights), _count_values(own)):
        lines.append(
            f"Little of {file} fits {task.spec.name}: their networks are built otherwise (growth, "
            "layers, stem); a start from random weights may be as good"
        )
    return lines


def _count_values(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
