"""Receptive fields: the theoretical one against the pixels that a cell depends on."""

import pytest
import timm
import torch
from tiny_nets import KINDS, tiny
from torch import nn

from densenet_backbones.analysis.receptive_field import compute_fields, measure_effective_fields


def make_positive(net):
    """Every pixel within reach then has a gradient above 0, as nothing cancels or is cut off."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.05)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1)
            nn.init.ones_(module.weight)
            nn.init.ones_(module.bias)
    return net


def measure_support(net, side):
    """Side of the rows that the central cell of each level depends on."""
    image = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    sides = []
    for x in net(image):
        cell = x[0, :, x.shape[2] // 2, x.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
        rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        sides.append(int(rows.max() - rows.min()) + 1)
    return sides


# Layers side by side; one that was pruned away; and all in a row.
PRUNED = {"connections": [[[0], [0], [0, 2]], [[], [0], [0]], [[0], [0, 1], [0, 1, 2]]]}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"layers": 1}) for name in KINDS if "264d" not in name),
        ("densenet121_features", {"block_config": (3, 3, 3), **PRUNED}),
    ],
)
def test_theoretical_fields_are_what_a_cell_depends_on(name, options):
    net = make_positive(tiny(name, **options)).eval().double()
    fields = list(compute_fields(net).values())
    # Max pools pass one gradient on, so a field of equal values may be narrower by their reach.
    if any(isinstance(m, nn.MaxPool2d) for m in net.modules()):
        for pool_name, module in list(net.named_modules()):
            if isinstance(module, nn.MaxPool2d):
                average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
                net.set_submodule(pool_name, average)
    side = 2 * max(fields)
    side += -side % (2 * net.levels[-1].stride) + net.levels[-1].stride
    assert measure_support(net, side) == fields


def test_dilated_fields_are_those_of_the_nominal_net():
    nominal = tiny("densenet121_features", layers=1)
    dilated = tiny("densenet121_features", layers=1, output_stride=8)
    assert compute_fields(nominal) == compute_fields(dilated)


def test_layer_taps_and_known_sizes():
    net = timm.create_model(
        "densenet121_features", growth_rate=4, layer_taps=("denseblock1.denselayer2",)
    )
    fields = compute_fields(net)
    # 7x7/2 and 3x3/2: 11 pixels at stride 4; each 3x3 layer adds 8.
    assert fields["c1"] == 7 and fields["c2.2"] == 11 + 2 * 8 and fields["c2"] == 11 + 6 * 8


def test_effective_fields_are_smaller_grow_and_leave_the_net_as_it_is():
    net = tiny("densenet121_features", layers=2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sides = measure_effective_fields(net, (3, 96, 96))
    assert sides == sorted(sides) and sides[0] > 1 and max(sides) <= 96
    assert all(a <= b for a, b in zip(sides, compute_fields(net).values(), strict=True))
    assert net.training and all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert measure_effective_fields(net, (3, 96, 96)) == sides


class Blur(nn.Module):
    """A Gaussian of a known width, as one map."""

    def __init__(self, sigma):
        super().__init__()
        x = torch.arange(-20, 21).float()
        row = torch.exp(-(x**2) / (2 * sigma**2))
        self.conv = nn.Conv2d(1, 1, 41, padding=20, bias=False)
        self.conv.weight.data = (row[:, None] * row[None])[None, None]

    def forward(self, x):
        return [self.conv(x)]


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_the_effective_field_of_a_gaussian_is_known(sigma):
    (side,) = measure_effective_fields(Blur(sigma), (1, 61, 61))
    # exp(-r^2 / 2 s^2) >= 0.0455 within a circle of radius 2.486 s, of whose pixels there are:
    x = torch.arange(-20, 21)
    inside = (x[:, None] ** 2 + x[None] ** 2 <= (2.486 * sigma) ** 2).sum()
    assert side == pytest.approx(float(inside) ** 0.5)
