"""What stands between dense blocks, trained in the C++ kernels, on each instruction set.

It is float32, and held against the modules, called one after the other, in float64.
"""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from long_cases import each_once
from tiny_nets import KINDS, randomise_norms, threads_set, tiny
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from training_blocks import assert_as_exact, maps

from densenet_backbones.dense_block import has_shared_buffer, join_lean_steps, run_lean
from densenet_backbones.dense_block.native import lean_unit

MODES = ("shared", "shared_lean")


class Unit(nn.Sequential):
    """Norm, ReLU, and perhaps a convolution and a pool; ``memory`` says how they run."""

    memory = "none"

    def forward(self, x):
        return run_lean(x, list(self)) if has_shared_buffer(self.memory) else super().forward(x)


def unit_of(channels, outputs=0, bias=False, pool=None):
    torch.manual_seed(0)
    parts = [nn.BatchNorm2d(channels), nn.ReLU()]
    if outputs:
        parts.append(nn.Conv2d(channels, outputs, 1, bias=bias))
    if pool is not None:
        parts.append(pool)
    return randomise_norms(Unit(*parts)).double().train()


def step(unit, x, memory):
    """Output, gradients by name (the input's as ``x``) and buffers of one step on a copy."""
    unit, x = copy.deepcopy(unit), x.detach().requires_grad_(x.requires_grad)
    unit.memory = memory
    out = unit(x)
    torch.manual_seed(2)
    (out * torch.randn(out.shape, dtype=torch.float64).to(out)).sum().backward()
    gradients = {name: p.grad for name, p in unit.named_parameters()}
    return out.detach(), {**gradients, "x": x.grad}, dict(unit.named_buffers())


def rows(*shape):
    return maps(*shape, memory_format=torch.channels_last).requires_grad_()


def widen(x, wider):
    """A map in float32 as the first channels of one that has ``wider`` more."""
    images, channels, height, width = x.shape
    wide = torch.full((images, height, width, channels + wider), torch.nan).permute(0, 3, 1, 2)
    wide[:, :channels] = x.detach()
    return wide[:, :channels].requires_grad_(x.requires_grad)


def check(unit, x, ran=1, wider=0):
    single, narrow = copy.deepcopy(unit).float(), widen(x, wider)
    with patch.object(lean_unit, "run_forward", wraps=lean_unit.run_forward) as forward:
        found = step(single, narrow, "shared")
    assert forward.call_count == ran
    usual = step(single, narrow, "none")
    assert_as_exact(found, usual, lambda unit: step(unit, x, "none"), unit)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


MEANS = st.just(lambda: nn.AvgPool2d(2, 2))
MAXIMA = st.builds(
    lambda side, step, border, ceil: lambda: nn.MaxPool2d(side, step, border, ceil_mode=ceil),
    *(st.integers(2, 4), st.integers(1, 4), st.integers(0, 1), st.booleans()),
)
NOTHING = st.just(lambda: None)
FOLLOWING = st.one_of(
    st.tuples(st.integers(1, 150), st.booleans(), NOTHING | MEANS),
    st.tuples(st.just(0), st.just(False), NOTHING | MAXIMA),
)


@pytest.mark.usefixtures("instructions")
@settings(max_examples=60)
@given(
    channels=st.integers(2, 300),
    following=FOLLOWING,
    images=st.integers(1, 3),
    height=st.integers(4, 13),
    width=st.integers(4, 13),
    wider=st.integers(0, 20),
    of_input=st.booleans(),
    threads=st.integers(1, 3),
)
def test_any_unit_equals_its_modules(
    channels, following, images, height, width, wider, of_input, threads
):
    outputs, bias, make_pool = following
    unit = unit_of(channels, outputs, bias, make_pool())
    x = rows(images, channels, height, width).requires_grad_(of_input)
    # Where float32 finds another largest value than float64, gradients go to another cell.
    top = unit[:2](x.detach()).flatten().sort().values
    assume(outputs or (top[top > 0].diff() > 1e-5).float().mean() > 0.5)
    with threads_set(threads):
        check(unit, x, wider=wider)


UNITS = {
    "transition": lambda: unit_of(20, 9, pool=nn.AvgPool2d(2, 2)),
    "product": lambda: unit_of(20, 33, bias=True),
    "stem": lambda: unit_of(20, pool=nn.MaxPool2d(3, 2, 1)),
    "last norm": lambda: unit_of(20),
}


def without_affine(unit):
    unit[0].weight = unit[0].bias = None


def average_of_batches(unit):
    unit[0].momentum = None
    unit[0].num_batches_tracked.fill_(3)


def untracked(unit):
    unit[0].track_running_stats = False
    unit[0].running_mean = unit[0].running_var = unit[0].num_batches_tracked = None


def in_evaluation(unit):
    unit[0].eval()


def frozen(unit):
    norm = unit[0]
    unit[0] = FrozenBatchNorm2d(norm.num_features).double()
    unit[0].load_state_dict({k: v for k, v in norm.state_dict().items() if "batches" not in k})


def partly_constant(unit):
    for parameter in (unit[0].bias, *unit[2:].parameters()):
        parameter.requires_grad_(False)


CHANGES = [without_affine, average_of_batches, untracked, in_evaluation, frozen, partly_constant]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", UNITS)
def test_norms_and_parameters_of_all_kinds(kind, change):
    unit = UNITS[kind]()
    change(unit)
    check(unit, rows(3, 20, 7, 6))


class OwnPool(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(x).sin()


POOLS = {
    "that rounds up": lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
    "of another divisor": lambda: nn.AvgPool2d(2, 2, divisor_override=3),
    "of larger windows": lambda: nn.AvgPool2d(3, 2),
    "of windows apart": lambda: nn.AvgPool2d(2, 3),
    "with a border": lambda: nn.AvgPool2d(2, 2, padding=1),
    "that is an heir": lambda: OwnPool(2, 2),
    "of maxima": lambda: nn.MaxPool2d(2, 2),
}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", POOLS)
def test_other_pools_run_behind_the_convolution(kind):
    check(unit_of(20, 9, pool=POOLS[kind]()), rows(3, 20, 7, 6))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2, 2), nn.MaxPool2d((2, 3)), nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(17, 1, 8)],
)
def test_other_pools_run_behind_norm_and_relu(pool):
    check(unit_of(20, pool=pool), rows(3, 20, 9, 10))


@pytest.mark.usefixtures("compiled")
def test_what_they_do_not_know_runs_in_steps():
    x, unit = rows(3, 20, 7, 6), UNITS["transition"]()
    hooked = copy.deepcopy(unit)
    seen = []
    hooked[3].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    check(hooked, x)  # the norm, the ReLU and the convolution still run in one
    assert seen == [(3, 9, 3, 3)] * 3
    hooked[0].register_forward_hook(lambda *args: None)
    check(hooked, x, ran=0)
    wide = unit_of(20)
    wide.append(nn.Conv2d(20, 5, 3, padding=1).double())
    check(wide, x, ran=0)
    with patch.object(lean_unit, "run_forward", wraps=lean_unit.run_forward) as forward:
        single = copy.deepcopy(unit).float()
        step(single, x.detach().float().contiguous().requires_grad_(), "shared")
        with torch.autocast("cpu", torch.bfloat16):
            step(single, x.detach().float().requires_grad_(), "shared")
    assert forward.call_count == 0


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", UNITS)
def test_the_same_threads_give_the_same_bits(kind):
    unit, x = UNITS[kind]().float(), rows(2, 20, 9, 8).detach().float().requires_grad_()
    with threads_set(3):
        first, *others = (step(unit, x, "shared") for _ in range(4))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", UNITS)
def test_what_is_not_a_number_stays_so(kind):
    x = rows(2, 20, 7, 6).detach().float()
    x[0, 0, 0, 0] = torch.nan
    unit = UNITS[kind]().float()
    found, expected = (step(unit, x.requires_grad_(), mode) for mode in ("shared", "none"))
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in (theirs if isinstance(theirs, dict) else {"out": theirs}).items():
            mine = ours[key] if isinstance(ours, dict) else ours
            assert torch.equal(mine.isnan(), value.isnan()), key


@pytest.mark.usefixtures("compiled")
def test_the_first_of_equal_values_gets_the_gradient():
    unit = unit_of(4, pool=nn.MaxPool2d(3, 2, 1))
    x = torch.randint(0, 3, (2, 4, 9, 9)).double().contiguous(memory_format=torch.channels_last)
    check(unit, x.requires_grad_())


@pytest.mark.usefixtures("instructions")
@settings(max_examples=60)
@given(
    make_pool=MAXIMA,
    channels=st.integers(2, 70),
    images=st.integers(1, 3),
    height=st.integers(4, 13),
    width=st.integers(4, 13),
    wider=st.integers(0, 20),
    threads=st.integers(1, 3),
)
def test_a_max_pool_alone_is_that_of_torch(
    make_pool, channels, images, height, width, wider, threads
):
    values = torch.tensor([-torch.inf, torch.nan, *range(-3, 4)])  # many of them equal
    torch.manual_seed(0)
    drawn = values[torch.randint(len(values), (images, channels, height, width))]
    x, pool = widen(drawn, wider), make_pool()
    ((_, run),) = join_lean_steps([("pool", pool)], ())
    with (
        threads_set(threads),
        patch.object(lean_unit, "run_pool", wraps=lean_unit.run_pool) as kernel,
    ):
        found = run(x.requires_grad_())
    assert kernel.call_count == 1
    expected = pool(drawn.requires_grad_())
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    gradient = torch.randint(-9, 9, found.shape).float()
    with threads_set(threads):
        (of_x,) = torch.autograd.grad(found, x, gradient)
    (usual,) = torch.autograd.grad(expected, drawn, gradient)
    torch.testing.assert_close(of_x, usual, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
def test_a_step_may_not_use_what_was_changed_since():
    unit = UNITS["transition"]().float()
    unit.memory = "shared"
    unit[0].eval()
    out = unit(rows(2, 20, 6, 5).detach().float().requires_grad_())
    unit[0].running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def train(net, x):
    net = copy.deepcopy(net)
    out = net(x)
    sum(m.square().mean() for m in out).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return torch.cat([m.detach().flatten() for m in out]), gradients, dict(net.named_buffers())


@pytest.mark.usefixtures("instructions")
def test_nets_of_every_kind_and_every_tap():
    x = maps(3, 3, 77, 66, memory_format=torch.channels_last)
    for name, tap in each_once(KINDS, ["raw", "norm", "compressed", "pooled"]):
        exact = tiny(name, tap=tap).double().train().to(memory_format=torch.channels_last)
        plain = copy.deepcopy(exact).float()
        nets = {memory: copy.deepcopy(plain) for memory in MODES}
        usual = train(plain, x.float())
        for memory, net in nets.items():
            net.set_memory(memory)
            assert_as_exact(train(net, x.float()), usual, lambda exact: train(exact, x), exact)
