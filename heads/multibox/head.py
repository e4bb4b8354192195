"""The prediction layers of DSOD: for every map, box codes and class logits of each prior.

Legend: N images, L maps, A priors a cell, P priors of all maps, K classes with the background.
Source: szq0214/DSOD, ``CreateMultiBoxHead`` as called by ``DSOD300_pascal.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel


class ChannelL2Norm(nn.Module):
    """Scales every pixel's channel vector to a learnable length (ParseNet, arXiv:1506.04579).

    Args:
        channels: C.
        scale: Initial value of the C factors.
    """

    # Caffe adds it below the root; without it, a map that ReLUs have silenced would divide by
    # zero forwards and have gradients of 1e12 backwards.
    eps = 1e-10

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape; squares are summed in float32."""
        x = x.float()
        inverse_length = (x.square().sum(dim=1, keepdim=True) + self.eps).rsqrt()
        return x * inverse_length * self.scale.view(1, -1, 1, 1)


class MultiBoxHead(nn.Module):
    """Channel norm, then a 3x3 convolution and batch norm each for boxes and classes.

    The convolutions have no bias; the batch norms (epsilon 1e-3) make zero-mean, unit-variance
    logits at the start, so that the first losses are of moderate size whatever the backbone.

    Args:
        levels: L maps to predict from.
        priors_per_cell: A of each map.
        num_classes: K, with the background.
        norm_scale: Initial scale of the channel norms (DSOD's 20, on all maps).

    Attributes:
        feature_norms, box_convs, box_norms, class_convs, class_norms: Modules of each map.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        priors_per_cell: Sequence[int],
        num_classes: int,
        norm_scale: float = 20.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_norms = nn.ModuleList()
        self.box_convs, self.box_norms = nn.ModuleList(), nn.ModuleList()
        self.class_convs, self.class_norms = nn.ModuleList(), nn.ModuleList()
        for level, priors in zip(levels, priors_per_cell, strict=True):
            self.feature_norms.append(ChannelL2Norm(level.channels, norm_scale))
            self.box_convs.append(_build_conv3x3(level.channels, 4 * priors))
            self.box_norms.append(nn.BatchNorm2d(4 * priors, eps=1e-3))
            self.class_convs.append(_build_conv3x3(level.channels, num_classes * priors))
            self.class_norms.append(nn.BatchNorm2d(num_classes * priors, eps=1e-3))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Box codes (N, P, 4) and class logits (N, P, K) from L maps."""
        # All maps end up in one list of priors, in the order of `PriorSpec.boxes`.
        codes, logits = [], []
        for index, x in enumerate(maps):
            x = self.feature_norms[index](x)
            box = self.box_norms[index](self.box_convs[index](x))
            logit = self.class_norms[index](self.class_convs[index](x))
            codes.append(permute_to_N_HWA_C(box, 4))
            logits.append(permute_to_N_HWA_C(logit, self.num_classes))
        return torch.cat(codes, dim=1), torch.cat(logits, dim=1)

    def list_undecayed(self) -> set[str]:
        """Names of the parameters that DSOD trains without weight decay: the head's batch norms.

        Its body's batch norms and the scales of the channel norms do decay.
        """
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(("box_norms.", "class_norms."))
        }


def permute_to_N_HWA_C(x: Tensor, width: int) -> Tensor:  # noqa: N802 - names the layout
    """(N, A * C, H, W) to (N, H * W * A, C) with C = ``width``: a row for each prior."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def _build_conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.normal_(conv.weight, std=0.01)
    return conv
