"""torchvision's two-stage detectors on our backbones: Faster, Mask and Keypoint R-CNN.

Legend: K classes including the background (class 0), L levels. Sources: torchvision
``models/detection/{faster,mask,keypoint}_rcnn.py``; the ``_v2`` structure is Li et al.'s
(2111.11429), as torchvision builds it.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torchvision.models.detection as tv
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from densenet_backbones.heads.detection.anchors import (
    ASPECT_RATIOS,
    PyramidAnchors,
    build_roi_pool,
    check_anchors,
)
from densenet_backbones.heads.detection.backbone import DetectionBackbone
from densenet_backbones.heads.detection.base import (
    DetectorOptions,
    TorchvisionDetector,
    build,
    keep_float32,
)
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.messages import check_whole

__all__ = [
    "FasterRCNN",
    "KeypointRCNN",
    "MaskRCNN",
    "fasterrcnn_fpn",
    "fasterrcnn_fpn_v2",
    "keypointrcnn_fpn",
    "maskrcnn_fpn",
    "maskrcnn_fpn_v2",
]

ANCHOR_STRIDES = 8  # size of an anchor in strides: 32 pixels at stride 4, as torchvision's


class FasterRCNNOptions(DetectorOptions, total=False):
    """Keyword arguments of `fasterrcnn_fpn`, explained there."""

    anchor_scale: float
    aspect_ratios: Sequence[float]
    rpn_pre_nms_top_n_train: int
    rpn_pre_nms_top_n_test: int
    rpn_post_nms_top_n_train: int
    rpn_post_nms_top_n_test: int
    rpn_nms_thresh: float
    rpn_fg_iou_thresh: float
    rpn_bg_iou_thresh: float
    rpn_batch_size_per_image: int
    rpn_positive_fraction: float
    rpn_score_thresh: float
    box_score_thresh: float
    box_nms_thresh: float
    box_detections_per_img: int
    box_fg_iou_thresh: float
    box_bg_iou_thresh: float
    box_batch_size_per_image: int
    box_positive_fraction: float
    bbox_reg_weights: Sequence[float] | None


class KeypointRCNNOptions(FasterRCNNOptions, total=False):
    """Keyword arguments of `keypointrcnn_fpn`."""

    num_keypoints: int


def _build_pool(backbone: DetectionBackbone, output_size: int) -> MultiScaleRoIAlign:
    levels = backbone.roi_levels
    return build_roi_pool(levels, output_size, names=backbone.map_names[: len(levels)])


class _PyramidRCNN(TorchvisionDetector):
    """Two-stage detectors whose anchors and RoI pooling follow the backbone's levels.

    Args:
        backbone: Gives L maps.
        num_classes: K.
        transform: From images to the network's batch.
        v2: torchvision's newer heads: two convolutions in the RPN, four with batch norm before
            the box head's linear layer.
        anchor_scale: Factor on the anchors' sizes, below 1 for small objects.
        aspect_ratios: Height : width of the anchors.
        rpn_anchor_generator: In place of the anchors by the levels.
        **settings: torchvision's own of the class, and its modules.

    Raises:
        ValueError: A custom anchor generator does not belong to the backbone's levels.
    """

    rpn: Any
    roi_heads: Any

    def __init__(
        self,
        backbone: DetectionBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        v2: bool = False,
        anchor_scale: float = 1.0,
        aspect_ratios: Sequence[float] = ASPECT_RATIOS,
        rpn_anchor_generator: AnchorGenerator | None = None,
        **settings: Any,
    ) -> None:
        # One anchor size a level; a caller's own generator has to follow the levels as well.
        scale = ANCHOR_STRIDES * anchor_scale
        anchors = rpn_anchor_generator or PyramidAnchors(backbone.levels, [scale], aspect_ratios)
        check_anchors(anchors, backbone.levels, scale)
        # Heads and pooling are defaults: a caller's own modules in ``settings`` go first.
        if v2:
            width = backbone.out_channels
            number = anchors.num_anchors_per_location()[0]
            settings.setdefault("rpn_head", RPNHead(width, number, conv_depth=2))
            layers = [256] * 4, [1024]
            head = FastRCNNConvFCHead((width, 7, 7), *layers, norm_layer=nn.BatchNorm2d)
            settings.setdefault("box_head", head)
        settings.setdefault("box_roi_pool", _build_pool(backbone, 7))
        # torchvision's constructor makes a transform of its own, which ours then replaces.
        super().__init__(backbone, num_classes, rpn_anchor_generator=anchors, **settings)
        self.num_classes = num_classes
        self.transform = transform
        # Their outputs are decoded into boxes; the layers below may run in bfloat16.
        keep_float32(self.rpn.head, self.roi_heads.box_predictor)


class FasterRCNN(_PyramidRCNN, tv.FasterRCNN):
    """Faster R-CNN (Ren et al., 1506.01497); arguments as of its base."""

    option_names = FasterRCNNOptions.__optional_keys__


class MaskRCNN(_PyramidRCNN, tv.MaskRCNN):
    """Mask R-CNN (He et al., 1703.06870); arguments as of its base."""

    target_types = ("boxes", "masks")
    option_names = FasterRCNNOptions.__optional_keys__

    def __init__(
        self,
        backbone: DetectionBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        v2: bool = False,
        **settings: Any,
    ) -> None:
        if v2:
            heads = MaskRCNNHeads(backbone.out_channels, [256] * 4, 1, norm_layer=nn.BatchNorm2d)
            settings.setdefault("mask_head", heads)
        settings.setdefault("mask_roi_pool", _build_pool(backbone, 14))
        super().__init__(backbone, num_classes, transform, v2=v2, **settings)
        keep_float32(self.roi_heads.mask_predictor)


class KeypointRCNN(_PyramidRCNN, tv.KeypointRCNN):
    """Mask R-CNN's keypoint branch (1703.06870, section 5); arguments as of its base.

    Args:
        backbone: As of its base, and so are the others but one.
        num_classes: K.
        transform: From images to the network's batch.
        num_keypoints: Of each object.
        **settings: As of its base.
    """

    target_types = ("boxes", "keypoints")
    option_names = KeypointRCNNOptions.__optional_keys__

    def __init__(
        self,
        backbone: DetectionBackbone,
        num_classes: int,
        transform: DetectionTransform,
        *,
        num_keypoints: int = 17,
        **settings: Any,
    ) -> None:
        check_whole("num_keypoints", num_keypoints)
        settings.setdefault("keypoint_roi_pool", _build_pool(backbone, 14))
        super().__init__(backbone, num_classes, transform, num_keypoints=num_keypoints, **settings)
        self.num_keypoints = num_keypoints
        keep_float32(self.roi_heads.keypoint_predictor)


def fasterrcnn_fpn(*, num_classes: int = 91, **options: Unpack[FasterRCNNOptions]) -> FasterRCNN:
    """Faster R-CNN on the feature pyramid of any backbone; all arguments are JSON types.

    Args:
        num_classes: K, with the background.
        **options: ``backbone``, a timm name (``densenet121_features``), and the arguments of
            `densenet_fpn_backbone`; ``weights``, a file of a detector, ours or torchvision's, of
            which is taken what fits; ``min_size``, ``max_size`` (800 and 1333),
            ``image_mean``, ``image_std`` and the further arguments of `DetectionTransform`;
            ``anchor_scale`` and
            ``aspect_ratios`` of the anchors; torchvision's settings under its own names:
            ``rpn_...``, ``box_score_thresh``, ``box_nms_thresh``, ``box_detections_per_img``, ...

    Raises:
        ValueError: An argument is out of range, or does not fit the backbone.
    """
    return build(FasterRCNN, num_classes, options)


def fasterrcnn_fpn_v2(*, num_classes: int = 91, **options: Unpack[FasterRCNNOptions]) -> FasterRCNN:
    """Faster R-CNN with the heads of torchvision's ``fasterrcnn_resnet50_fpn_v2``.

    Args:
        num_classes: K, with the background.
        **options: As of `fasterrcnn_fpn`; the backbone's ``norm`` is ``bn`` unless given,
            and the FPN has batch norm as well.
    """
    return build(FasterRCNN, num_classes, _set_v2_defaults(options), v2=True)


def maskrcnn_fpn(*, num_classes: int = 91, **options: Unpack[FasterRCNNOptions]) -> MaskRCNN:
    """Mask R-CNN on the feature pyramid of any backbone.

    Args:
        num_classes: K, with the background.
        **options: As of `fasterrcnn_fpn`.
    """
    return build(MaskRCNN, num_classes, options)


def maskrcnn_fpn_v2(*, num_classes: int = 91, **options: Unpack[FasterRCNNOptions]) -> MaskRCNN:
    """Mask R-CNN with the heads of torchvision's ``maskrcnn_resnet50_fpn_v2``.

    Args:
        num_classes: K, with the background.
        **options: As of `fasterrcnn_fpn_v2`.
    """
    return build(MaskRCNN, num_classes, _set_v2_defaults(options), v2=True)


def keypointrcnn_fpn(
    *, num_classes: int = 2, **options: Unpack[KeypointRCNNOptions]
) -> KeypointRCNN:
    """Keypoint R-CNN on the feature pyramid of any backbone.

    Args:
        num_classes: K, with the background.
        **options: As of `fasterrcnn_fpn`, but ``min_size`` is one of 640, 672, ..., 800, and
            ``num_keypoints``, 17 unless given.
    """
    # torchvision's sizes of training with keypoints, drawn for each image.
    options.setdefault("min_size", [640, 672, 704, 736, 768, 800])
    return build(KeypointRCNN, num_classes, options)


def _set_v2_defaults(options: FasterRCNNOptions) -> FasterRCNNOptions:
    """Batch norm unless another is given, also where the backbone has weights, and in the FPN."""
    # These structures were trained with batch norm that learns, in the pyramid as well.
    changed: FasterRCNNOptions = {**options, "norm": options.get("norm") or "bn"}
    if changed.get("adapter", "fpn") == "fpn":
        changed["adapter_kwargs"] = {"norm": "bn", **(options.get("adapter_kwargs") or {})}
    return changed
