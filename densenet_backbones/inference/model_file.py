"""Write and read a trained model as one file, which holds all that is needed to predict.

Such a file is a training checkpoint (`*.ckpt`) or the slim form without optimizer state
(`*.safetensors`). Both carry the architecture, its arguments, the classes and the pre-processing.
Neither needs unpickling of code.
"""

import argparse
import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import jsonargparse
import safetensors.torch
import torchvision
from torch import Tensor, nn

from densenet_backbones.checkpoints import CheckpointError, read_checkpoint, read_state_dict
from densenet_backbones.checkpoints.hub import locate_file
from densenet_backbones.checkpoints.integrity import DIGESTS, compute_digests
from densenet_backbones.checkpoints.reading import read_metadata
from densenet_backbones.data.files import quote
from densenet_backbones.file_writing import save_bytes
from densenet_backbones.heads.backbones import LOADED_LATER
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.messages import nearest, one_sentence
from densenet_backbones.torchvision_models import MODELS
from densenet_backbones.untrusted.building import BoundedBuilding
from densenet_backbones.untrusted.limits import MAX_VALUES
from densenet_backbones.untrusted.reading import measure_values, parse_json

_FIX = "give a file as the training tools wrote it"
FORMAT = 2
"""Format 1 had other names of some options, see `rename_options`."""

JsonDict = dict[str, Any]
"""Nested plain JSON types."""

S = TypeVar("S", bound="ModelSpec")


class ModelSpec:
    """Description that turns weights back into a model; each kind has a frozen dataclass of it.

    Attributes:
        key: Entry of both kinds of file that holds the dictionary of `to_dict`.
        kind: Name of such models in messages, "detector" or "segmenter".
        name: Name of the architecture.
        args: JSON-able keyword arguments of the architecture's builder, without `num_classes`.
        preprocessing: The model's own, as a dictionary, or None where the builder's holds.
    """

    key: ClassVar[str]
    kind: ClassVar[str]
    name: str
    args: JsonDict
    preprocessing: JsonDict | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes, in label order."""
        raise NotImplementedError

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of an object's keypoints, in the model's order."""
        return ()

    def classes_to_dict(self) -> JsonDict:
        """Return the entries of `to_dict` about the model's classes."""
        raise NotImplementedError

    @classmethod
    def from_entries(cls, state: JsonDict) -> Self:
        """Make a spec from the entries of `to_dict`, unchecked; `from_dict` calls it."""
        raise NotImplementedError

    def build(self, **overrides: object) -> nn.Module:
        """Build the model with fresh weights; `overrides` replace single arguments."""
        raise NotImplementedError

    def to_dict(self) -> JsonDict:
        """Return the description as plain JSON types."""
        return {
            "format": FORMAT,
            "name": self.name,
            "args": self.args,
            **self.classes_to_dict(),
            "preprocessing": self.preprocessing,
        }

    @classmethod
    def from_dict(cls, state: JsonDict) -> Self:
        """Make a spec of what `to_dict` returned.

        Raises:
            CheckpointError: The file was written by a newer release, or an entry is missing.
        """
        if state.get("format") not in range(1, FORMAT + 1):
            raise CheckpointError(
                f"{cls.kind} format {state.get('format')!r} is unknown here (this release reads up "
                f"to {FORMAT}); install the release of densenet-backbones that wrote the file"
            )
        if measure_values(state) > MAX_VALUES:
            raise CheckpointError(
                f"the description of the {cls.kind} is damaged: more than {MAX_VALUES} values; "
                f"{_FIX}"
            )
        try:
            return cls.from_entries(state)
        except Exception as error:  # whatever was expected of a value that is something else
            reason = " ".join(str(error).split())[:300]
            missing = f"no entry {reason}" if isinstance(error, KeyError) else reason
            raise CheckpointError(
                f"the description of the {cls.kind} is damaged ({missing or 'a wrong value'}); "
                f"{_FIX}"
            ) from error

    def with_preprocessing(self, described: JsonDict) -> Self:
        """Return a copy with another description of the pre-processing."""
        return dataclasses.replace(self, preprocessing=described)  # type: ignore[type-var]

    def with_preprocessing_of(self, model: nn.Module) -> Self:
        """Return a copy with a model's own pre-processing, where the model can describe it.

        torchvision's own detectors cannot: their builders' pre-processing holds.
        """
        for name in ("transform", "normalization"):
            part = getattr(model, name, None)
            if isinstance(part, DetectionTransform | ImageNormalization):
                return self.with_preprocessing(part.to_dict())
        return self

    def without_downloads(self) -> JsonDict:
        """Return overrides for `build` when all weights are at hand, so that none is downloaded.

        torchvision's own models are built as they were: their norms depend on the weights.
        """
        if self.name not in MODELS:
            return {}
        overrides = {"weights": None, "weights_backbone": LOADED_LATER}
        return {name: value for name, value in overrides.items() if self.args.get(name)}

    def restore(self, weights: Mapping[str, Tensor], path: str | Path) -> nn.Module:
        """Build the model with the weights of a file.

        Args:
            weights: Parameters and buffers by name.
            path: The file they come from, for errors.

        Raises:
            CheckpointError: They are not weights of this model.
        """
        try:
            with BoundedBuilding(weights):
                model = self.build(**self.without_downloads())
            model.load_state_dict(weights)
        except Exception as error:  # a damaged description makes builders fail in any way
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CheckpointError(
                f"{path}: the weights do not fit the {self.kind} the file describes: {reason}; "
                f"{_FIX}"
            ) from error
        return model


def build_registered(kind: str, name: str, num_classes: int, args: JsonDict) -> nn.Module:
    """Build a model of torchvision's registry, its arguments checked against the signature.

    Args:
        kind: Name of such models in errors, "detector" or "segmenter".
        name: Registered name, e.g. "dsod300".
        num_classes: Number of classes as the builder counts them.
        args: Keyword arguments of the builder.

    Raises:
        ValueError: Unknown name, unknown argument or one of the wrong type, with the nearest right
            one; or what the builder says of its arguments.
    """
    known = torchvision.models.list_models()
    if name not in known:
        hint = nearest(name, known) or f"; densenet list {kind}s names them"
        raise ValueError(f"no {kind} is called {name!r}{hint}")
    # jsonargparse checks types by the signature; the names are checked here, for a better error.
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    builder = inspect.unwrap(torchvision.models.get_model_builder(name))
    allowed = parser.add_function_arguments(builder, skip={"num_classes"}, fail_untyped=False)
    for key in args:
        if key not in allowed:
            raise ValueError(
                f"{name} has no argument {key!r}{nearest(key, allowed)} (known: "
                f"{', '.join(sorted(allowed))})"
            )
    try:
        parser.parse_object(args)
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}: {one_sentence(str(error))}") from error
    try:
        model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **args)
    except RuntimeError as error:  # timm's word for a backbone that it does not know
        raise ValueError(f"{name}: {' '.join(str(error).split())[:300]}") from error
    return model


def read_model_file(path: str | Path, kinds: Sequence[type[S]]) -> tuple[S, dict[str, Tensor]]:
    """Read the description and the weights in a model's file.

    Args:
        path: `*.ckpt` or `*.safetensors` written by the training tools, or its name on the Hub;
            see `locate_file`.
        kinds: Kinds of model that it may hold.

    Raises:
        CheckpointError: The file is missing, needs unpickling of code, or holds no such model.
    """
    path = locate_file(path)
    described = _read_descriptions(path)
    for kind in kinds:
        if isinstance(state := described.get(kind.key), dict):
            try:
                return kind.from_dict(state), read_weights(path)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    raise CheckpointError(
        f"{path}: holds weights but no description of a {' or a '.join(k.kind for k in kinds)}; "
        "give a checkpoint written by the training tools, or start a training from these weights "
        "with --init-from"
    )


def read_spec(path: str | Path, kind: type[S]) -> S | None:
    """Read the description in a file; None where it has none of this kind that can be read.

    Raises:
        CheckpointError: The file is missing, or needs unpickling of code.
    """
    state = _read_descriptions(locate_file(path)).get(kind.key)
    try:
        return kind.from_dict(state) if isinstance(state, dict) else None
    except CheckpointError:
        return None


def _read_descriptions(path: Path) -> JsonDict:
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a checkpoint; give one that the "
            "training tools wrote"
        )
    # A slim file keeps its description in the header, a checkpoint among its entries.
    if path.suffix != ".safetensors":
        return content
    return {key: _parse_json(text) for key, text in read_metadata(path).items() if key != DIGESTS}


def _parse_json(text: str) -> object:
    """Return what a text of JSON holds, or None if it is no JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a file; the prefix of a training task is taken off their names.

    Raises:
        CheckpointError: The file is missing, or needs unpickling of code.
    """
    weights = read_state_dict(path)
    if all(name.startswith("model.") for name in weights):
        weights = {name.removeprefix("model."): weight for name, weight in weights.items()}
    return weights


def save_model(path: Path, spec: ModelSpec, model: nn.Module) -> None:
    """Write the slim file: weights, description and digests of them; see `save_bytes`."""
    weights = {n: w.detach().cpu().contiguous() for n, w in model.state_dict().items()}
    described = {spec.key: json.dumps(spec.to_dict())}
    metadata = {**described, DIGESTS: compute_digests(weights, described)}
    # Its own `save_file` writes a nameless file first, which would stay where a run is killed.
    save_bytes(path, safetensors.torch.save(weights, metadata))


def select_fitting_weights(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Split weights into those a model can take and a line for each that it cannot.

    Returns:
        The weights whose name and shape fit, and sentences about the others.
    """
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, value in weights.items():
        if name not in own:
            problems.append(f"{name}: the model has none")
        elif own[name].shape != value.shape:
            problems.append(
                f"{name}: {tuple(value.shape)}, the model's is {tuple(own[name].shape)}"
            )
        else:
            fitting[name] = value
    problems += [f"{name}: not in the file" for name in own if name not in weights]
    return fitting, problems


def compare_names(file: str, before: ModelSpec, now: ModelSpec) -> list[str]:
    """Return lines about as many, but other classes or keypoints that would be started from.

    Args:
        file: File of the weights.
        before: Its description.
        now: Description of the model that is started.

    Raises:
        CheckpointError: The classes are the model's in another order, so that each would start as
            another.
    """
    old, new = before.class_names, now.class_names
    if old != new and sorted(old) == sorted(new):
        order = json.dumps(list(old), ensure_ascii=False)
        raise CheckpointError(
            f"{file}: has the classes in the order {quote(old, 20)}, the training data in the "
            f"order {quote(new, 20)}; keep the file's with --data.classes '{order}'"
        )
    pairs = (("classes", old, new), ("keypoints", before.keypoint_names, now.keypoint_names))
    return [
        f"  its {what} are {quote(first, 20)}: outputs of other {what} start from theirs"
        for what, first, second in pairs
        if first != second and len(first) == len(second)
    ]
