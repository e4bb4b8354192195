"""Read weights safely, rename them between libraries, and recognize the network they belong to.

``python -m densenet_backbones.checkpoints FILE`` prints what a file of weights holds.
"""

from densenet_backbones.checkpoints.errors import CheckpointError
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
