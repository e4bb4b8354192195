"""DenseNet backbones for dense prediction, registered with timm and torchvision.

``import densenet_backbones`` needs torch, torchvision and timm only, and registers:

- with timm, every member of the family as ``<variant>_features``
  (`densenet_backbones.timm_models`): ``timm.create_model("densenet121_features")`` returns
  multi-scale feature maps, and with ``features_only=False`` a classifier;
- with torchvision, the same backbones, detectors and segmenters
  (`densenet_backbones.torchvision_models`):
  ``torchvision.models.get_model("dsod300", num_classes=21)``.

With segmentation_models.pytorch, ``smp.Unet("tu-densenet121_features")`` then works too; native
encoders are registered by ``import densenet_backbones.smp_encoders``. `load` reads a trained model;
it and the training tools (`densenet_backbones.training`) need the ``train`` extra.
"""

import importlib
from typing import Any

import densenet_backbones.timm_models
import densenet_backbones.torchvision_models  # noqa: F401  (both register their networks)
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet, FeatureLevel

__all__ = ["DenseFeatureNet", "DenseNet", "DenseNetSpec", "FeatureLevel", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Find ``load`` on first use: it needs the training tools, which importing us must not."""
    if name == "load":
        return importlib.import_module("densenet_backbones.inference.loading").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
