"""Adapters between a backbone and a head: feature levels in, feature levels out.

Every adapter is an `Adapter`: it has ``levels_in`` and ``levels`` (tuples of `FeatureLevel`) and
maps a list of N x C x H x W tensors, one a level of ``levels_in``, to a list in the order of
``levels``.
"""

from densenet_backbones.fpn.adapter import Adapter
from densenet_backbones.fpn.bifpn import BiFPN
from densenet_backbones.fpn.build import build_adapter
from densenet_backbones.fpn.dense_prediction import DensePrediction, caffe_xavier_
from densenet_backbones.fpn.feature_pyramid import FPN
from densenet_backbones.fpn.path_aggregation import PAN

__all__ = ["FPN", "PAN", "Adapter", "BiFPN", "DensePrediction", "build_adapter", "caffe_xavier_"]
