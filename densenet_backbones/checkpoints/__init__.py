"""Reading weights safely and mapping their names between libraries."""

from densenet_backbones.checkpoints.keys import CLASSIFIER, fit_to, to_ours, to_torchvision
from densenet_backbones.checkpoints.reading import (
    CheckpointError,
    read_checkpoint,
    read_state_dict,
)

__all__ = [
    "CLASSIFIER",
    "CheckpointError",
    "fit_to",
    "read_checkpoint",
    "read_state_dict",
    "to_ours",
    "to_torchvision",
]
