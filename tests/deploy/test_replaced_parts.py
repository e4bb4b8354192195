"""Parts that cannot be folded, or were replaced, hooked or changed afterwards, are called."""

import types
import warnings

import pytest
import torch
from deployed_nets import difference, folded_parts, image
from tiny_nets import tiny
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from densenet_backbones.dense_block.folded import layers as folded
from densenet_backbones.dense_block.folded import transition as folded_transition
from densenet_backbones.deploy import deploy
from densenet_backbones.layers import DenseBlock, DenseLayer


def test_what_cannot_be_folded_is_named_and_runs_as_before():
    group = tiny("densenet121_features", norm="group").eval()
    with pytest.warns(UserWarning, match="leaves denseblock1, denseblock2.* norm0, transition1"):
        deployed = deploy(group)
    assert difference(group, deployed, image()) == 0.0
    hooked = tiny("densenet121_features").eval()
    seen = []
    hooked.denseblock2.denselayer1.norm1.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="leaves denseblock2 unfolded"):
        deployed = deploy(hooked)
    assert difference(hooked, deployed, image()) <= 1e-5
    assert len(seen) == 2 and len(folded_parts(deployed)) == 3


class _Lora(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class _Pool(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(x) + 1


class _Layer(DenseLayer):
    def forward(self, x):
        return super().forward(x) + 1


class _Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


def _like(conv, kind=_Lora, **options):
    arguments = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
    return kind(*arguments, bias=False, **options)


def _set(name, build):
    return lambda net: net.set_submodule(name, build(net.get_submodule(name)))


def _set_forward(name):
    def change(net):
        module = net.get_submodule(name)
        module.forward = types.MethodType(lambda m, x: type(m).forward(m, x) + 1, module)

    return change


def _convolve_otherwise(name):
    def change(net):
        conv, inner = net.get_submodule(name), nn.Conv2d._conv_forward
        conv._conv_forward = types.MethodType(lambda m, *args: inner(m, *args) + 1, conv)

    return change


class _Block(DenseBlock):
    def _run(self, x):
        return super()._run(x) + 1


def _be_other_block(net):
    net.denseblock2.__class__ = _Block


def _prune(net):
    prune.l1_unstructured(net.get_submodule(f"{_LAYER}.conv2"), "weight", amount=0.5)


def _be_heir(net):
    net.denseblock2.denselayer1.__class__ = _Layer


_LAYER = "denseblock2.denselayer1"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("conv0", _set("conv0", _like)),
        (f"{_LAYER}.conv1", _set(f"{_LAYER}.conv1", _like)),
        (f"{_LAYER}.conv2", _set(f"{_LAYER}.conv2", _like)),
        (f"{_LAYER}.conv2", _set_forward(f"{_LAYER}.conv2")),
        (
            f"{_LAYER}.conv2",
            _set(f"{_LAYER}.conv2", lambda c: _like(c, nn.Conv2d, padding_mode="reflect")),
        ),
        (f"{_LAYER}.conv2", _set(f"{_LAYER}.conv2", lambda c: _like(c, nn.Conv2d, groups=2))),
        (
            f"{_LAYER}.conv2",
            _set(f"{_LAYER}.conv2", lambda c: nn.Conv2d(c.in_channels, 4, 5, padding=2)),
        ),
        (f"{_LAYER}.conv1", _convolve_otherwise(f"{_LAYER}.conv1")),
        ("conv0", _convolve_otherwise("conv0")),
        (f"{_LAYER}.conv2", _prune),
        ("denseblock2", _be_other_block),
        (f"{_LAYER}.relu2", _set(f"{_LAYER}.relu2", lambda _: nn.SiLU())),
        (f"{_LAYER}.relu1", _set_forward(f"{_LAYER}.relu1")),
        (_LAYER, _be_heir),
        (_LAYER, _set_forward(_LAYER)),
        (_LAYER, _set(_LAYER, _Wrapper)),
        ("denseblock2", _set_forward("denseblock2")),
        ("transition1.conv", _set("transition1.conv", _like)),
        ("transition1", _set_forward("transition1")),
        ("pool1", _set("pool1", lambda _: _Pool(2, 2))),
        ("norm5", _set_forward("norm5")),
    ],
)
def test_replaced_parts_run_as_before_and_are_named(part, change):
    net = tiny("densenet121_features")
    change(net)
    net = net.double().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deployed = deploy(net)
    told = [str(w.message) for w in caught]
    assert len(told) == 1 and f": {part} " in told[0]
    assert difference(net, deployed, image(dtype=torch.float64)) <= 1e-10


@pytest.mark.parametrize("change", ["relu6", "silu", "transition's relu"])
def test_other_activations_in_one_place_are_kept(change):
    net = tiny("densenet121_features").eval()
    layer = net.denseblock2.denselayer2
    if change == "transition's relu":
        net.transition1.relu.forward = lambda x: x.relu() + 1
    else:
        layer.relu1 = layer.relu2 = nn.SiLU() if change == "silu" else nn.ReLU6()
        nn.init.constant_(layer.norm1.bias, 7)
    assert difference(net, deploy(net), image()) <= 1e-5


@pytest.mark.parametrize(
    "part", ["denselayer1", "denselayer2.act", "denselayer1.conv", "transition1.relu"]
)
def test_hooks_on_parts_of_a_deployed_net_are_called(part):
    net = tiny("densenet121_features").eval()
    deployed = deploy(net)
    module = (deployed if part.startswith("transition") else deployed.denseblock2).get_submodule(
        part
    )
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    hooked = "transition1 runs in parts, as relu"
    if "layer" in part:
        hooked = f"denseblock2 runs layer by layer in plain operators, as {part}"
    with pytest.warns(UserWarning, match=f"{hooked} carries hooks"):
        assert difference(net, deployed, image()) <= 1e-5
    assert seen
    handle.remove()
    count = len(seen)
    assert difference(net, deployed, image()) <= 1e-5 and len(seen) == count


@pytest.mark.parametrize("part", ["denselayer1", "denselayer1.conv"])
def test_parts_replaced_in_a_deployed_net_are_called(part):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    deployed = deploy(tiny("densenet121_features").eval())
    block = deployed.denseblock2
    expected = block(torch.ones(1, block.in_channels, 8, 8))
    block.set_submodule(part, Wrapper(block.get_submodule(part)))
    with pytest.warns(UserWarning, match=f"as {part} is a Wrapper"):
        found = block(torch.ones(1, block.in_channels, 8, 8))
    new = slice(block.in_channels, block.in_channels + 4)
    torch.testing.assert_close(found[:, new], 2 * expected[:, new])


def _double_in_place(module):
    with torch.no_grad():
        module.weight.mul_(2)


def _replace_weight(module):
    module.weight = nn.Parameter(2 * module.weight.detach())


class _Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(
    "change",
    [_double_in_place, _replace_weight, lambda m: register_parametrization(m, "weight", _Double())],
)
@pytest.mark.parametrize("part", ["conv0", "transition1.conv", f"{_LAYER}", f"{_LAYER}.conv"])
def test_weights_changed_after_a_run_are_used(part, change, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(folded, "fill_in_kernels", lambda *_: False)
        monkeypatch.setattr(folded_transition, "has_kernels", lambda _: False)
    deployed = deploy(tiny("densenet121_features").eval())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deployed(image())
        change(deployed.get_submodule(part))
        found = deployed(image())
        # After `float`, all is laid out anew.
        for level, expected in zip(found, deployed.float()(image()), strict=True):
            torch.testing.assert_close(level, expected)


class _Doubled(_Wrapper):
    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("conv", lambda t: t.set_submodule("conv", _Doubled(t.conv))),
        ("conv", lambda t: setattr(t.conv, "forward", lambda x: 2 * nn.Conv2d.forward(t.conv, x))),
        ("norm", lambda t: t.set_submodule("norm", _Doubled(t.norm))),
        ("relu", lambda t: t.set_submodule("relu", nn.SiLU())),
        ("pool", lambda t: t.set_submodule("pool", nn.MaxPool2d(2))),
        ("its parts are norm, relu, pool, conv, 4", lambda t: t.append(nn.Tanh())),
    ],
)
def test_parts_replaced_in_a_deployed_transition_are_called(part, change):
    transition = deploy(tiny("densenet121_features").eval()).transition1
    expected = x = torch.randn(1, transition.conv.in_channels, 8, 8)
    change(transition)
    for child in transition:
        expected = child(expected)
    with pytest.warns(UserWarning, match=f"transition1 runs in parts, as {part}"), torch.no_grad():
        torch.testing.assert_close(transition(x), expected)
