"""DenseNet backbones for dense prediction, registered with timm and torchvision.

``import densenet_backbones`` needs torch, torchvision and timm only, and registers, as soon as
those are imported too:

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
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from densenet_backbones.garbage import collecting_later

if TYPE_CHECKING:
    from densenet_backbones.densenet import DenseNet, DenseNetSpec
    from densenet_backbones.features import DenseFeatureNet, FeatureLevel
    from densenet_backbones.heads.detection.backbone import densenet_fpn_backbone

# Where links are off, git and unzip write the link `heads` as a file with the name of its target.
if (Path(__file__).parent / "heads").is_file():
    __path__.append(str(Path(__file__).parents[1]))

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
    "DenseFeatureNet": "features",
    "DenseNet": "densenet",
    "DenseNetSpec": "densenet_spec",
    "FeatureLevel": "features",
    "densenet_fpn_backbone": "heads.detection.backbone",
    "load": "inference.loading",
    "train": "command.calling",
}
"""Name -> module that has it, imported on first use: commands answer ``--help`` without torch."""


def __getattr__(name: str) -> Any:
    """Find a name, or one of our modules, on first use."""
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Registration(MetaPathFinder):
    """Registers our networks where timm or torchvision is imported, be it before us or after.

    It waits for the end of the outermost import of theirs or ours: timm imports torchvision, our
    modules import both, and our entries need all of them whole.
    """

    _REGISTRIES = ("timm", "torchvision")

    def __init__(self) -> None:
        self._importing: list[str] = []
        sys.meta_path.insert(0, self)
        self._register_if_ready()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return what the other finders say of a module that concerns us, and watch its import."""
        if fullname not in self._REGISTRIES and not fullname.startswith(f"{__name__}."):
            return None
        # Those in front were asked before, and asking one like this would never end: that of an
        # earlier import of this package, which a tool took away again.
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        specs = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = partial(self._execute, execute)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self._importing.append(module.__name__)
        try:
            with collecting_later():
                execute(module)
        finally:
            self._importing.remove(module.__name__)
        self._register_if_ready()

    def _register_if_ready(self) -> None:
        if not self._importing and any(name in sys.modules for name in self._REGISTRIES):
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            with collecting_later():
                importlib.import_module(f"{__name__}.timm_models")
                importlib.import_module(f"{__name__}.torchvision_models")


_Registration()
