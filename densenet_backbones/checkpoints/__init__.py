"""Read weights safely, rename them between libraries, and recognize the network they belong to.

``python -m densenet_backbones.checkpoints FILE`` prints what a file of weights holds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from densenet_backbones.checkpoints.errors import CheckpointError

if TYPE_CHECKING:
    from densenet_backbones.checkpoints.fitting import fit_to
    from densenet_backbones.checkpoints.keys import (
        CLASSIFIER,
        find_place,
        to_ours,
        to_timm_features,
        to_torchvision,
    )
    from densenet_backbones.checkpoints.reading import read_checkpoint, read_state_dict
    from densenet_backbones.checkpoints.recognition import Recognized, recognize

__all__ = [
    "CLASSIFIER",
    "CheckpointError",
    "Recognized",
    "find_place",
    "fit_to",
    "read_checkpoint",
    "read_state_dict",
    "recognize",
    "to_ours",
    "to_timm_features",
    "to_torchvision",
]

_LATER = {
    "CLASSIFIER": "keys",
    "Recognized": "recognition",
    "find_place": "keys",
    "fit_to": "fitting",
    "read_checkpoint": "reading",
    "read_state_dict": "reading",
    "recognize": "recognition",
    "to_ours": "keys",
    "to_timm_features": "keys",
    "to_torchvision": "keys",
}
"""Name -> file that has it, imported on first use: an error about a path needs no torch."""


def __getattr__(name: str) -> Any:
    """Find a name on first use."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
