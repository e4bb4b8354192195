"""CondenseNet's weights, of the authors' code and of converted nets, under our names.

ShichenLiu/CondenseNet (``layers.py``, ``models/condensenet.py`` and ``condensenet_converted.py``)
names ``features.denseblock_1.denselayer_1.conv_1.norm.weight`` what is ``denseblock1.denselayer1.
norm1.weight`` here. Both codes have two forms of a net, and all four become our masked one:

=================  ===========================================================================
form               entries of a learned group convolution
=================  ===========================================================================
ours, masked       ``conv1.weight`` (O, I, 1, 1), ``conv1.mask`` (G, I), ``conv1.stage``
ours, converted    ``conv1.conv.weight`` (O, K, 1, 1), ``conv1.index`` (G * K), ``conv1.stage``
theirs, masked     ``conv_1.conv.weight``, ``conv_1._mask`` (O, I, 1, 1), ``_stage``, ``_count``
theirs, converted  ``conv_1.conv.weight``, ``conv_1.index``; ``conv_1.norm`` of its inputs alone
=================  ===========================================================================

Shapes: I inputs, O outputs, G groups, K inputs a group keeps.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError

__all__ = ["fill_learned_groups", "is_authors_name", "rename_authors"]

_AUTHORS_LAYER = re.compile(r"denseblock_(\d+)\.denselayer_(\d+)\.(?:conv_([12])\.)?")
_AUTHORS_OTHERS = (
    (re.compile(r"(?:(?<=^)|(?<=\.))init_conv\."), "conv0."),
    (re.compile(r"(?:(?<=^)|(?<=\.))norm_last\."), "norm5."),
)
_LEARNED = re.compile(r"(denseblock\d+\.denselayer\d+\.)conv1\.(?:index|_mask)")
_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def is_authors_name(name: str) -> bool:
    """Return True for a name that the authors' code gives an entry of a dense layer."""
    return _AUTHORS_LAYER.search(name) is not None


def rename_authors(name: str) -> str:
    """Return our name of an entry of the authors' code; other names as they are."""
    match = _AUTHORS_LAYER.search(name)
    if match:
        block, layer, number = match.groups()
        rest, ours = name[match.end() :], f"denseblock{block}.denselayer{layer}."
        if number and rest.startswith("norm."):
            ours += f"norm{number}."
            rest = rest.removeprefix("norm.")
        elif number:
            # Of a converted net it is conv1.conv.weight, which is told by its index later on.
            ours += f"conv{number}."
            rest = rest.removeprefix("conv.") if number == "2" else rest
        return name[: match.start()] + ours + rest
    for pattern, ours in _AUTHORS_OTHERS:
        name = pattern.sub(ours, name)
    return name


def fill_learned_groups(weights: Mapping[str, Tensor], authors: bool) -> dict[str, Tensor]:
    """Give all learned groups the entries of our masked form; what has none stays as it is.

    Args:
        weights: Weights under our names (`rename_authors`).
        authors: True for weights of the authors' code, whose converted norms are those of the
            inputs in use.

    Raises:
        CheckpointError: Shapes contradict each other, or an index points beyond the inputs.
    """
    filled = dict(weights)
    try:
        for layer in [match[1] for key in weights if (match := _LEARNED.fullmatch(key))]:
            if f"{layer}conv1.index" in filled:
                _expand_converted(filled, layer, authors)
            else:
                _read_authors_mask(filled, layer)
        if authors:  # their layers that never condensed, and counters
            for key in [key for key in filled if key.endswith(".conv1._count")]:
                del filled[key]
        if "classifier.index" in filled:
            _expand_classifier(filled)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the learned groups of the weights are no CondenseNet's ({reason}); give a whole file"
        ) from error
    return filled


def _expand_converted(weights: dict[str, Tensor], layer: str, authors: bool) -> None:
    """Put weights of an index and a group convolution where the masked form has them."""
    index = weights.pop(f"{layer}conv1.index").long()
    kept = weights.pop(f"{layer}conv1.conv.weight").flatten(1)  # (O, K), group after group
    groups = len(index) // kept.shape[1]
    inputs = _count_inputs(weights, layer) if authors else len(weights[f"{layer}norm1.weight"])
    positions = index.view(groups, 1, -1)
    rows = kept.view(groups, -1, kept.shape[1])  # (G, O / G, K)
    whole = rows.new_zeros(groups, rows.shape[1], inputs)
    whole = whole.scatter(2, positions.expand_as(rows), rows)
    weights[f"{layer}conv1.weight"] = whole.transpose(0, 1).reshape(-1, inputs, 1, 1)
    mask = torch.zeros(groups, inputs, dtype=torch.bool, device=index.device)
    weights[f"{layer}conv1.mask"] = mask.scatter(1, positions[:, 0], True)
    if authors:
        factor = inputs * groups // len(index)
        weights[f"{layer}conv1.stage"] = torch.tensor(factor - 1, device=index.device)
        for name, neutral in _NORM.items():
            if (selected := weights.get(f"{layer}norm1.{name}")) is not None:
                full = selected.new_full((inputs,), neutral)
                weights[f"{layer}norm1.{name}"] = full.scatter(0, index, selected)


def _count_inputs(weights: Mapping[str, Tensor], layer: str) -> int:
    """Count the channels that a layer of the authors' code reads: nothing is compressed there."""
    total = len(weights["conv0.weight"])
    block, number = map(int, re.findall(r"\d+", layer))
    for key, value in weights.items():
        match = re.fullmatch(r"denseblock(\d+)\.denselayer(\d+)\.conv2\.weight", key)
        if match and (int(match[1]), int(match[2])) < (block, number):
            total += len(value)
    return total


def _read_authors_mask(weights: dict[str, Tensor], layer: str) -> None:
    mask = weights.pop(f"{layer}conv1._mask")
    weights.pop(f"{layer}conv1._count", None)
    conv = weights.pop(f"{layer}conv1.conv.weight")
    weights[f"{layer}conv1.weight"] = conv
    # Their 3x3 has as many groups as their 1x1, of which every G-th row has one mask.
    groups = len(conv) // weights[f"{layer}conv2.weight"].shape[1]
    weights[f"{layer}conv1.mask"] = mask[:groups, :, 0, 0].bool()
    weights[f"{layer}conv1.stage"] = weights.pop(f"{layer}conv1._stage").reshape(()).long()


def _expand_classifier(weights: dict[str, Tensor]) -> None:
    index = weights.pop("classifier.index").long()
    kept, bias = weights.pop("classifier.linear.weight"), weights.pop("classifier.linear.bias")
    norm = weights.get("norm5.weight")
    inputs = 2 * len(index) if norm is None else len(norm)
    whole = kept.new_zeros(len(kept), inputs)
    weights["classifier.weight"] = whole.scatter(1, index.expand_as(kept), kept)
    weights["classifier.bias"] = bias
    mask = torch.zeros(1, inputs, dtype=torch.bool, device=index.device)
    weights["classifier.mask"] = mask.scatter(1, index[None], True)
    factor = inputs // len(index)
    weights["classifier.stage"] = torch.tensor(factor - 1, device=index.device)
