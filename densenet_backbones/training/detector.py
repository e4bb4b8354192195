"""A trained detector as one file: `load(checkpoint).predict(image)`.

Such a file is a training checkpoint (`*.ckpt`) or the slim form without optimiser state
(`*.safetensors`). Both carry what is needed to predict: the architecture, its arguments, the
classes and the pre-processing. Neither needs unpickling of code.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

import densenet_backbones.torchvision_models  # noqa: F401 - registers the detectors
from densenet_backbones.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_state_dict,
)
from densenet_backbones.data.files import nearest
from densenet_backbones.data.images import read_image
from densenet_backbones.data.samples import Categories
from densenet_backbones.heads import Preprocessing
from densenet_backbones.training.usage import one_sentence

KEY = "densenet_backbones.detector"
"""Under this key both kinds of file keep the dictionary of `DetectorSpec.to_dict`."""

FORMAT = 1


@dataclass(frozen=True)
class DetectorSpec:
    """All that turns weights back into a detector.

    Attributes:
        name: A detector of torchvision's registry, ours (`dsod300`, …) or its own.
        args: JSON-able keyword arguments of its builder, without `num_classes`.
        categories: The classes it knows.
        preprocessing: `Preprocessing.to_dict()`, or None where the builder's own holds.
    """

    name: str
    args: dict[str, Any]
    categories: Categories
    preprocessing: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": FORMAT,
            "name": self.name,
            "args": self.args,
            "categories": self.categories.to_dict(),
            "preprocessing": self.preprocessing,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "DetectorSpec":
        """Inverse of `to_dict`.

        Raises:
            CheckpointError: The file was written by a newer release, or an entry is missing.
        """
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"detector format {state.get('format')!r} is unknown here (this release reads "
                f"{FORMAT}); install the release of densenet-backbones that wrote the file"
            )
        try:
            return cls(
                state["name"],
                dict(state["args"]),
                Categories.from_dict(state["categories"]),
                state["preprocessing"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the description of the detector is damaged: {type(error).__name__}: {error}"
            ) from error

    def build(self, **overrides: Any) -> nn.Module:
        """The model with fresh weights; `overrides` replace single arguments of the builder."""
        model = build_detector(self.name, self.categories.num_classes, {**self.args, **overrides})
        if self.preprocessing is not None:
            model.preprocessing = Preprocessing(**self.preprocessing)
        return model


def build_detector(name: str, num_classes: int, args: dict[str, Any]) -> nn.Module:
    """Build a detector of torchvision's registry, its arguments checked against the signature.

    Args:
        name: Registered name, e.g. "dsod300".
        num_classes: Classes including the background.
        args: Keyword arguments of the builder.

    Raises:
        ValueError: Unknown name, unknown argument or one of the wrong type; says the nearest.
    """
    known = torchvision.models.list_models()
    if name not in known:
        raise ValueError(f"no detector is called {name!r}{nearest(name, known)}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    builder = torchvision.models.get_model_builder(name)
    allowed = parser.add_function_arguments(builder, skip={"num_classes"}, fail_untyped=False)
    for key in args:
        if key not in allowed:
            raise ValueError(f"{name} has no argument {key!r}{nearest(key, allowed)}")
    try:
        parser.parse_object(args)
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}: {one_sentence(str(error))}") from error
    return torchvision.models.get_model(name, num_classes=num_classes, **args)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (D, 4) float32 xyxy, absolute pixels of the image as shown.
        labels: (D,) int64 in ``1 .. K - 1``.
        scores: (D,) float32 in [0, 1].
        names: The class name of each.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Detector:
    """A model with its classes, ready to predict; made by `load`."""

    def __init__(self, spec: DetectorSpec, model: nn.Module, device: torch.device | str) -> None:
        self.spec = spec
        self.categories = spec.categories
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    def predict(self, image: str | Path | np.ndarray, score_threshold: float = 0.5) -> Detections:
        """Detect objects in one image.

        Args:
            image: A file, or (H, W, 3) uint8 RGB pixels.
            score_threshold: Detections below it are left out, in [0, 1].

        Raises:
            DataError: The file is missing or cannot be decoded.
            ValueError: The array is not (H, W, 3) uint8.
        """
        return self.predict_batch([image], score_threshold)[0]

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[str | Path | np.ndarray], score_threshold: float = 0.5
    ) -> list[Detections]:
        """Detect objects in several images at once; see `predict`."""
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must lie in [0, 1], got {score_threshold}")
        pixels = [self._tensor(image) for image in images]
        return [self._keep(found, score_threshold) for found in self.model(pixels)]

    def _tensor(self, image: str | Path | np.ndarray) -> Tensor:
        array = image if isinstance(image, np.ndarray) else read_image(Path(image))
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f"an image must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}"
            )
        chw = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return to_float(chw.to(self.device))

    def _keep(self, found: dict[str, Tensor], threshold: float) -> Detections:
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[found["scores"][order] >= threshold]
        labels = found["labels"][order].cpu()
        return Detections(
            boxes=found["boxes"][order].float().cpu(),
            labels=labels,
            scores=found["scores"][order].float().cpu(),
            names=[self.categories.name_of_label(int(label)) for label in labels],
        )


def to_float(image: Tensor) -> Tensor:
    """Uint8 pixels in [0, 255] to float32 in [0, 1], as torchvision's detectors take them."""
    return image.float() / 255


def load(path: str | Path, device: torch.device | str = "cpu") -> Detector:
    """Load a detector from a training checkpoint or a slim file.

    Args:
        path: `*.ckpt` or `*.safetensors` written by the training tools.
        device: Where to run it.

    Raises:
        CheckpointError: The file is missing, needs unpickling of code, or holds no detector.
    """
    spec, weights = read_detector(path)
    # The weights are all here: a pretrained base must not be fetched again.
    overrides = {"pretrained_backbone": False} if "pretrained_backbone" in spec.args else {}
    try:
        model = spec.build(**overrides)
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path}: the weights do not fit the detector the file describes: {reason}"
        ) from error
    return Detector(spec, model, device)


def read_detector(path: str | Path) -> tuple[DetectorSpec, dict[str, Tensor]]:
    """The description and the weights in a detector file; see `load` for the errors."""
    path = Path(path)
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        described = _parsed(text) if text else None
    else:
        described = content.get(KEY)
    if not isinstance(described, dict):
        raise CheckpointError(
            f"{path}: holds weights but no description of a detector; give a checkpoint written "
            "by the training tools, or start a training from these weights with --init-from"
        )
    try:
        return DetectorSpec.from_dict(described), read_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _parsed(text: str) -> Any:
    """JSON, or None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights of a file, a training task's prefix taken off; see `load` for the errors."""
    weights = read_state_dict(path)
    if all(name.startswith("model.") for name in weights):
        weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    return weights


def save_detector(path: Path, spec: DetectorSpec, model: nn.Module) -> None:
    """Write the slim file: weights and description, nothing else; replaced in one step."""
    weights = {n: w.detach().cpu().contiguous() for n, w in model.state_dict().items()}
    part = path.with_suffix(".part")
    safetensors.torch.save_file(weights, part, {KEY: json.dumps(spec.to_dict())})
    part.replace(path)


def fitting_weights(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Split weights into those a model can take and a line for each that it cannot.

    Returns:
        The weights whose name and shape fit, and sentences about the others.
    """
    own = model.state_dict()
    kept: dict[str, Tensor] = {}
    left: list[str] = []
    for name, value in weights.items():
        if name not in own:
            left.append(f"{name}: the model has none")
        elif own[name].shape != value.shape:
            left.append(f"{name}: {tuple(value.shape)}, the model's is {tuple(own[name].shape)}")
        else:
            kept[name] = value
    left += [f"{name}: not in the file" for name in own if name not in weights]
    return kept, left
