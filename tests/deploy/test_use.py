"""What is done with a deployed net: derivatives, other weights, parts that are there twice."""

import types
import warnings
from collections import OrderedDict

import pytest
import torch
from tiny_nets import randomise_norms, tiny
from torch import func, fx, nn
from torch.autograd import forward_ad

from densenet_backbones.dense_block import MEMORY_MODES
from densenet_backbones.deploy import deploy

NAME = "densenet121_features"


def image(*size):
    return torch.rand(*(size or (2, 3, 64, 64)), generator=torch.Generator().manual_seed(0))


def close(found, expected, tolerance=1e-5):
    """Each map within a share of its norm: what is mixed up differs by about all of it."""
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    for own, plain in pairs:
        assert own.shape == plain.shape
        assert (own - plain).norm() <= tolerance * plain.norm()


@pytest.mark.parametrize("grad", [True, False])
def test_derivatives_in_forward_mode(grad):
    net = tiny(NAME).eval()
    x, direction = image(), image().flip(0)

    def derive(model):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            return forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))[-1]).tangent

    close(derive(deploy(net)).detach(), derive(net).detach())


@pytest.mark.parametrize(
    "transform",
    [
        lambda model, x: func.jvp(lambda a: model(a)[-1], (x,), (x.flip(0),))[1],
        lambda model, x: func.vmap(lambda a: model(a)[-1])(x[:, None]),
        lambda model, x: func.grad(lambda a: model(a)[-1].sum())(x),
    ],
    ids=["jvp", "vmap", "grad"],
)
def test_transforms_of_functions(transform):
    net = tiny(NAME).eval()
    close(transform(deploy(net), image()).detach(), transform(net, image()).detach())


def test_weights_that_are_asked_for_gradients_get_them():
    net = deploy(tiny(NAME).eval()).requires_grad_(True)
    sum(maps.sum() for maps in net(image())).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_graphs_of_a_head_take_any_size():
    head = deploy(Headed(nn.Conv2d(32, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1))).head
    maps = [torch.rand(1, 32, side, side) for side in (9, 16)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(head, maps[0], check_trace=False)
    for graph in (traced, fx.symbolic_trace(head)):
        for x in maps:
            close(graph(x), head(x))


@torch.no_grad()
@pytest.mark.parametrize("kept", ["denselayer1.conv.weight", "denselayer2.bias", "conv0", "conv"])
def test_weights_of_other_calls_are_not_taken_for_those_of_this_one(kept):
    """Tensors that are gone leave their addresses to the next ones."""
    net = deploy(tiny(NAME).eval())
    own = {name: p for name, p in net.named_parameters() if kept in name}
    assert own
    for factor in range(1, 7):
        weights = {name: p * factor for name, p in own.items()}
        found = func.functional_call(net, weights, (image(),))
        with torch.enable_grad():  # in the form that is recorded, from the weights as they are
            x = image().requires_grad_()
            expected = [maps.detach() for maps in func.functional_call(net, weights, (x,))]
        close(found, expected)
        del weights


@torch.inference_mode()
@pytest.mark.parametrize("change", ["load", "copy"])
def test_weights_change_in_inference_mode(change):
    net, other = (deploy(tiny(NAME, drop_rate=rate).eval()) for rate in (0, 0.5))
    for p in other.parameters():
        p.mul_(1.5)
    assert not any(p.is_inference() for p in net.parameters()), "their changes are counted"
    net(image())
    if change == "load":
        net.load_state_dict(other.state_dict())
    else:
        for own, new in zip(net.parameters(), other.parameters(), strict=True):
            own.copy_(new)
    close(net(image()), other(image()))


@torch.inference_mode()
def test_inference_tensors_are_laid_out_in_every_call():
    net = deploy(tiny(NAME).eval())
    for part in net.modules():
        for name, p in list(part._parameters.items()):
            part.register_parameter(name, nn.Parameter(p.clone(), requires_grad=False))
    assert all(p.is_inference() for p in net.parameters())
    before = net(image())
    for p in net.parameters():
        p.mul_(2)
    changed = net(image())
    assert not torch.allclose(changed[0], before[0])
    for p in net.parameters():
        p.div_(2)
    close(net(image()), before)


def repeat_activation(net):
    parts = net.transition1
    net.transition1 = nn.Sequential(
        OrderedDict(norm=parts.norm, relu=parts.relu, conv=parts.conv, again=parts.relu)
    )


def repeat_pool(net):
    net.pool1 = nn.Sequential(net.pool1, net.pool1)


@pytest.mark.filterwarnings("ignore:(memory='|deploy leaves):UserWarning")
@pytest.mark.parametrize("tap", ["raw", "norm"])
@pytest.mark.parametrize("change", [repeat_activation, repeat_pool])
@pytest.mark.parametrize("form", [*MEMORY_MODES, "deployed"])
def test_a_part_that_is_there_twice_runs_twice(form, change, tap):
    def run(form):
        net = tiny(NAME, tap=tap, memory="none" if form == "deployed" else form)
        net = net.to(memory_format=torch.channels_last).train(form != "deployed" and training)
        change(net)
        x = image(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
        return [maps.detach() for maps in (deploy(net) if form == "deployed" else net)(x)]

    training = form != "deployed"
    close(run(form), run("none"), 1e-3 if training else 1e-5)  # few values make a statistic


class Headed(nn.Module):
    def __init__(self, *head):
        super().__init__()
        self.net = tiny(NAME)
        self.head = nn.Sequential(*head)

    def forward(self, x):
        return self.head(self.net(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("own", [False, True])
def test_heads_keep_the_order_of_what_they_run(own):
    channels, act = tiny(NAME).levels[0].channels, nn.ReLU()
    row = (nn.Conv2d(channels, 24, 3), act, nn.BatchNorm2d(24), nn.Conv2d(24, 8, 1))
    model = randomise_norms(Headed(*row, act, nn.BatchNorm2d(8))).eval()
    if own:  # a way through the parts that is the head's own

        def forward(self, x):
            return self[2](self[0](x)) - self[1](self[0](x))

        model.head.forward = types.MethodType(forward, model.head)
    close(deploy(model)(image()), model(image()))
