"""Weights of whole models from a file, ours or torchvision's, as far as they fit.

Names before torchvision 0.13 are those of its published files (torchvision
``ops/feature_pyramid_network.py``, ``models/detection/retinanet.py``).
"""

import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.messages import pluralize

__all__ = ["load_detector_file", "load_matching", "load_weights", "translate_name"]

_Model = TypeVar("_Model", bound=nn.Module)

# torchvision's adapter is our adapter's pyramid.
_RENAMED = (("backbone.fpn.", "backbone.adapter.pyramid."),)
# Names in torchvision before 0.13, which its published files have: their blocks of convolution,
# norm and activation had no place of their own (torchvision/ops/feature_pyramid_network.py,
# models/detection/{retinanet,rpn,mask_rcnn}.py, ``_load_from_state_dict``).
_OLD = (
    (re.compile(r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
_MEMBER = re.compile(r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*")  # of torchvision's enums of weights
_OLD_MASK = re.compile(r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$")
_OLD_RETINA = re.compile(r"^(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)$")


def translate_name(name: str, known: Mapping[str, Tensor]) -> str:
    """Our name of a tensor in a detector's file.

    Args:
        name: As saved.
        known: The model's tensors by name; a name among them stays.
    """
    for theirs, ours in _RENAMED:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if name in known:
        return name
    for pattern, replacement in _OLD:
        name = pattern.sub(replacement, name)
    if parts := _OLD_MASK.match(name):
        return f"{parts[1]}.{int(parts[2]) - 1}.0.{parts[3]}"
    if (parts := _OLD_RETINA.match(name)) and int(parts[2]) % 2 == 0:
        return f"{parts[1]}.{int(parts[2]) // 2}.0.{parts[3]}"
    return name


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load what fits a detector by name and shape, and leave the rest of both as it is.

    Args:
        model: A detector.
        state: Tensors under our names or torchvision's, old and new.

    Returns:
        Our names of the tensors taken, and for each tensor of ``state`` that was not, its name and
        the reason.
    """
    known = model.state_dict()
    taken: dict[str, Tensor] = {}
    left: list[str] = []
    for saved, value in state.items():
        name = translate_name(saved, known)
        if name not in known:
            left.append(f"{saved}: the model has none")
        elif known[name].shape != value.shape:
            shapes = f"{tuple(value.shape)}, the model's is {tuple(known[name].shape)}"
            left.append(f"{saved}: {shapes}")
        else:
            taken[name] = value
    model.load_state_dict({**known, **taken})
    return list(taken), left


def load_detector_file(model: nn.Module, path: str | Path) -> tuple[list[str], list[str]]:
    """Load what fits of a file; says in a warning if that is not all.

    Args:
        model: A detector.
        path: Weights, bare or in a training checkpoint; see `read_state_dict`.

    Returns:
        As `load_matching`.

    Raises:
        CheckpointError: The file cannot be read safely, or nothing in it fits.
    """
    state = read_state_dict(path)
    for prefix in ("module.", "model."):  # of DataParallel and of training tasks
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    taken, left = load_matching(model, state)
    initial = [name for name in model.state_dict().keys() - set(taken) if _is_weight(name)]
    if not taken:
        raise CheckpointError(
            f"{path}: of its {pluralize(len(state), 'tensor')} none fits this model by name and "
            f"shape ({textwrap.shorten('; '.join(left), 300)}); give a file of such a model, or a "
            "backbone's as weights_backbone"
        )
    if left or initial:
        warnings.warn(
            f"{path}: {pluralize(len(taken), 'tensor')} taken, {len(left)} left out, and "
            f"{len(initial)} of the model keep their initial values; model.weights_taken and "
            "model.weights_left have the names",
            stacklevel=2,
        )
    return taken, left


def load_weights(model: _Model, weights: str | None) -> _Model:
    """Load what fits of a model's file, as builders do, and remember what that was.

    Args:
        model: Detector or segmenter; ``weights_taken`` gets the names of the tensors that came from
            the file, ``weights_left`` a line for each that the model could not take.
        weights: File of weights, see `load_detector_file`; None or empty for none.

    Returns:
        The model.
    """
    if weights and _MEMBER.fullmatch(weights) and not Path(weights).is_file():
        raise ValueError(
            f"weights {weights!r} is no file, and no weights of whole models are published under "
            "a name here: give a file as weights, or weights_backbone='DEFAULT' for published "
            "ones of the backbone"
        )
    if weights:
        taken, left = load_detector_file(model, weights)
        model.weights_taken, model.weights_left = tuple(taken), tuple(left)  # type: ignore[assignment]
    return model


def _is_weight(name: str) -> bool:
    """Counters of batches are missing in published files, which are older than they are."""
    return not name.endswith("num_batches_tracked")
