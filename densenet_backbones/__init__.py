"""DenseNet as a backbone for dense prediction.

Importing this package registers its networks with timm and torchvision:
``timm.create_model("densenet121_features")`` returns multi-scale features, and
``torchvision.models.get_model("dsod300", num_classes=21)`` a detector. It needs torch, torchvision
and timm only; training tools live in `densenet_backbones.training`.
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
    """Finds ``load`` on first use: it needs the training tools, which importing us must not."""
    if name == "load":
        return importlib.import_module("densenet_backbones.inference.loading").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
