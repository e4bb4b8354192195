"""DenseNet backbones for dense prediction, registered with timm and torchvision.

``import densenet_backbones`` needs torch, torchvision and timm only, and registers:

- with timm, every member of the family as ``<variant>_features``
  (`densenet_backbones.timm_models`): ``timm.create_model("densenet121_features")`` returns
  multi-scale feature maps, and with ``features_only=False`` a classifier;
- with torchvision, the same backbones, detectors and segmenters
  (`densenet_backbones.torchvision_models`):
  ``torchvision.models.get_model("dsod300", num_classes=21)``.

With segmentation_models.pytorch, ``smp.Unet("tu-densenet121_features")`` then works too; native
encoders are registered by ``import densenet_backbones.smp_encoders``. `densenet_fpn_backbone` is
for torchvision's own detectors, as in ``FasterRCNN(densenet_fpn_backbone("densenet121"), 21)``.
`train` trains a detector or a segmenter, and `load` reads a trained one; both need the ``train``
extra.
"""

import importlib
from pathlib import Path
from typing import Any

# Where links are off, git and unzip write the link `heads` as a file with the name of its target.
if (Path(__file__).parent / "heads").is_file():
    __path__.append(str(Path(__file__).parents[1]))

import densenet_backbones.timm_models
import densenet_backbones.torchvision_models  # noqa: F401  (both register their networks)
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet, FeatureLevel
from densenet_backbones.heads.detection.backbone import densenet_fpn_backbone

__all__ = [
    "DenseFeatureNet",
    "DenseNet",
    "DenseNetSpec",
    "FeatureLevel",
    "__version__",
    "densenet_fpn_backbone",
    "load",
    "train",
]

__version__ = "0.1.0"


_LATER = {
    "load": "densenet_backbones.inference.loading",
    "train": "densenet_backbones.command.calling",
}


def __getattr__(name: str) -> Any:
    """Find a function on first use: it needs the training tools, which importing us must not."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
