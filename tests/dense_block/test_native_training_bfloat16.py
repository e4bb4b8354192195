"""Blocks, and what stands between them, that train in the C++ kernels in bfloat16, by autocast.

On whole numbers they are exact; else no further from float64 than plain autocast, or hardly.
"""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from long_cases import first_now
from tiny_nets import randomise_norms, threads_set, tiny
from torch import nn
from training_blocks import assert_as_exact, block_of, maps, step

from densenet_backbones.dense_block.lean import run_lean
from densenet_backbones.dense_block.native import has_bfloat16, lean_unit, shared_block

MODES = ("shared", "shared_lean")
SIZES = {
    "growth": st.integers(1, 50),
    "bn_size": st.none() | st.integers(1, 4),
    "images": st.integers(1, 3),
    "height": st.integers(3, 13),
    "width": st.integers(3, 13),
    "memory": st.sampled_from(MODES),
    "threads": st.integers(1, 3),
}
BOTH = {"tiles": "c++", "vectors": "c++ -mno-amx-bf16"}


@pytest.fixture(params=first_now(BOTH))
def products(request, monkeypatch, nothing_kept):
    """The kernels, whose products run in whole tiles where there are some, and in vectors."""
    monkeypatch.setenv("CXX", BOTH[request.param])
    request.getfixturevalue("compiled")
    if not has_bfloat16():
        pytest.skip("the processor has no vector product of bfloat16")


def narrow(net, x):
    return copy.deepcopy(net).float().to(memory_format=torch.channels_last), x.bfloat16()


def step_by_autocast(net, x, memory, run=step):
    with torch.autocast("cpu", torch.bfloat16):
        return run(net, x, memory)


def whole(*shape):
    return torch.randint(-1, 2, shape).double()


def whole_block(layers, growth, entry, bn_size):
    """A block whose norms add and multiply by whole numbers; each output reads one channel."""
    block = block_of(layers, growth, entry=entry, bn_size=bn_size, norm="frozen")
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            weight = torch.zeros_like(module.weight)
            for row in weight:
                read = int(torch.randint(len(row), ()))
                row[read] = whole(*row.shape[1:])
            module.weight.data = weight
        elif hasattr(module, "running_var"):
            module.eps = 0.0
            module.running_mean.zero_()
            module.running_var.fill_(1)
            module.weight.data, module.bias.data = (whole(len(module.weight)) for _ in range(2))
    return block


def find_largest(block, x):
    """Largest value of all maps and gradients of a step; whole ones up to 256 are exact."""
    block, largest = copy.deepcopy(block), []

    def look(module, inputs, output):
        for t in (*inputs, output):
            largest.append(t.detach().abs().max())
            t.register_hook(lambda gradient: largest.append(gradient.abs().max()))

    for module in block.modules():
        if not isinstance(module, (nn.ReLU, type(block))) and not list(module.children()):
            module.register_forward_hook(look)
    x = x.clone().requires_grad_()
    out = block(x)
    out.backward(gradient_of(out))
    return float(torch.stack([*largest, x.grad.abs().max()]).max())


def gradient_of(out):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-1, 2, out.shape, generator=generator).to(out)


def whole_step(block, x, memory):
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    block.memory = memory
    out = block(x)
    out.backward(gradient_of(out))
    return out.detach(), {**{n: p.grad for n, p in block.named_parameters()}, "x": x.grad}


@pytest.mark.usefixtures("products")
@settings(max_examples=30)
@given(
    layers=st.integers(1, 2),
    entry=st.integers(2, 300),
    **SIZES,
)
def test_blocks_are_exact_on_whole_numbers(
    layers, growth, entry, bn_size, images, height, width, memory, threads
):
    block = whole_block(layers, growth, entry, bn_size)
    x = whole(images, entry, height, width).contiguous(memory_format=torch.channels_last)
    assume(find_largest(block, x) <= 64)  # what Winograd's transforms make of four is exact, too
    out, gradients = whole_step(block, x, "none")
    with (
        threads_set(threads),
        patch.object(shared_block, "run_forward", wraps=shared_block.run_forward) as forward,
    ):
        found, ours = step_by_autocast(*narrow(block, x), memory, whole_step)
    assert forward.call_count == 1
    assert found.dtype == ours["x"].dtype == torch.bfloat16
    assert torch.equal(found.double(), out)
    for name, gradient in gradients.items():
        assert (ours[name] is None) == (gradient is None), name
        assert gradient is None or torch.equal(ours[name].double(), gradient), name


@pytest.mark.usefixtures("products")
@settings(max_examples=15)
@given(
    layers=st.integers(1, 3),
    entry=st.integers(2, 150),
    **SIZES,
)
def test_any_block_is_as_near_as_the_plain_one(
    layers, growth, entry, bn_size, images, height, width, memory, threads
):
    block = block_of(layers, growth, entry=entry, bn_size=bn_size)
    x = maps(images, entry, height, width, memory_format=torch.channels_last)
    own = narrow(block, x)
    with threads_set(threads):
        found = step_by_autocast(*own, memory)
        usual = step_by_autocast(*own, "none")
    assert_as_exact(found, usual, lambda block: step(block, x, "none"), block, torch.bfloat16)


class Unit(nn.Sequential):
    memory = "none"

    def forward(self, x):
        return super().forward(x) if self.memory == "none" else run_lean(x, list(self))


UNITS = {
    "transition": [nn.Conv2d(40, 33, 1, bias=False), nn.AvgPool2d(2)],
    "with a bias": [nn.Conv2d(40, 300, 1)],
    "stem": [nn.MaxPool2d(3, 2, 1)],
    "alone": [],
}


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("threads", [1, 3])
def test_units_between_blocks(name, threads):
    torch.manual_seed(0)
    unit = Unit(nn.BatchNorm2d(40), nn.ReLU(), *copy.deepcopy(UNITS[name]))
    unit = randomise_norms(unit).double().train()
    x = maps(3, 40, 13, 11, memory_format=torch.channels_last)
    own = narrow(unit, x)
    with (
        threads_set(threads),
        patch.object(lean_unit, "run_forward", wraps=lean_unit.run_forward) as forward,
    ):
        found = step_by_autocast(*own, "shared")
        usual = step_by_autocast(*own, "none")
    assert forward.call_count == 1 and found[0].dtype == torch.bfloat16
    # A mean before the convolution rounds less often than one behind it.
    found = found[0].to(usual[0].dtype), *found[1:]
    assert_as_exact(found, usual, lambda unit: step(unit, x, "none"), unit, torch.bfloat16)


@pytest.mark.usefixtures("products")
def test_the_first_of_equal_values_gets_the_gradient():
    """Of those that are equal in bfloat16, as in the plain execution."""
    unit = Unit(nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()
    x = (1 + torch.arange(2 * 16 * 81).view(2, 16, 9, 9) % 7 * 2e-3).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    unit[0].running_var.fill_(1.7)
    found, usual = (step_by_autocast(unit, x, memory) for memory in ("shared", "none"))
    assert torch.equal(found[0], usual[0])
    torch.testing.assert_close(found[1]["x"], usual[1]["x"], rtol=0.01, atol=0)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("memory", MODES)
def test_what_is_not_a_number_stays_so(memory):
    block, x = narrow(block_of(growth=33), maps(2, 6, 5, 4, memory_format=torch.channels_last))
    x[0, 0, 0, 0] = torch.nan
    found, expected = (step_by_autocast(block, x, mode) for mode in (memory, "none"))
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        for key, value in theirs.items():
            assert ours[key].isnan()[value.isnan()].all(), key


@pytest.mark.usefixtures("products")
def test_the_same_threads_give_the_same_bits():
    block, x = narrow(block_of(growth=20), maps(2, 6, 9, 8, memory_format=torch.channels_last))
    with threads_set(3):
        first, *others = (step_by_autocast(block, x, mode) for mode in (*MODES, *MODES))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.usefixtures("products")
def test_a_whole_net_trains_in_them():
    net = tiny("densenet121_features").double().train().to(memory_format=torch.channels_last)
    x = maps(3, 3, 77, 66, memory_format=torch.channels_last)

    def run(net, x, memory="none"):
        net = copy.deepcopy(net)
        net.set_memory(memory)
        out = net(x)
        sum(m.double().square().mean() for m in out).backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        return torch.cat([m.detach().flatten() for m in out]), gradients, dict(net.named_buffers())

    own = narrow(net, x)
    blocks, units = shared_block.run_forward, lean_unit.run_forward
    with (
        patch.object(shared_block, "run_forward", wraps=blocks) as of_blocks,
        patch.object(lean_unit, "run_forward", wraps=units) as of_units,
    ):
        found = step_by_autocast(*own, "shared", run)
    assert of_blocks.call_count == 4 and of_units.call_count == 5
    usual = step_by_autocast(*own, "none", run)
    assert_as_exact(found, usual, lambda net: run(net, x), net, torch.bfloat16)


@pytest.mark.usefixtures("products")
def test_memory_is_where_the_maps_are_whatever_the_default_device():
    net = tiny("densenet121_features").train().to(memory_format=torch.channels_last)
    net.set_memory("shared")
    x = maps(2, 3, 64, 64, memory_format=torch.channels_last).float()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.set_default_device("meta")
            try:
                out = net(x)
                sum(m.float().sum() for m in out).backward()
            finally:
                torch.set_default_device(None)
    assert all(p.grad.device.type == "cpu" for p in net.parameters())
