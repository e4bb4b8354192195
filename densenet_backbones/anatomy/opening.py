"""Open whatever names a model: a registered name, a config, a file of weights or a run's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import densenet_backbones.torchvision_models  # noqa: F401 - registers the detectors and segmenters
from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.heads.classification.classifier import Classifier, create_classifier
from densenet_backbones.inference.classifier import ClassifierSpec
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.detector_facts import read_model_input
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.inference.model_file import ModelSpec, build_registered, read_model_file
from densenet_backbones.inference.segmenter import SMP, SegmenterSpec
from densenet_backbones.messages import nearest
from densenet_backbones.stages import DenseStages
from densenet_backbones.torchvision_models import DETECTORS, SEGMENTERS
from densenet_backbones.training.arguments import (
    CLASSIFICATION_FORM,
    DETECTION_FORM,
    SEGMENTATION_FORM,
    list_configs,
)
from densenet_backbones.untrusted.plain_yaml import read_yaml
from densenet_backbones.variants import SUFFIX, VARIANTS

__all__ = ["OpenedModel", "open_model"]

CLASSES = 21
"""Classes of a detector or segmenter that no data is known of: VOC's, with the background."""
_CONFIG = (".yaml", ".yml")


@dataclass(frozen=True)
class OpenedModel:
    """A model to look into.

    Attributes:
        name: Its name, or its file's.
        kind: ``backbone``, ``classifier``, ``detector`` or ``segmenter``.
        model: In evaluation mode.
        trained: Whether its weights come from a file, rather than from a random start.
        builder: Registered name of a detector or segmenter, with its arguments.
        args: Keyword arguments of the builder.
        spec: Description in the model's file, where there is one.
    """

    name: str
    kind: str
    model: nn.Module
    trained: bool = False
    builder: str = ""
    args: Mapping[str, Any] | None = None
    spec: ModelSpec | None = None

    @property
    def net(self) -> nn.Module:
        """The DenseNet within, else another feature network, else the model itself."""
        dense = next((m for m in self.model.modules() if isinstance(m, DenseStages)), None)
        if dense is not None:
            return dense
        holders = [self.model, getattr(self.model, "backbone", None), getattr(self.model, "net", 0)]
        inner = (getattr(holder, "feature_net", None) for holder in holders)
        return next((m for m in inner if isinstance(m, nn.Module)), self.model)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that it is made for; a detector of any size at its shorter side."""
        if self.kind == "detector":
            facts = read_model_input(self.model)
            return facts.size or (facts.min_size, facts.min_size)
        if isinstance(self.model, Classifier):
            return self.model.image_size, self.model.image_size
        net = self.net
        if isinstance(net, DenseStages) and net.spec.stem == "cifar" and self.kind != "segmenter":
            return 32, 32
        return 224, 224

    @property
    def image_channels(self) -> int:
        """Channels of an image: a classifier makes gray of RGB by itself."""
        return 3 if isinstance(self.model, Classifier) else self.in_chans

    def make_inputs(self, size: tuple[int, int]) -> object:
        """Return what its forward takes: random images of a size, as a list for detectors."""
        images = torch.rand(2, self.image_channels, *size)
        return list(images[:1]) if self.kind == "detector" else images

    @property
    def in_chans(self) -> int:
        """Channels that the net within reads."""
        first = (m.in_channels for m in self.model.modules() if isinstance(m, nn.Conv2d))
        return next(first, 3)


def open_model(source: str, weights: str | None = None, classes: int = CLASSES) -> OpenedModel:
    """Build or load a model.

    Args:
        source: A registered name (``densenet121``, ``densenet121_features``, ``dsod300``, ``unet``,
            ``smp:NAME``, or any feature network of timm), a config that ships or a YAML file, a
            file that the tools wrote (``*.safetensors``, ``*.ckpt``), or the folder of a run.
        weights: File of weights for a name, in our, timm's or torchvision's naming.
        classes: Of a detector, segmenter or config without trained weights, with the background.

    Raises:
        CheckpointError: A file cannot be read, or its weights do not fit.
        ValueError: Nothing is named so, or the arguments in a config are wrong.
    """
    opened = _open(source, weights, classes)
    if weights is not None:
        _load_weights(opened, weights)
    opened.model.eval()
    return opened


def _open(source: str, weights: str | None, classes: int) -> OpenedModel:
    path = Path(source)
    configs = _list_configs()
    if path.exists() and path.suffix not in _CONFIG:
        if weights is not None:
            raise ValueError(f"{source}: a file has its own weights; leave --weights out")
        return _open_file(path)
    if path.suffix in _CONFIG or (source in configs and source not in DETECTORS):
        # A shipped one also by its path in the repository, configs/det/NAME.yaml.
        named = "/".join((path.parent.name, path.stem)).lstrip("/")
        file = path if path.exists() else configs.get(named)
        if file is None:
            raise ValueError(f"{source}: there is no such config{nearest(named, configs)}")
        return _open_config(file, source, classes)
    if source in DETECTORS or source in SEGMENTERS or source.startswith(SMP):
        return _build(source, source, {}, classes)
    name = source if source.endswith(SUFFIX) else f"{source}{SUFFIX}"
    if name.removesuffix(SUFFIX) in VARIANTS:
        whole: dict[str, Any] = _read_num_classes(weights) if weights else {}
        net = timm.create_model(name, features_only=False, **whole)
        return OpenedModel(name.removesuffix(SUFFIX), "classifier", net, weights is not None)
    if timm.is_model(source):
        try:
            net = timm.create_model(source, features_only=True)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{source}: timm gives no feature maps of it ({error})") from error
        return OpenedModel(source, "backbone", net, weights is not None)
    known = (*VARIANTS, *DETECTORS, *SEGMENTERS, *configs)
    raise ValueError(
        f"there is no model, config, file or folder {source!r}{nearest(source, known)}; "
        "densenet list prints the names"
    )


def _list_configs() -> dict[str, Path]:
    """Return the configs that ship, by name and by ``det/NAME``; a detector's first."""
    forms = {"cls": CLASSIFICATION_FORM, "seg": SEGMENTATION_FORM, "det": DETECTION_FORM}
    configs: dict[str, Path] = {}
    for folder, form in forms.items():
        files = list_configs(form)
        configs |= {f"{folder}/{name}": file for name, file in files.items()} | files
    return configs


def _open_file(path: Path) -> OpenedModel:
    file = find_model_file(path)
    if file.suffix.lower() in (".onnx", ".xml"):
        raise ValueError(f"{file}: an exported graph has no layers; give the model it came from")
    kinds: tuple[type[ModelSpec], ...] = (DetectorSpec, SegmenterSpec, ClassifierSpec)
    spec, weights = read_model_file(file, kinds)
    model = spec.restore(weights, file)
    return OpenedModel(str(path), spec.kind, model, True, spec.name, spec.args, spec)


def _open_config(path: Path, title: str, classes: int) -> OpenedModel:
    content = read_yaml(path, ValueError)
    model = content.get("model") if isinstance(content, dict) else None
    known = ("detector", "segmenter", "classifier")
    kind = next((k for k in known if isinstance(model, dict) and model.get(k)), None)
    if not isinstance(model, dict) or kind is None:
        keys = ", ".join(f"model.{k}" for k in known)
        raise ValueError(f"{path}: has none of {keys}; give a whole config")
    name, args = str(model[kind]), dict(model.get("args") or {})
    if kind == "classifier":
        net = create_classifier(name, classes, **{**args, "weights": None})
        return OpenedModel(title, kind, net, builder=name, args=args)
    return _build(title, name, args, classes)


def _build(title: str, name: str, args: dict[str, Any], classes: int) -> OpenedModel:
    """Build a detector or segmenter; what its config would fetch is not."""
    if name.startswith(SMP):
        from densenet_backbones.inference.smp_segmenters import build_smp  # takes seconds

        plain = {**args, "encoder_weights": None}
        model: nn.Module = build_smp(name.removeprefix(SMP), classes, plain)
        return OpenedModel(title, "segmenter", model, builder=name, args=args)
    kind = "detector" if name in torchvision.models.list_models(_DETECTION) else "segmenter"
    fetched = ("weights", "weights_backbone")
    plain = {key: value for key, value in args.items() if key not in fetched}
    if name not in DETECTORS and name not in SEGMENTERS:
        plain |= {"weights": None, "weights_backbone": None}
    model = build_registered(kind, name, classes, plain)
    return OpenedModel(title, kind, model, builder=name, args=args)


_DETECTION = torchvision.models.detection


def _read_num_classes(file: str) -> dict[str, int]:
    weights = read_state_dict(file)
    ends = ("classifier.weight", "classifier.bias")
    bias = next((w for name, w in weights.items() if name.endswith(ends)), None)
    return {} if bias is None else {"num_classes": len(bias)}


def _load_weights(opened: OpenedModel, file: str) -> None:
    try:
        opened.model.load_state_dict(read_state_dict(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{file}: the weights do not fit {opened.name}: {reason}; give the name of the network "
            "they were trained with"
        ) from error
