"""torchvision's one-stage detectors on our backbones: RetinaNet and FCOS.

Legend: K classes including the background (class 0, never predicted), L levels. Sources:
torchvision ``models/detection/{retinanet,fcos}.py``; the ``_v2`` structure of RetinaNet is that of
Zhang et al. (1912.02424), as torchvision builds it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import torchvision.models.detection as tv
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from densenet_backbones.heads.detection.anchors import ASPECT_RATIOS, PyramidAnchors, check_anchors
from densenet_backbones.heads.detection.backbone import DetectionBackbone
from densenet_backbones.heads.detection.base import (
    DetectorOptions,
    TorchvisionDetector,
    build,
    keep_float32,
)
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.heads.options import Keywords, Options, SelectionOptions

__all__ = ["FCOS", "RetinaNet", "fcos_fpn", "retinanet_fpn", "retinanet_fpn_v2"]

RETINANET_STRIDES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
"""Sizes of RetinaNet's anchors in strides (Lin et al., 1708.02002, section 4)."""

_GROUPS = 32  # of the heads' group norms


class OneStageOptions(DetectorOptions, SelectionOptions, total=False):
    """Keyword arguments that RetinaNet and FCOS share."""


class RetinaNetOptions(OneStageOptions, total=False):
    """Keyword arguments of `retinanet_fpn`, explained there."""

    anchor_scale: float
    aspect_ratios: Sequence[float]
    fg_iou_thresh: float
    bg_iou_thresh: float


class FCOSOptions(OneStageOptions, total=False):
    """Keyword arguments of `fcos_fpn`."""

    center_sampling_radius: float


class _OneStage(TorchvisionDetector):
    """Never predicts the background, which torchvision's sigmoid heads have a class for."""

    def postprocess_detections(
        self, head_outputs: Keywords, anchors: Any, image_shapes: Any
    ) -> list[dict[str, Tensor]]:
        """Detections from the outputs of all levels, by torchvision's class."""
        # Left out, not set to a score of 0: FCOS's root has no gradient there.
        logits = [level[..., 1:] for level in head_outputs["cls_logits"]]
        detections: list[dict[str, Tensor]] = super().postprocess_detections(  # type: ignore[misc]
            {**head_outputs, "cls_logits": logits}, anchors, image_shapes
        )
        return [{**found, "labels": found["labels"] + 1} for found in detections]


class RetinaNet(_OneStage, tv.RetinaNet):
    """RetinaNet (Lin et al., 1708.02002) whose anchors follow the backbone's levels.

    Args:
        backbone: Gives L maps.
        num_classes: K.
        transform: From images to the network's batch.
        v2: torchvision's newer heads: group norm, and the generalized IoU as loss of the boxes.
        anchor_scale: Factor on the anchors' sizes, below 1 for small objects.
        aspect_ratios: Height : width of the anchors.
        anchor_generator: In place of the anchors by the levels.
        **settings: torchvision's own of the class, and its modules.

    Raises:
        ValueError: A custom anchor generator does not belong to the backbone's levels, or the
            backbone's width is none that group norm can divide.
    """

    option_names = RetinaNetOptions.__optional_keys__

    def __init__(
        self,
        backbone: DetectionBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        v2: bool = False,
        anchor_scale: float = 1.0,
        aspect_ratios: Sequence[float] = ASPECT_RATIOS,
        anchor_generator: AnchorGenerator | None = None,
        **settings: Any,
    ) -> None:
        # Three sizes a level, a third of an octave apart; the middle one is the usual size.
        scales = [scale * anchor_scale for scale in RETINANET_STRIDES]
        anchors = anchor_generator or PyramidAnchors(backbone.levels, scales, aspect_ratios)
        check_anchors(anchors, backbone.levels, scales[1])
        if v2:
            _check_width(backbone)
            number = anchors.num_anchors_per_location()[0]
            norm = partial(nn.GroupNorm, _GROUPS)
            head = RetinaNetHead(backbone.out_channels, number, num_classes, norm_layer=norm)
            # torchvision's builder sets the same private name: there is no argument for it.
            head.regression_head._loss_type = "giou"
            settings.setdefault("head", head)
        super().__init__(backbone, num_classes, anchor_generator=anchors, **settings)
        self.num_classes = num_classes
        self.transform = transform
        keep_float32(self.head)


class FCOS(_OneStage, tv.FCOS):
    """FCOS (Tian et al., 1904.01355), with one point a cell.

    Args:
        backbone: Gives L maps.
        num_classes: K.
        transform: From images to the network's batch.
        anchor_generator: In place of points by the levels; the sizes must be the strides, which
            say which objects a level learns.
        **settings: torchvision's own of the class, and its modules.

    Raises:
        ValueError: A custom anchor generator does not belong to the backbone's levels, or the
            backbone's width is none that group norm can divide.
    """

    option_names = FCOSOptions.__optional_keys__

    def __init__(
        self,
        backbone: DetectionBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        anchor_generator: AnchorGenerator | None = None,
        **settings: Any,
    ) -> None:
        # Anchors of one stride: FCOS reads the stride from their size, and its range of objects.
        points = anchor_generator or PyramidAnchors(backbone.levels, [1.0], [1.0])
        check_anchors(points, backbone.levels, scale=1.0, tolerance=1.05)
        _check_width(backbone)
        super().__init__(backbone, num_classes, anchor_generator=points, **settings)
        self.num_classes = num_classes
        self.transform = transform
        keep_float32(self.head)


def _check_width(backbone: DetectionBackbone) -> None:
    width = backbone.out_channels
    if width % _GROUPS or width < 2 * _GROUPS:  # a single value has no deviation
        raise ValueError(
            f"out_channels must be a multiple of {_GROUPS}, {2 * _GROUPS} or more, for the head's "
            f"{_GROUPS} groups of channels, got {width}"
        )


def retinanet_fpn(*, num_classes: int = 91, **options: Unpack[RetinaNetOptions]) -> RetinaNet:
    """RetinaNet on the feature pyramid of any backbone; all arguments are JSON types.

    Args:
        num_classes: K, with the background.
        **options: ``backbone``, a timm name (``densenet121_features``), and the arguments of
            `densenet_fpn_backbone`, where ``min_stride`` is 8, ``extra`` is ``p6p7``, and its
            levels are made from the pyramid's last, as in torchvision; ``weights``, a file of a
            detector, ours or torchvision's, of which is taken what fits; ``min_size``,
            ``max_size`` (800 and 1333), ``image_mean``, ``image_std`` and the further arguments of
            `DetectionTransform`; ``anchor_scale`` and ``aspect_ratios`` of the anchors;
            torchvision's settings under its own names: ``score_thresh``, ``nms_thresh``,
            ``detections_per_img``, ``topk_candidates``, ``fg_iou_thresh``, ``bg_iou_thresh``.

    Raises:
        ValueError: An argument is out of range, or does not fit the backbone.
    """
    return build(RetinaNet, num_classes, _start_at_stride_8(options, p6p7_input="p5"))


def retinanet_fpn_v2(*, num_classes: int = 91, **options: Unpack[RetinaNetOptions]) -> RetinaNet:
    """RetinaNet with the heads of torchvision's ``retinanet_resnet50_fpn_v2``.

    Args:
        num_classes: K, with the background.
        **options: As of `retinanet_fpn`, but the levels of ``p6p7`` are made from the backbone's
            last, and its ``norm`` is ``bn`` unless given.
    """
    changed = {**_start_at_stride_8(options, p6p7_input="c5"), "norm": options.get("norm") or "bn"}
    return build(RetinaNet, num_classes, changed, v2=True)


def fcos_fpn(*, num_classes: int = 91, **options: Unpack[FCOSOptions]) -> FCOS:
    """FCOS on the feature pyramid of any backbone.

    Args:
        num_classes: K, with the background.
        **options: As of `retinanet_fpn` without those of anchors, and ``center_sampling_radius``.
    """
    return build(FCOS, num_classes, _start_at_stride_8(options, p6p7_input="p5"))


def _start_at_stride_8(options: Options, p6p7_input: str) -> Keywords:
    """Levels P3 to P7 unless others are given: P2 would have most of all anchors."""
    changed: Keywords = {"min_stride": 8, "extra": "p6p7", **options}
    # Only these two can choose the map that P6 is made from.
    if changed.get("adapter", "fpn") in ("fpn", "pan"):
        changed["adapter_kwargs"] = {
            "p6p7_input": p6p7_input,
            **(changed.get("adapter_kwargs") or {}),
        }
    return changed
