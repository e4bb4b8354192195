"""Maps a pixel wide, where PyTorch's bfloat16 convolutions leave gradients uninitialized."""

import copy

import pytest
import torch
from torch import nn

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn import FPN, PAN, DensePrediction
from densenet_backbones.fpn.adapter import pad_narrow_maps

LEVELS = (FeatureLevel("c4", 64, 16), FeatureLevel("c5", 32, 32))
ADAPTERS = {
    "fpn": lambda: FPN(LEVELS, 32, "p6p7"),
    "pan": lambda: PAN(LEVELS, 32, "p6p7", p6p7_input="p5"),
    "dense_prediction": lambda: DensePrediction(LEVELS, [32] * 4),
}


def leave_garbage() -> None:
    """Memory that is freed full of NaN, which the next operators get uninitialized."""
    for size in (8, 16, 32, 64, 128, 256):
        for _ in range(8):
            torch.full((1024, size), torch.nan)


def gradients_of(net: nn.Module, maps, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        outputs = net([x.clone() for x in maps])
    leave_garbage()
    sum(x.double().square().mean() for x in outputs).backward()
    return {name: p.grad.double() for name, p in net.named_parameters()}


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("height", [1, 3])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_in_bfloat16_are_those_of_float64(name, height, width):
    torch.manual_seed(0)
    net = ADAPTERS[name]().eval()  # running statistics: a batch's would magnify rounding
    first, last = (level.channels for level in LEVELS)
    maps = [torch.randn(4, first, 2 * height, 2 * width), torch.randn(4, last, height, width)]
    exact = gradients_of(copy.deepcopy(net).double(), [x.double() for x in maps], None)
    for name, gradient in gradients_of(net, maps, torch.bfloat16).items():
        error = (gradient - exact[name]).norm()  # rounding takes some values across a ReLU's kink
        assert error <= 0.25 * exact[name].norm() + 1e-3, name


@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 2), (5, 3), (7, 2), (7, 4)])
def test_padding_changes_neither_sizes_nor_values(kernel, stride):
    conv = nn.Conv2d(3, 4, kernel, stride, padding=kernel // 2).double()
    guarded = copy.deepcopy(conv)
    pad_narrow_maps(guarded)
    assert guarded._forward_pre_hooks
    for width in range(1, stride + 2):
        x = torch.randn(2, 3, 5, width, dtype=torch.float64)
        torch.testing.assert_close(guarded(x), conv(x), rtol=1e-12, atol=1e-12)


def test_convolutions_that_cannot_reach_beyond_a_narrow_map_stay_as_they_are():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2))
    pad_narrow_maps(net)
    assert not any(conv._forward_pre_hooks for conv in net)
