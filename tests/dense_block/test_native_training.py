"""The C++ kernels of training compute what PyTorch does, on every instruction set."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import threads_set, tiny
from torch import nn
from torch.nn.grad import conv2d_weight

from densenet_backbones.dense_block import use_compiled_convolutions
from densenet_backbones.dense_block.native import convolution, passes, shared_block
from densenet_backbones.dense_block.native.convolution import compute_weight_gradient, convolve
from densenet_backbones.dense_block.native.library import load_library


def rows(images, channels, height, width, wider=0, dtype=torch.float32):
    """A map in channels last: the first channels of one that has ``wider`` more."""
    x = torch.randn(images, height, width, channels + wider).to(dtype).permute(0, 3, 1, 2)
    return x[:, :channels]


def close(found, expected):
    """Up to the rounding of float32 sums, which goes with the size of what is summed.

    What is kept in bfloat16 may be rounded once besides.
    """
    assert found.shape == expected.shape
    error = (found.double() - expected).abs()
    if found.dtype == torch.bfloat16:
        error -= 2**-8 * expected.abs()
    assert float(error.max()) <= 3e-6 * max(1.0, float(expected.abs().max()))


# Sides: those of Winograd's small tiles, and of its large ones.
SIDES = st.integers(1, 10) | st.integers(11, 18)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 300), SIDES, SIDES)


@pytest.mark.usefixtures("instructions")
@settings(max_examples=30)
@given(
    shape=SHAPES,
    wider=st.integers(0, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    threads=st.integers(1, 3),
)
def test_passes_are_what_their_definitions_say(shape, wider, dtype, threads):
    torch.manual_seed(0)
    x, y, total = (rows(*shape, wider, dtype) for _ in range(3))
    gradient, active = rows(*shape, dtype=dtype), rows(*shape, dtype=dtype).relu()
    scale, shift, slope = torch.randn(3, shape[1])
    a, b, c = (vector[:, None, None].double() for vector in (scale, shift, slope))
    with threads_set(threads):
        close(passes.scale_shift_relu(x, scale, shift), (a * x + b).relu())
        expected = gradient.double() * (active > 0)
        added = total.double() + a * expected
        for into in (None, (total, scale)):
            masked, *sums = passes.mask_and_sum(gradient, active, x, into)
            for found, terms in zip(sums, (expected, expected * x), strict=True):
                error = (found - terms.sum((0, 2, 3))).abs()
                assert (error <= 1e-6 * (1 + terms.abs().sum((0, 2, 3)))).all()
            assert masked is None if into else torch.equal(masked.double(), expected)
        close(total, added)
        assert passes.mask_and_sum(gradient, active, x, overwrite=True)[0] is gradient
        assert torch.equal(gradient.double(), expected)
        rest = b + c * x.double()
        close(passes.compute_affine_difference(y, x, scale, shift, slope), a * y - rest)
        close(passes.compute_affine_difference(y, x, None, shift, slope), y - rest)
        expected = total.double() + a * gradient
        passes.add_scaled(total, gradient, scale)
        close(total, expected)


@pytest.mark.usefixtures("instructions")
@settings(max_examples=40)
@given(
    shape=SHAPES,
    wider=st.integers(0, 40),
    outputs=st.integers(1, 150),
    side=st.sampled_from([1, 3]),
    last=st.booleans(),
    threads=st.integers(1, 3),
)
def test_convolutions_and_gradients_of_their_input(shape, wider, outputs, side, last, threads):
    torch.manual_seed(0)
    x = rows(*shape, wider)
    weight = torch.randn(outputs, shape[1], side, side) / (side * shape[1] ** 0.5)
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, shape[1])
    bias = torch.randn(outputs)
    with threads_set(threads):
        read = (x.double() * scale[:, None, None] + shift[:, None, None]).relu()
        expected = F.conv2d(read, weight.double(), bias.double(), padding=side // 2)
        found = convolve(x, weight, bias, (scale, shift))
        assert found.is_contiguous(memory_format=torch.channels_last)
        close(found, expected)
        if side == 3:
            gradient = rows(shape[0], outputs, *shape[2:])
            expected = F.conv_transpose2d(gradient.double(), weight.double(), padding=1)
            close(convolve(gradient, weight, transposed=True), expected)
            scaled = gradient / gradient[:, 0].numel() ** 0.5  # sums over all cells
            found = compute_weight_gradient(scaled, x, weight)
            assert found.stride() == weight.stride()
            close(found, conv2d_weight(x.double(), weight.shape, scaled.double(), padding=1))


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_keep_what_is_not_a_number(dtype):
    x = torch.full((1, 1, 2, 2), math.nan, dtype=dtype)
    one = torch.ones(1)
    assert passes.scale_shift_relu(x, one, one).isnan().all()
    assert torch.equal(passes.mask_and_sum(torch.ones_like(x), x, x)[0], torch.ones_like(x))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("memory", ["shared", "shared_lean"])
def test_gradients_of_a_net_trained_with_them(memory, whole, monkeypatch):
    ran = []
    for module, name in (
        (passes, "mask_and_sum"),
        (convolution, "convolve"),
        (shared_block, "run_forward"),
        (shared_block, "run_backward"),
    ):
        inner = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, inner=inner, name=name, **rest: ran.append(name) or inner(*args, **rest),
        )
    if not whole:  # unit by unit, as blocks that drop values run
        monkeypatch.setattr(shared_block, "is_known", lambda *_: False)
    torch.manual_seed(0)
    net = tiny("densenet121_features").train().to(memory_format=torch.channels_last)
    exact = copy.deepcopy(net).double()
    net.set_memory(memory)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for model, images in ((net, x), (exact, x.double())):
        sum(m.square().mean() for m in model(images)).backward()
    blocks, layers = len(net.spec.block_config), sum(net.spec.block_config)
    assert ran.count("run_forward") == ran.count("run_backward") == (blocks if whole else 0)
    if not whole:
        assert ran.count("mask_and_sum") >= 2 * layers
        assert ran.count("convolve") >= 3 * layers, "1x1, 3x3, and the latter's input gradient"
    for (name, ours), theirs in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-7, name


@pytest.fixture
def chosen(compiled, monkeypatch):
    """Convolutions in the kernels, whatever the processor's vectors; the calls that ran there."""
    ran = []
    monkeypatch.setattr(convolution, "_AVX_LANES", load_library().lanes())
    inner = convolution.convolve
    monkeypatch.setattr(convolution, "convolve", lambda *a, **k: ran.append(a) or inner(*a, **k))
    return ran


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_of_any_module_run_in_the_kernels(bias, chosen):
    torch.manual_seed(0)
    # What is behind it in place, as in torchvision's heads, and what is not known to the kernels.
    net = nn.Sequential(
        nn.Conv2d(12, 20, 3, padding=1, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(20, 16, 3, padding=1, stride=2, bias=bias),
        nn.Conv2d(16, 9, 1, bias=bias),
    ).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(net).double()
    x = rows(2, 12, 19, 17).requires_grad_()
    of_x = x.detach().double().requires_grad_()
    with use_compiled_convolutions():
        out = net(x)
        assert len(chosen) == 1
        expected = exact(of_x)
    assert len(chosen) == 1, "not in float64"
    for made in (out, expected):
        made.square().mean().backward()
    assert len(chosen) == 2, "the input's gradient"
    close(out.detach(), expected.detach())
    for found, right in zip((x, *net.parameters()), (of_x, *exact.parameters()), strict=True):
        assert (found.grad - right.grad).norm() <= 1e-5 * right.grad.norm()


@pytest.mark.usefixtures("chosen")
def test_penalties_on_gradients_of_convolutions_are_refused():
    conv = nn.Conv2d(12, 20, 3, padding=1).to(memory_format=torch.channels_last)
    x = rows(2, 12, 19, 17).requires_grad_()
    with use_compiled_convolutions():
        out = conv(x).mean()
    with pytest.raises(RuntimeError, match="use_compiled_convolutions, give no second derivatives"):
        torch.autograd.grad(out, x, create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_other_convolutions_stay_as_they_are(chosen):
    conv = nn.Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last)
    x = rows(1, 16, 32, 32)
    with use_compiled_convolutions(False):
        conv(x)
    with use_compiled_convolutions():
        with torch.no_grad():
            conv(x)
        with torch.autocast("cpu", torch.bfloat16):
            conv(x)
        conv(x.contiguous())
        conv(x[..., :8, :8])
        conv(rows(1, 16, 1024, 1))
        nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)(x)
        for name, value in (("stride", 2), ("dilation", 2), ("groups", 2), ("padding", 0)):
            nn.Conv2d(16, 16, 3, **{"padding": 1, name: value})(x)
        nn.Conv2d(16, 4, 3, padding=1)(x)
        nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect")(x)
        torch.jit.trace(conv, x, check_trace=False)
        for kernel, bias in ((torch.zeros(16, 15, 3, 3), None), (conv.weight, torch.zeros(15))):
            with pytest.raises(RuntimeError, match="expected"):
                F.conv2d(x, kernel.requires_grad_(), bias, padding=1)
        assert not chosen
        F.conv2d(x, weight=conv.weight, padding=(1, 1))
    assert len(chosen) == 1
