"""The prediction layers of DSOD: for every map, box codes and class logits of each prior.

Legend: N images, L maps, A priors a cell, P priors of all maps, K classes with the background.
Source: szq0214/DSOD, ``CreateMultiBoxHead`` as called by ``DSOD300_pascal.py``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densenet_backbones.features import FeatureLevel
from densenet_backbones.messages import check_interval


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
    """Channel norm, then a 3x3 convolution each for boxes and classes, and a batch norm or a bias.

    As published, a batch norm (epsilon 1e-3) follows each convolution, which has no bias: logits of
    mean zero and variance one at the start, so that the first losses are of moderate size whatever
    the backbone. Training then has to bring scales and biases to where most priors show nothing,
    which takes an optimizer of small even steps, such as AdamW, thousands of them. Short trainings
    do better with biases that begin there, and with convolutions that reach any scale themselves.

    Args:
        levels: L maps to predict from.
        priors_per_cell: A of each map.
        num_classes: K, with the background.
        norm_scale: Initial scale of the channel norms (DSOD's 20, on all maps).
        norm: Follow the convolutions with batch norms; False gives them biases instead.
        prior_probability: Share of priors that show objects, as the head takes it before training,
            in (0, 1); RetinaNet has 0.01 (1708.02002, section 4.1). None as published: all classes
            alike.

    Attributes:
        feature_norms, box_convs, box_norms, class_convs, class_norms: Modules of each map.
    """

    def __init__(
        self,
        levels: Sequence[FeatureLevel],
        priors_per_cell: Sequence[int],
        num_classes: int,
        norm_scale: float = 20.0,
        norm: bool = True,
        prior_probability: float | None = None,
    ) -> None:
        super().__init__()
        if prior_probability is not None:
            check_interval("prior_probability", prior_probability, "(0, 1)")
        self.num_classes = num_classes
        self.feature_norms = nn.ModuleList()
        self.box_convs, self.box_norms = nn.ModuleList(), nn.ModuleList()
        self.class_convs, self.class_norms = nn.ModuleList(), nn.ModuleList()
        for level, priors in zip(levels, priors_per_cell, strict=True):
            self.feature_norms.append(ChannelL2Norm(level.channels, norm_scale))
            box_conv, box_norm = _build_layer(level.channels, 4 * priors, norm)
            class_conv, class_norm = _build_layer(level.channels, num_classes * priors, norm)
            if prior_probability is not None:
                biased: nn.Conv2d | nn.BatchNorm2d = class_norm or class_conv
                _expect_background(biased, num_classes, prior_probability)
            self.box_convs.append(box_conv)
            self.box_norms.append(box_norm or nn.Identity())
            self.class_convs.append(class_conv)
            self.class_norms.append(class_norm or nn.Identity())

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

        Without batch norms, the biases. Its body's batch norms and the scales of the channel norms
        do decay.
        """
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(("box_norms.", "class_norms.")) or name.endswith(".bias")
        }


def permute_to_N_HWA_C(x: Tensor, width: int) -> Tensor:  # noqa: N802 - names the layout
    """(N, A * C, H, W) to (N, H * W * A, C) with C = ``width``: a row for each prior."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


def _build_layer(
    in_channels: int, out_channels: int, norm: bool
) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=not norm)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv, nn.BatchNorm2d(out_channels, eps=1e-3) if norm else None


def _expect_background(
    layer: nn.Conv2d | nn.BatchNorm2d, num_classes: int, prior_probability: float
) -> None:
    """Set biases (A * K) of zeros so that all object classes together have the probability."""
    assert layer.bias is not None
    odds = (1 - prior_probability) / prior_probability
    with torch.no_grad():
        layer.bias.view(-1, num_classes)[:, 0] = math.log(odds * (num_classes - 1))
