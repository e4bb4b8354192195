"""Base of torchvision's detectors on our backbones: checks, the transform, freezing, building.

Source: torchvision ``models/detection/generalized_rcnn.py``, whose interface it keeps.

Legend: N images, B objects, D detections, K classes including the background (class 0), C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from densenet_backbones.heads.backbones import read_normalization
from densenet_backbones.heads.detection.backbone import (
    BackboneOptions,
    DetectionBackbone,
    densenet_fpn_backbone,
)
from densenet_backbones.heads.detection.transform import DetectionTransform, build_transform
from densenet_backbones.heads.options import (
    ImageOptions,
    Options,
    SizeOptions,
    check_options,
    drop_none,
    split_options,
)
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups, prefix_names
from densenet_backbones.heads.validation import (
    PythonModule,
    check_images,
    check_keypoints,
    check_masks,
    check_targets,
    refuse_tracing,
)
from densenet_backbones.heads.weights import load_weights

__all__ = [
    "DetectorOptions",
    "TorchvisionDetector",
    "build",
    "keep_float32",
    "make_transform",
]

Target = dict[str, Tensor]
_Detector = TypeVar("_Detector", bound="TorchvisionDetector")

DEFAULT_BACKBONE = "densenet121_features"


class TorchvisionDetector(PythonModule):
    """Mixed into a detector of torchvision, before its class, to go with our tools.

    Attributes:
        target_types: What its targets must hold and its detections do: ``boxes``, and perhaps
            ``masks`` or ``keypoints``.
        option_names: Keyword arguments that builders of this class take.
        num_classes: K.
        num_keypoints: Of each object, where it learns them.
        transform: From images to the network's batch and back.
        weights_taken: Names of the tensors that came from a detector's file.
        weights_left: A line for each tensor of the file that the model could not take.
    """

    target_types: ClassVar[tuple[str, ...]] = ("boxes",)
    option_names: ClassVar[frozenset[str]]
    num_classes: int
    num_keypoints: int | None = None
    transform: DetectionTransform
    backbone: DetectionBackbone
    weights_taken: tuple[str, ...] = ()
    weights_left: tuple[str, ...] = ()

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: N tensors (C, H, W), RGB floats 0..1, of any sizes.
            targets: For training, N dicts with ``boxes`` (B, 4) float32 xyxy in the frame of the
                given image, ``labels`` (B,) int64 in 1..K-1, and by `target_types` ``masks``
                (B, H, W) uint8 or ``keypoints`` (B, number, 3) float32 of x, y and visibility; B
                may be 0.

        Returns:
            Training: scalar losses by name. Evaluation: for each image ``boxes`` (D, 4) in its own
            frame, ``scores`` (D,), ``labels`` (D,), and by `target_types` ``masks`` (D, 1, H, W)
            floats 0..1, or ``keypoints`` (D, number, 3) with ``keypoints_scores``.

        Raises:
            ValueError: An image or target has another shape, type or range.
        """
        # Our checks first, since torchvision's look at less (see `heads.validation`).
        refuse_tracing(self)
        check_images(images, self.backbone.in_chans)
        if self.training:
            check_targets(targets, len(images), self.num_classes)
            assert targets is not None
            if "masks" in self.target_types:
                check_masks(targets, images)
            if self.num_keypoints is not None:
                check_keypoints(targets, self.num_keypoints)
        # torch reports a map of one cell by its shape alone; say which images to give instead.
        try:
            result: dict[str, Tensor] | list[dict[str, Tensor]] = super().forward(
                images, targets if self.training else None
            )
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a norm cannot take its statistics from a single value, one image whose coarsest "
                "map has one cell: use 2 images or more, larger ones, or norm='frozen'"
            ) from error
        return result

    def set_transform(self, described: Options) -> None:
        """Take the transform that ``transform.to_dict()`` of a like detector describes.

        Raises:
            ValueError: It is of other channels, or not such a description.
        """
        self.transform = build_transform(described, self.backbone.in_chans).train(self.training)

    def freeze(self, stages: int) -> None:
        """Freezes the backbone's first stages: 1 is the stem, 1 + i reaches up to block i."""
        self.backbone.freeze(stages)

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where the backbone names some."""
        return prefix_names(self.backbone, "backbone.")

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Timm's layer groups of the backbone; adapter and heads are the last group of all."""
        return prefix_groups(self.backbone, "backbone.", coarse)


def keep_float32(*modules: Any) -> None:
    """Brings what modules return to float32 or finer: boxes of bfloat16 would be off by pixels."""
    for module in modules:
        module.register_forward_hook(_to_float32)


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.to(torch.promote_types(output.dtype, torch.float32))
    if isinstance(output, dict):
        return {name: _to_float32(module, inputs, value) for name, value in output.items()}
    return type(output)(_to_float32(module, inputs, value) for value in output)


# ------------------------------------------------------------------------------ builders


class DetectorOptions(ImageOptions, SizeOptions, BackboneOptions, total=False):
    """Keyword arguments that the builders of all detectors of any image size have.

    Attributes:
        backbone: timm name of a feature network, ours or any other.
        weights: File of a detector's weights, ours or torchvision's own; what fits is taken.
    """

    backbone: str
    weights: str | None


def build(
    kind: type[_Detector],
    num_classes: int,
    options: Options,
    **fixed: Any,
) -> _Detector:
    """Build a detector on `densenet_fpn_backbone` from the keyword arguments of its builder.

    Args:
        kind: The detector's class: called with a backbone, the number of classes, the transform
            and what remains of the options.
        num_classes: K.
        options: Those of `DetectorOptions` and the class's own.
        **fixed: Further arguments for the class.

    Raises:
        TypeError: An option is unknown; torchvision's classes would take it without a word.
        ValueError: One is out of range, or does not fit the backbone.
    """
    check_options(num_classes, options, kind.option_names)
    # What remains besides images and backbone are the class's own settings.
    images, sizes, body, settings = split_options(
        options, (ImageOptions, SizeOptions, BackboneOptions)
    )
    name = settings.pop("backbone", DEFAULT_BACKBONE)
    weights = settings.pop("weights", None)
    backbone = densenet_fpn_backbone(name, **body)
    transform = make_transform(backbone, name, images, sizes)
    make: Callable[..., _Detector] = kind
    try:
        model = make(backbone, num_classes, transform, **fixed, **settings)
    except AssertionError as error:  # torchvision's, of thresholds in the wrong order
        raise ValueError(f"{kind.__name__} cannot be built with {settings}: {error}") from error
    return load_weights(model, weights)


def make_transform(
    backbone: DetectionBackbone, name: str, images: Options, sizes: Options
) -> DetectionTransform:
    """Build the transform that a backbone's weights expect.

    Args:
        backbone: Backbone of the detector.
        name: timm name of its body.
        images: Options of `ImageOptions`, which go before those of the weights.
        sizes: Options of `SizeOptions`.

    Raises:
        ValueError: An argument is unknown or out of range.
    """
    # Weights expect three channels; for other numbers the gray of their mean stands in.
    facts = read_normalization(backbone.body, name)
    if backbone.in_chans != 3:
        for key in ("image_mean", "image_std"):
            facts[key] = [sum(facts[key]) / len(facts[key])] * backbone.in_chans
        facts["channel_order"] = "rgb"
    # Padded to the body's coarsest stride, so that its maps halve without a rest.
    coarsest = max(level.stride for level in backbone.adapter.levels_in)
    sizes = {"size_divisible": max(32, coarsest), **sizes}
    sizes["resize_in_training"] = not sizes.pop("_skip_resize", False)
    return build_transform({**facts, **sizes, **drop_none(images)}, backbone.in_chans)
