"""Pools between dense blocks, and their dilated (a trous) form.

Shapes: N images, C channels, H and W pixels, d dilation.
"""

import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn

from densenet_backbones.densenet_spec import DenseNetSpec, Pool

__all__ = ["DilatedBlurPool2d", "DilatedPool2d", "make_pool", "make_stem_pool"]


class DilatedPool2d(nn.Module):
    """A 2x2 stride-2 pool that keeps the size of the map: every cell is pooled with those d on.

    Let the map hold the cells of a pool's input d apart, as it does when earlier pools were
    dilated too. Then the output holds the stride-2 pool's cells 2d apart: ``out[..., ::2d, ::2d]``
    is the pool of ``x[..., ::d, ::d]``, whatever its size, with rows and columns beyond the edge
    left out, as in ceil mode. For sizes divisible by 2d, ceil and floor mode are one.

    Dropping the pool instead, as dilated ResNets drop a stride, would feed the next block values
    it was not trained on.

    Args:
        kind: ``avg`` or ``max``.
        dilation: Distance d of the pooled cells.
    """

    def __init__(self, kind: Pool, dilation: int) -> None:
        super().__init__()
        self.kind = kind
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps (N, C, H, W), keeping their size."""
        down = torch.cat((x[:, :, self.dilation :], x[:, :, -self.dilation :]), dim=2)
        x = torch.maximum(x, down) if self.kind == "max" else (x + down) / 2
        # A cell without partner is pooled with itself, which leaves it as it is.
        right = torch.cat((x[..., self.dilation :], x[..., -self.dilation :]), dim=3)
        return torch.maximum(x, right) if self.kind == "max" else (x + right) / 2

    def extra_repr(self) -> str:
        """Return the settings that `print` shows."""
        return f"{self.kind}, dilation={self.dilation}"


class DilatedBlurPool2d(BlurPool2d):
    """A blur pool (3x3 binomial, stride 2) that keeps the size of the map; see `DilatedPool2d`.

    Exact for sizes divisible by 2d; at others the last row and column are reflected otherwise.

    Args:
        channels: Channels of the map.
        dilation: Distance d of the pooled cells.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, stride=1)
        self.dilation = dilation
        self.filt: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps (N, C, H, W), keeping their size."""
        x = F.pad(x, [self.dilation] * 4, mode="reflect")
        return F.conv2d(x, self.filt, dilation=self.dilation, groups=x.shape[1])


def make_pool(spec: DenseNetSpec, channels: int, dilation: int | None) -> nn.Module:
    """Make the pool behind a transition: of stride 2, or dilated.

    Args:
        spec: Kind and ceil mode.
        channels: Channels of the transition.
        dilation: Distance of the pooled cells, for a pool that keeps the size; None for stride 2.
    """
    if spec.pool == "blur":
        return DilatedBlurPool2d(channels, dilation) if dilation else BlurPool2d(channels, stride=2)
    if dilation:
        return DilatedPool2d(spec.pool, dilation)
    pool = nn.MaxPool2d if spec.pool == "max" else nn.AvgPool2d
    return pool(2, stride=2, ceil_mode=spec.ceil_mode)


def make_stem_pool(spec: DenseNetSpec) -> nn.Module:
    """Make the stem's pool; a CIFAR stem has none."""
    if spec.stem_pool == "blur":
        channels = spec.num_init_features
        return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool2d(channels, stride=2))
    if spec.stem == "dsod":
        return nn.MaxPool2d(2, stride=2, ceil_mode=True)
    # Its padding keeps the odd last row already; ceil mode would add a row to even maps.
    return nn.MaxPool2d(3, stride=2, padding=1)
