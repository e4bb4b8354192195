"""What does not fit together is refused as plain operators refuse it: kernels take addresses."""

import pytest
import torch
from tiny_nets import tiny
from torch import nn

from densenet_backbones.deploy import deploy

KIND = "densenet121_features"


def rows(channels, side=16):
    maps = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    return maps.contiguous(memory_format=torch.channels_last)


def give_less(net):
    return net.denseblock1(rows(net.denseblock1.denselayer1.conv1.in_channels - 4))


def give_more(net):
    return net.denseblock1(rows(net.denseblock1.denselayer1.conv1.in_channels + 4))


def take_a_layer_out(net):
    del net.denseblock1["denselayer1"]
    return net(rows(3, 64))


def norm_another_width(net):
    layer = net.denseblock1.denselayer1
    layer.norm2 = nn.BatchNorm2d(layer.norm2.num_features + 4)
    return net(rows(3, 64))


def norm_another_width_first(net):
    layer = net.denseblock1.denselayer2
    layer.norm1 = nn.BatchNorm2d(layer.norm1.num_features - 4)
    return net(rows(3, 64))


def convolve_fewer_channels(net):
    layer = net.denseblock1.denselayer1
    layer.conv1 = nn.Conv2d(layer.conv1.in_channels - 4, layer.conv1.out_channels, 1, bias=False)
    return net(rows(3, 64))


def narrow_a_weight(net):
    conv = net.denseblock1.denselayer1.conv1
    conv.weight = nn.Parameter(conv.weight[:, :-4].detach().clone())
    return net(rows(3, 64))


def narrow_a_norm(net):
    norm = net.denseblock1.denselayer1.norm1
    norm.running_var = norm.running_var[:-4].clone()
    return net(rows(3, 64))


def norm_a_transition_otherwise(net):
    norm = net.transition1.norm
    net.transition1.norm = nn.BatchNorm2d(norm.num_features + 4)
    return net(rows(3, 64))


def convolve_a_transition_otherwise(net):
    conv = net.transition1.conv
    net.transition1.conv = nn.Conv2d(conv.in_channels - 4, conv.out_channels, 1, bias=False)
    return net(rows(3, 64))


MISFITS = [
    *(give_less, give_more, take_a_layer_out, norm_another_width, norm_another_width_first),
    *(convolve_fewer_channels, narrow_a_weight, narrow_a_norm),
    *(norm_a_transition_otherwise, convolve_a_transition_otherwise),
]


def refusal(misfit, net):
    with pytest.raises(RuntimeError) as error:
        misfit(net)
    return str(error.value)


@pytest.mark.filterwarnings("ignore:memory='shared:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory", ["shared", "shared_lean"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_trained_parts_that_do_not_fit_get_the_plain_error(misfit, memory, training):
    nets = (tiny(KIND, memory=mode).train(training) for mode in (memory, "none"))
    own, plain = (refusal(misfit, net.to(memory_format=torch.channels_last)) for net in nets)
    assert own == plain


def transform_less(net):
    return net.transition1(rows(net.transition1.conv.in_channels - 4))


def change_a_folded_kernel(net):
    conv = net.denseblock1.denselayer1.conv
    conv.weight = nn.Parameter(conv.weight[:, :-1].detach().clone(), requires_grad=False)
    return net(rows(3, 64))


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tiny(KIND)
        self.head = nn.Conv2d(32, 24, 3, padding=1)

    def forward(self, x):
        return self.head(self.net(x)[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "misfit", [give_less, give_more, take_a_layer_out, transform_less, change_a_folded_kernel]
)
def test_deployed_parts_that_do_not_fit_are_refused(misfit):
    net = deploy(tiny(KIND).eval())
    if misfit in (give_less, give_more):
        block = net.denseblock1
        with pytest.raises(RuntimeError):
            block(rows(block.in_channels + (4 if misfit is give_more else -4)))
        return
    with pytest.raises(RuntimeError):
        misfit(net)


@torch.no_grad()
@pytest.mark.parametrize("maps", [rows(28), rows(32)[0], rows(32)])
def test_a_deployed_head_takes_what_the_trained_one_takes(maps):
    head = Headed().eval()
    deployed = deploy(head).head
    try:
        expected = head.head(maps)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match="channels") as own:
            deployed(maps)
        assert str(own.value) == str(error)
    else:
        torch.testing.assert_close(deployed(maps), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_weight_that_was_made_narrower_alone_is_computed_with_as_it_is():
    net = tiny(KIND, out_indices=(0, 1)).eval()
    conv = net.denseblock1.denselayer2.conv2
    conv.weight = nn.Parameter(conv.weight[:2].detach().clone())
    x = rows(3, 64)
    with pytest.warns(UserWarning, match="conv2 has tensors of other sizes than it says"):
        deployed = deploy(net)
    for own, plain in zip(deployed(x), net(x), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)
