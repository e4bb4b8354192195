"""Heads: boxes, priors, losses; DSOD and torchvision's detectors; segmenters and their losses."""

if not __name__.startswith("densenet_backbones."):
    raise ImportError("import densenet_backbones.heads, not heads: a second copy of every class")

from densenet_backbones.heads.detection.backbone import DetectionBackbone, densenet_fpn_backbone
from densenet_backbones.heads.detection.dsod import DSOD
from densenet_backbones.heads.detection.dsod_builders import (
    dsod300,
    dsod300_smallest,
    dsod512,
    dsod_tiny,
)
from densenet_backbones.heads.detection.one_stage import (
    FCOS,
    RetinaNet,
    fcos_fpn,
    retinanet_fpn,
    retinanet_fpn_v2,
)
from densenet_backbones.heads.detection.rcnn import (
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    fasterrcnn_fpn,
    fasterrcnn_fpn_v2,
    keypointrcnn_fpn,
    maskrcnn_fpn,
    maskrcnn_fpn_v2,
)
from densenet_backbones.heads.detection.ssd import SSD, ssd300, ssd512
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.heads.multibox.box_coding import decode, encode
from densenet_backbones.heads.multibox.head import ChannelL2Norm, MultiBoxHead
from densenet_backbones.heads.multibox.losses import hardest_negatives, multibox_loss
from densenet_backbones.heads.multibox.matching import (
    PriorTargets,
    assign_targets,
    match_priors,
    out_of_reach,
)
from densenet_backbones.heads.multibox.priors import PriorSpec, dsod_priors
from densenet_backbones.heads.multibox.selection import Selection, select_detections
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.segmentation.fcdensenet import (
    FCDenseNet,
    fcdensenet56,
    fcdensenet67,
    fcdensenet103,
)
from densenet_backbones.heads.segmentation.losses import SegmentationLoss
from densenet_backbones.heads.segmentation.pixel_losses import IGNORED
from densenet_backbones.heads.segmentation.segmenter import Segmenter, TorchvisionSegmenter
from densenet_backbones.heads.segmentation.unet import UNet, unet
from densenet_backbones.heads.weights import load_matching

__all__ = [
    "DSOD",
    "FCOS",
    "IGNORED",
    "SSD",
    "ChannelL2Norm",
    "DetectionBackbone",
    "DetectionTransform",
    "FCDenseNet",
    "FasterRCNN",
    "ImageNormalization",
    "KeypointRCNN",
    "MaskRCNN",
    "MultiBoxHead",
    "PriorSpec",
    "PriorTargets",
    "RetinaNet",
    "SegmentationLoss",
    "Segmenter",
    "Selection",
    "TorchvisionSegmenter",
    "UNet",
    "assign_targets",
    "decode",
    "densenet_fpn_backbone",
    "dsod300",
    "dsod300_smallest",
    "dsod512",
    "dsod_priors",
    "dsod_tiny",
    "encode",
    "fasterrcnn_fpn",
    "fasterrcnn_fpn_v2",
    "fcdensenet56",
    "fcdensenet67",
    "fcdensenet103",
    "fcos_fpn",
    "hardest_negatives",
    "keypointrcnn_fpn",
    "load_matching",
    "maskrcnn_fpn",
    "maskrcnn_fpn_v2",
    "match_priors",
    "multibox_loss",
    "out_of_reach",
    "retinanet_fpn",
    "retinanet_fpn_v2",
    "select_detections",
    "ssd300",
    "ssd512",
    "unet",
]
