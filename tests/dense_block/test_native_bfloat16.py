"""The C++ kernels in bfloat16: exact on whole numbers, else as near as plain bfloat16 is."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_blocks import block_by_definition, run_native_block
from tiny_nets import randomise_norms, threads_set, tiny

from densenet_backbones.dense_block import backends
from densenet_backbones.dense_block.native import block, has_bfloat16
from densenet_backbones.dense_block.native.block import run_transition
from densenet_backbones.deploy import deploy

CEILING = 4.0
READ = 3  # channels that any output depends on


@pytest.fixture
def multiplies_bfloat16(compiled):
    if not has_bfloat16():
        pytest.skip("the processor has no vector product of bfloat16")


def whole(*shape):
    """Whole numbers from -2 to 2."""
    return torch.randint(-2, 3, shape).to(torch.bfloat16)


def sparse(outputs, inputs, *kernel):
    """Weights of which few are not zero: 1 or -1."""
    weight = torch.zeros(outputs, inputs, *kernel, dtype=torch.bfloat16)
    for row in weight:
        read = torch.randperm(inputs)[:READ]
        row[read] = (torch.randint(0, 2, (len(read), *kernel)) * 2 - 1).to(torch.bfloat16)
    return weight


def whole_layer(channels, bottleneck, growth):
    # Activated values are whole and at most 4, so 9 * READ of them sum up to 108, with a bias that
    # bfloat16 still holds; and so are what Winograd's transforms make of them, in quarters.
    squeeze = (sparse(bottleneck, channels).t(), whole(bottleneck)) if bottleneck else ()
    conv = sparse(growth, bottleneck or channels, 3, 3), whole(growth)
    return [whole(channels), whole(channels), *squeeze, *conv]


@pytest.mark.usefixtures("multiplies_bfloat16")
@settings(max_examples=60)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 19),
    width=st.integers(1, 40),
    channels=st.integers(1, 600),
    bottleneck=st.sampled_from([0, 0, 1, 7, 48, 64, 100, 128, 257, 300]),
    growth=st.integers(1, 70),
    count=st.integers(1, 3),
    threads=st.integers(1, 3),
)
def test_a_block_is_exact_on_whole_numbers(
    images, height, width, channels, bottleneck, growth, count, threads
):
    torch.manual_seed(0)
    layers = [whole_layer(channels + i * growth, bottleneck, growth) for i in range(count)]
    x = whole(images, channels, height, width)
    with threads_set(threads):
        found = run_native_block(x, layers, CEILING)
    assert torch.equal(found.double(), block_by_definition(x, layers, CEILING))


@pytest.mark.usefixtures("multiplies_bfloat16")
def test_bottleneck_maps_that_do_not_fit_are_made_in_strips():
    torch.manual_seed(0)
    layers = [whole_layer(5 + 4 * i, 192, 4) for i in range(3)]
    x = whole(3, 5, 57, 150)
    assert block.load_library().narrow_values(3, 57, 150, 192, 2, 2, 1) < 3 * 57 * 150 * 192
    with threads_set(1):
        found = run_native_block(x, layers, CEILING)
    assert torch.equal(found.double(), block_by_definition(x, layers, CEILING))


@pytest.mark.usefixtures("multiplies_bfloat16")
@settings(max_examples=30)
@given(
    images=st.integers(1, 3),
    height=st.integers(2, 30),
    width=st.integers(2, 30),
    channels=st.integers(1, 600),
    new=st.integers(1, 150),
)
def test_a_transition_is_exact_on_whole_numbers(images, height, width, channels, new):
    torch.manual_seed(0)
    scale, shift = whole(channels, 1, 1), whole(channels, 1, 1)
    weight, bias = sparse(new, channels, 1, 1), whole(new)
    x = whole(images, channels, height, width)
    found = run_transition(x, [scale, shift, weight, bias], CEILING, pool=True)
    normed = (x.double() * scale + shift).clamp(0.0, CEILING)
    result = F.conv2d(F.avg_pool2d(normed, 2), weight.double(), bias.double())
    assert torch.equal(found.double(), result)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("multiplies_bfloat16")
def test_what_is_not_a_number_stays_so():
    torch.manual_seed(0)
    layers = [whole_layer(21, 16, 8)]
    layers[0][0].fill_(1.0)
    x = whole(1, 21, 12, 12)
    x[0, :, 5, 5] = math.nan
    wrong = run_native_block(x, layers, CEILING)[0, 21:].isnan().any(0)
    assert wrong[4:7, 4:7].all()
    assert not wrong[:4].any() and not wrong[8:].any(), "tiles are of 2x2 cells"


@pytest.mark.usefixtures("multiplies_bfloat16")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_net_runs_in_them_and_is_as_near_as_the_plain_one(autocast, monkeypatch):
    ran = []
    inner = block.fill_block
    monkeypatch.setattr(
        "densenet_backbones.dense_block.native.fill_block",
        lambda buffer, *rest: ran.append(buffer.dtype) or inner(buffer, *rest),
    )
    torch.manual_seed(0)
    net = randomise_norms(timm.create_model("densenet121_features")).eval()
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        exact = deploy(net).double()(x.double())
        deployed = deploy(net)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                plain, found = net(x), deployed(x)
        else:
            plain = net.bfloat16()(x.bfloat16())
            found = deployed.bfloat16()(x.bfloat16())
    assert ran == [torch.bfloat16] * 4
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error, usual = ((maps - right).norm() / right.norm() for maps in (ours, theirs))
        # Winograd's transforms round more often, folded norms less.
        assert error <= 1.5 * usual


def test_without_them_bfloat16_runs_in_plain_operators(monkeypatch):
    monkeypatch.setattr("densenet_backbones.dense_block.native.has_bfloat16", lambda: False)
    x = torch.randn(1, 3, 64, 64)
    assert not backends.has_cpp(x.bfloat16())
    net = tiny("densenet121_features").eval()
    with torch.inference_mode():
        for ours, theirs in zip(deploy(net).bfloat16()(x.bfloat16()), net(x), strict=True):
            assert (ours - theirs).norm() <= 0.02 * theirs.norm()
