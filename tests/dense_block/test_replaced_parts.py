"""Parts of a block that were replaced: every memory mode computes what they compute, or says so."""

import copy
import types
import warnings
from collections import OrderedDict
from contextlib import nullcontext

import pytest
import torch
from tiny_nets import tiny
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from densenet_backbones.dense_block import MEMORY_MODES, find_change
from densenet_backbones.layers import DenseLayer

LAYER = "denseblock2.denselayer1"
WITH_ONE_BUFFER = {"shared", "shared_lean"}
OF_HALVES = WITH_ONE_BUFFER | {"bottleneck"}
RECOMPUTED = set(MEMORY_MODES) - {"none"}


def bend(x):
    """A change that no norm behind it takes back."""
    return x + (3 * x).sin()


class Lora(nn.Conv2d):
    def forward(self, x):
        return bend(super().forward(x))


class SELayer(DenseLayer):
    def forward(self, x):
        return bend(super().forward(x))


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return bend(self.inner(x))


class Pool(nn.AvgPool2d):
    def forward(self, x):
        return bend(super().forward(x))


class Twice(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def replace_conv(name, kind=Lora, **options):
    def change(net):
        old = net.get_submodule(name)
        new = kind(
            *(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding),
            bias=False,
            **options,
        )
        new.weight = old.weight
        net.set_submodule(name, new)

    return change


def replace(name, build):
    return lambda net: net.set_submodule(name, build(net.get_submodule(name)))


def subclass(net):
    net.get_submodule(LAYER).__class__ = SELayer


def own_forward(name):
    def change(net):
        module = net.get_submodule(name)
        module.forward = types.MethodType(lambda m, x: bend(type(m).forward(m, x)), module)

    return change


def own_convolution(name):
    def change(net):
        module = net.get_submodule(name)
        inner = nn.Conv2d._conv_forward
        module._conv_forward = types.MethodType(lambda m, *args: bend(inner(m, *args)), module)

    return change


def spectral(net):
    parametrizations.spectral_norm(net.get_submodule(f"{LAYER}.conv2"))


# Change, part that the warning names, modes that run plain.
CHANGES = {
    "subclass of the layer": (subclass, "denselayer1", OF_HALVES),
    "forward of a layer": (own_forward(LAYER), "denselayer1", OF_HALVES),
    "wrapped layer": (replace(LAYER, Wrapper), "denselayer1", OF_HALVES),
    "conv1": (replace_conv(f"{LAYER}.conv1"), "denselayer1.conv1", WITH_ONE_BUFFER),
    "conv2": (replace_conv(f"{LAYER}.conv2"), "denselayer1.conv2", WITH_ONE_BUFFER),
    "padding": (
        replace_conv(f"{LAYER}.conv2", nn.Conv2d, padding_mode="reflect"),
        "denselayer1.conv2",
        WITH_ONE_BUFFER,
    ),
    "forward of a conv": (own_forward(f"{LAYER}.conv2"), "denselayer1.conv2", WITH_ONE_BUFFER),
    "product of a conv": (own_convolution(f"{LAYER}.conv1"), "denselayer1.conv1", WITH_ONE_BUFFER),
    "product of a transition's conv": (own_convolution("transition1.conv"), "", set()),
    "forward of a norm": (own_forward(f"{LAYER}.norm1"), "denselayer1.norm1", WITH_ONE_BUFFER),
    "norm": (
        replace(f"{LAYER}.norm2", lambda norm: Twice(norm.num_features)),
        "denselayer1.norm2",
        WITH_ONE_BUFFER,
    ),
    "activation": (
        replace(f"{LAYER}.relu2", lambda _: nn.SiLU()),
        "denselayer1.relu2",
        WITH_ONE_BUFFER,
    ),
    "spectral norm": (spectral, "denselayer1.conv2", RECOMPUTED),
    "transition's conv": (replace_conv("transition1.conv"), "", set()),
    "stem's conv": (replace_conv("conv0"), "", set()),
    "pool": (replace("pool1", lambda _: Pool(2, 2)), "", set()),
}


def run(net):
    out = net.train()(
        torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    )
    sum(m.square().mean() for m in out).backward()
    return out, {key: p.grad for key, p in net.named_parameters()}, dict(net.named_buffers())


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("name", CHANGES)
def test_replaced_parts_compute_what_they_do_in_plain_mode(name, memory):
    change, part, falling_back = CHANGES[name]
    plain = tiny("densenet121_features")
    torch.manual_seed(0)
    change(plain)
    plain.double()
    other = copy.deepcopy(plain)
    other.set_memory(memory)
    expected = run(plain)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(other)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    told = [str(w.message) for w in caught if "is off for denseblock2, " in str(w.message)]
    assert len(told) == (memory in falling_back)
    assert all(f"memory={memory!r}" in text and part in text for text in told)


@pytest.mark.parametrize("memory", sorted(RECOMPUTED))
def test_hooks_for_all_modules_see_every_pass(memory):
    calls = []
    net = tiny("densenet121_features").train()
    for mode in ("none", memory):
        seen = []
        calls.append(seen)
        net.set_memory(mode)
        handle = register_module_forward_hook(lambda module, *_, seen=seen: seen.append(module))
        try:
            with (
                nullcontext() if mode == "none" else pytest.warns(UserWarning, match="carry hooks")
            ):
                net(torch.randn(2, 3, 64, 64))
        finally:
            handle.remove()
    assert calls[0] == calls[1]


class BentTransition(nn.Sequential):
    def forward(self, x):
        return bend(super().forward(x))


def bend_transition(net):
    net.transition2 = BentTransition(OrderedDict(net.transition2.named_children()))


def hook_transition(net):
    net.transition2.register_forward_hook(lambda module, args, out: bend(out))


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("change", [bend_transition, hook_transition])
def test_changed_transitions_run_as_they_are_at_every_tap(change, memory):
    raw, norm = tiny("densenet121_features"), tiny("densenet121_features", tap="norm")
    for net in (raw, norm):
        change(net)
        net.set_memory(memory)
        net.double()
    expected, found = run(raw)[0], run(norm)[0]
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-9, atol=1e-11)
    # The tap is the activation's output, in front of what the change does.
    tap = raw.transition2.relu(raw.transition2.norm(expected[2]))
    torch.testing.assert_close(found[2], tap, rtol=1e-9, atol=1e-11)


def test_transitions_without_the_tap_are_refused():
    net = tiny("densenet121_features", tap="norm").eval()
    net.transition2 = Wrapper(net.transition2.conv)
    with pytest.raises(ValueError, match=r"reads transition2.relu, .*\(Wrapper\) does not"):
        net(torch.randn(2, 3, 64, 64))
    net = tiny("densenet121_features", layer_taps=[LAYER]).eval()
    replace(LAYER, Wrapper)(net)
    with pytest.raises(ValueError, match=r"layer taps need the channels .* of denseblock2"):
        net(torch.randn(2, 3, 64, 64))


def test_parts_as_they_are_built_are_known():
    layer = tiny("densenet121_features").denseblock1.denselayer1
    assert find_change(layer, "layer") is None
    assert find_change(layer.conv1, "conv") is None
    assert find_change(layer.norm1, "norm") is None
    assert find_change(SELayer.__new__(SELayer), "layer") == "is a SELayer"
    assert find_change(nn.Conv2d(1, 1, 3, padding="same"), "conv") == "has padding='same'"
