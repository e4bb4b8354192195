"""The form of a network for inference: `deploy` folds its weights, and blocks fill one buffer."""

from densenet_backbones.deploy.block import FoldedBlock
from densenet_backbones.deploy.folding import deploy, is_deployable

__all__ = ["FoldedBlock", "deploy", "is_deployable"]
