"""Cases of `test_kernels` for the kernels of training: see `interpreted_kernels`."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from interpreted_kernels import DEVICE, TOLERANCES, assert_close, random_buffer, run_unchecked
from long_cases import each_once
from tiny_nets import tiny
from torch import nn
from training_blocks import block_of, step
from triton.runtime import interpreter

from densenet_backbones.dense_block.interfaces import is_in_rows
from densenet_backbones.dense_block.triton_training import norms, passes, unit
from densenet_backbones.dense_block.triton_training.gradients import (
    compute_input_gradient,
    compute_weight_gradient,
)
from densenet_backbones.dense_block.triton_training.unit import run_unit, run_unit_backward

MODES = ("shared", "shared_lean")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _round_as_gpus_do(monkeypatch):
    """To nearest. The interpreter cuts a bfloat16's further bits off: errors that do not cancel."""
    convert = interpreter._convert_float

    def rounded(data, given, wanted, mode):
        if (given, wanted) == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(data).view(np.uint32)
            data = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)
        return convert(data, given, wanted, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.mark.skipif(DEVICE == "cuda", reason="is of the interpreter")
def test_rounding_is_that_of_gpus():
    x = random_buffer(1, 4, 32, 32, torch.bfloat16)
    scale, shift = vectors(2, 4)
    expected = torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None]).relu()
    assert torch.equal(passes.scale_shift_relu(x, scale, shift), expected.bfloat16())


def prefix(images, channels, height, width, dtype, wider=0):
    """A map, or the first channels of one that has more."""
    return random_buffer(images, channels + wider, height, width, dtype)[:, :channels]


def vectors(count, channels):
    return torch.randn(count, channels, device=DEVICE).unbind()


def spread(vector):
    return vector.double()[:, None, None]


# ------------------------------------------------------------------------ passes

# Images, channels, height, width: more channels than a program has, more pixels, neither.
MAPS = [(2, 20, 7, 9), (1, 150, 9, 7), (3, 64, 13, 5), (2, 5, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "wider", "dtype"), each_once(MAPS * 2, [0, 0, 11], TOLERANCES), ids=str
)
def test_passes_are_what_their_definitions_say(shape, wider, dtype):
    x, y, total = (prefix(*shape, dtype, wider) for _ in range(3))
    gradient, active = prefix(*shape, dtype), prefix(*shape, dtype).relu()
    scale, shift, slope = vectors(3, shape[1])
    a, b, c = map(spread, (scale, shift, slope))
    assert_close(passes.scale_shift_relu(x, scale, shift), (a * x + b).relu(), dtype)
    assert_close(
        passes.compute_affine_difference(y, x, scale, shift, slope),
        a * y.double() - b - c * x,
        dtype,
    )
    assert_close(
        passes.compute_affine_difference(y, x, None, shift, slope), y.double() - b - c * x, dtype
    )
    expected = gradient.double() * (active > 0)
    added = total.double() + a * expected
    for into in (None, (total, scale)):
        masked, *sums = passes.mask_and_sum(gradient, active, x, into)
        for found, terms in zip(sums, (expected, expected * x), strict=True):
            assert found.dtype == torch.float32
            error = (found.sum(0) - terms.sum((0, 2, 3))).abs()
            assert (error <= 1e-6 * (1 + terms.abs().sum((0, 2, 3)))).all()
        assert masked is None if into else torch.equal(masked.double(), expected)
    assert_close(total, added, dtype)
    assert passes.mask_and_sum(gradient, active, x, overwrite=True)[0] is gradient
    assert torch.equal(gradient.double(), expected)
    expected = total.double() + a * gradient
    passes.add_scaled(total, gradient, scale)
    assert_close(total, expected, dtype)


def test_what_is_beside_the_first_channels_stays():
    buffer = random_buffer(2, 30, 5, 7, torch.float32)
    before, dense = buffer.clone(), random_buffer(2, 20, 5, 7, torch.float32)
    (scale,) = vectors(1, 20)
    passes.add_scaled(buffer[:, :20], dense, scale)
    passes.mask_and_sum(dense, dense, dense, (buffer[:, :20], scale))
    weight = torch.randn(8, 20, 1, 1, device=DEVICE)
    gradient = random_buffer(2, 8, 5, 7, torch.float32)
    compute_input_gradient(gradient, weight, dense, (scale, scale), into=buffer[:, :20])
    assert torch.equal(buffer[:, 20:], before[:, 20:])
    assert not torch.equal(buffer[:, :20], before[:, :20])


def test_passes_keep_what_is_not_a_number():
    x = torch.full((1, 1, 2, 2), math.nan, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    assert passes.scale_shift_relu(x, one, one).isnan().all()
    ones = torch.ones_like(x)
    assert torch.equal(passes.mask_and_sum(ones, x, x)[0], ones)
    found = compute_input_gradient(ones, torch.ones(1, 1, 1, 1, device=DEVICE), x, (one, one))
    assert torch.equal(found[0], ones)


# ------------------------------------------------------------------------ units

# Images, C, O, height, width; the last have several tiles in both directions.
UNITS = [(2, 20, 12, 5, 7), (1, 40, 70, 3, 4), (2, 70, 18, 4, 5)]
KERNELS = [(1, 1), (3, 1), (3, 2)]
# What maps are in, and what products are made of.
TYPES = [(t, t) for t in TOLERANCES] + [(torch.float32, torch.bfloat16)]


def exact_unit(x, norm, weight, bias, dilation):
    """Output, and input, norm's output and weight that gradients are taken of, in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    normed = spread(norm[0]) * x + spread(norm[1])
    normed.retain_grad()
    padding = dilation * (weight.shape[2] // 2)
    out = F.conv2d(normed.relu(), weight, bias.double(), padding=padding, dilation=dilation)
    return out, x, normed, weight


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize(("sizes", "kernel"), each_once(UNITS, KERNELS), ids=str)
def test_units_and_their_gradients(sizes, kernel, types):
    side, dilation = kernel
    images, channels, outputs, height, width = sizes
    dtype, computed = types
    x = prefix(images, channels, height, width, dtype, wider=7)
    weight = torch.randn(outputs, channels, side, side, device=DEVICE) / (side * channels**0.5)
    weight, bias = weight.to(computed), torch.randn(outputs, device=DEVICE).to(computed)
    norm = vectors(2, channels)
    expected, *exact = exact_unit(x, norm, weight, bias, dilation)
    out = run_unit(x, norm, weight, bias, dilation)
    assert out.dtype == computed and is_in_rows(out, dense=True)
    assert_close(out, expected.detach(), computed)
    without = run_unit(x, norm, weight, None, dilation)
    assert_close(without, (expected - bias.double()[:, None, None]).detach(), computed)

    gradient = random_buffer(images, outputs, height, width, computed)
    expected.backward(gradient.double())
    masked = exact[1].grad
    (found, *sums), of_weight = run_unit_backward(gradient, x, norm, weight, dilation)
    assert found.dtype == dtype and of_weight.dtype == torch.float32
    assert_close(found, masked, computed)
    assert_close(of_weight, exact[2].grad, computed)
    for ours, terms in zip(sums, (masked, masked * x), strict=True):
        # Products are summed in float32 before anything is rounded.
        error = (ours.sum(0) - terms.sum((0, 2, 3))).abs()
        assert (error <= 1e-5 * (1 + terms.abs().sum((0, 2, 3)))).all()

    total = prefix(images, channels, height, width, dtype, wider=7)
    added = total.double() + exact[0].grad
    again, none = run_unit_backward(gradient, x, norm, weight, dilation, needed=False, into=total)
    assert again[0] is None and none is None
    assert_close(total, added, computed if dtype == torch.float32 else dtype)
    assert all(torch.equal(a, b) for a, b in zip(sums, again[1:], strict=True)), "in one order"


def test_the_border_is_zero_and_not_the_shift():
    """With a norm that makes ones, an output counts the taps inside of the image."""
    x, weight = random_buffer(2, 16, 3, 4, torch.float32), torch.ones(20, 16, 3, 3, device=DEVICE)
    norm = torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE)
    count = torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]], device=DEVICE)
    assert (run_unit(x, norm, weight / 16) - count).abs().max() < 1e-5
    found = compute_weight_gradient(torch.ones_like(x)[:, :2], x, norm, 3)
    inside = torch.tensor([[12.0, 16, 12], [18, 24, 18], [12, 16, 12]], device=DEVICE)
    assert torch.equal(found, inside.expand(2, 16, 3, 3))


def test_the_parts_of_a_weight_gradient_add_up(monkeypatch):
    """1200 pixels in parts of 128, the last one shorter."""
    x, gradient = (random_buffer(3, c, 20, 20, torch.float32) for c in (24, 10))
    norm = vectors(2, 24)
    weight = torch.randn(10, 24, 3, 3, device=DEVICE)
    expected, *exact = exact_unit(x, norm, weight, torch.zeros(10, device=DEVICE), 1)
    expected.backward(gradient.double())
    assert_close(compute_weight_gradient(gradient, x, norm, 3), exact[2].grad, torch.float32)


def test_what_units_refuse():
    x = random_buffer(2, 16, 5, 5, torch.float32)
    norm, weight = vectors(2, 16), torch.randn(8, 16, 1, 1, device=DEVICE)
    gradient = random_buffer(2, 8, 5, 5, torch.float32)
    with pytest.raises(ValueError, match="gradient must be channels-last"):
        compute_input_gradient(gradient.contiguous(), weight, x, norm)
    with pytest.raises(ValueError, match=r"gradient must have shape \(2, 8, 5, 5\)"):
        compute_input_gradient(x, weight, x, norm)
    with pytest.raises(ValueError, match=r"maps are torch.float16 and weights torch.float32"):
        compute_input_gradient(gradient.half(), weight, x, norm)
    with pytest.raises(ValueError, match="x must be channels-last"):
        compute_weight_gradient(gradient, x.contiguous(), norm, 1)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        ((1,), True),
        ((3, 1, 1), True),
        ((3, 1, 2, 2), True),
        ((3, 1, 1, 2), False),
        ((3, 1, (2, 1), (2, 1)), False),
        ((3, 2, 1), False),
        ((1, 2), False),
        ((1, 1, 1), False),
        ((3, 1, 1, 1, 2), False),
        ((5, 1, 2), False),
    ],
    ids=str,
)
def test_known_geometries(arguments, known):
    assert unit.is_known(nn.Conv2d(4, 4, *arguments)) is known


# ------------------------------------------------------------------------ whole blocks


@pytest.fixture
def runs(monkeypatch):
    """Kernels run wherever the maps are, unchecked; counts what was started."""
    run_unchecked(monkeypatch)
    count = Counter()
    functions = [(unit, name) for name in ("run_unit", "run_unit_backward")]
    functions += [(passes, name) for name in passes.__all__]
    functions += [(norms, name) for name in ("make_affine", "compute_norm_gradients")]
    for module, name in functions:
        inner = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, inner=inner, name=name, **rest: (
                count.update([name]) or inner(*args, **rest)
            ),
        )
    return count


def block_steps(block, x, memory, dtype=None):
    """A step with kernels, a plain one, and the plain one in double precision."""
    exact = step(copy.deepcopy(block).double(), x.double(), "none")
    with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        found, plain = (step(block, x, mode) for mode in (memory, "none"))
    return found, plain, exact


def assert_as_plain(found, plain, exact, floor):
    """Both round, so each is held against double precision, up to ``floor`` of what is rounded."""
    names = [{"out": part} if isinstance(part, torch.Tensor) else part for part in exact]
    for values, *both in zip(names, found, plain, strict=True):
        ours, theirs = (p if isinstance(p, dict) else {"out": p} for p in both)
        for key, value in values.items():
            assert ours[key].dtype == theirs[key].dtype, key
            assert ours[key].shape == value.shape, key
            error, usual = ((d[key].double() - value).norm() for d in (ours, theirs))
            assert error <= 2 * usual + floor * value.double().norm(), (key, error, usual)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize(
    ("bn_size", "norm"), [(2, "bn"), (None, "bn"), (2, "frozen"), (None, "sync")]
)
def test_a_step_equals_the_plain_one(memory, bn_size, norm, runs):
    block = block_of(bn_size=bn_size, norm=norm, proj_drop_rate=0.3, drop_path_rate=0.4)
    block = block.float().to(DEVICE)
    found, plain, exact = block_steps(block, random_buffer(3, 6, 5, 4, torch.float32), memory)
    # Sums over 60 pixels, of which statistics are differences: some tens of float32's 6e-8.
    assert_as_plain(found, plain, exact, floor=3e-6)
    assert found[0].stride() == plain[0].stride()
    units = 3 * (1 if bn_size is None else 2)
    again = 3 if memory == "shared_lean" and bn_size else 0
    assert runs["run_unit"] == units + again and runs["run_unit_backward"] == units
    assert runs["compute_affine_difference"] == (0 if norm == "frozen" else 4) + (
        3 if bn_size else 0
    )
    assert runs["mask_and_sum"] == runs["scale_shift_relu"] == 0, "units mask on the way"
    assert runs["make_affine"] == 2 * units + again and runs["compute_norm_gradients"] == units


@pytest.mark.parametrize(
    ("memory", "norm", "maps"),
    each_once(MODES, ["bn", "frozen"], [torch.float32, torch.bfloat16]),
    ids=str,
)
def test_autocast(memory, norm, maps, runs):
    block = block_of(norm=norm).float().to(DEVICE)
    steps = block_steps(block, random_buffer(2, 6, 5, 4, maps), memory, torch.bfloat16)
    # Bfloat16 rounds by up to 2^-9 = 0.002, and a gradient several times on its way.
    assert_as_plain(*steps, floor=0.01)
    assert runs["run_unit_backward"] == 6


@pytest.mark.parametrize("memory", MODES)
def test_half_precision_throughout(memory, runs):
    block = block_of().to(DEVICE, torch.bfloat16)
    assert_as_plain(*block_steps(block, random_buffer(2, 6, 5, 4, torch.bfloat16), memory), 0.01)
    assert runs["run_unit_backward"] == 6


@pytest.mark.parametrize("memory", MODES)
def test_frozen_parts_get_no_gradient_and_the_rest_the_same(memory, runs):
    block = block_of().float().to(DEVICE)
    block.denselayer1.requires_grad_(False).eval()
    block.denselayer2.norm1.weight.requires_grad_(False)
    block.denselayer2.conv2.requires_grad_(False)
    x = random_buffer(2, 6, 4, 4, torch.float32)
    found, plain = (step(block, x, mode)[1] for mode in (memory, "none"))
    assert {k for k, g in found.items() if g is None} == {k for k, g in plain.items() if g is None}
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", MODES)
def test_other_geometries_are_left_to_plain_operators(memory, runs):
    """Of the convolutions alone: passes are kernels all the same."""
    block = block_of(bn_size=2).float().to(DEVICE)
    for layer in block.values():
        old = layer.conv2
        layer.conv2 = nn.Conv2d(8, 4, (3, 1), padding=(1, 0), bias=True, device=DEVICE)
        assert layer.conv2.out_channels == old.out_channels
    steps = block_steps(block, random_buffer(2, 6, 5, 4, torch.float32), memory)
    assert_as_plain(*steps, floor=3e-6)
    assert runs["run_unit_backward"] == runs["mask_and_sum"] == 3
    assert runs["scale_shift_relu"] == 6, "forward and backward"


@pytest.mark.parametrize("memory", MODES)
def test_biases_of_convolutions(memory, runs):
    block = block_of(bn_size=2).float().to(DEVICE)
    for layer in block.values():
        layer.conv1 = nn.Conv2d(layer.conv1.in_channels, 8, 1, device=DEVICE)
        layer.conv2 = nn.Conv2d(8, 4, 3, padding=1, device=DEVICE)
    steps = block_steps(block, random_buffer(2, 6, 5, 4, torch.float32), memory)
    assert_as_plain(*steps, floor=3e-6)
    assert runs["run_unit_backward"] == 6


@pytest.mark.parametrize("memory", MODES)
def test_maps_in_planes_are_left_to_plain_operators(memory, runs):
    block = block_of().float().to(DEVICE)
    x = random_buffer(2, 6, 4, 4, torch.float32).contiguous()
    torch.testing.assert_close(step(block, x, memory), step(block, x, "none"), rtol=1e-4, atol=1e-4)
    assert set(runs) == {"make_affine", "compute_norm_gradients"}, "vectors have no format"


@pytest.mark.parametrize("memory", MODES)
def test_double_precision_is_left_to_plain_operators(memory, runs):
    block = block_of().to(DEVICE)
    x = random_buffer(2, 6, 4, 4, torch.float64)
    torch.testing.assert_close(
        step(block, x, memory), step(block, x, "none"), rtol=1e-11, atol=1e-11
    )
    assert not runs


@pytest.mark.parametrize(
    ("memory", "options"), each_once(MODES, [{}, {"output_stride": 8}]), ids=str
)
def test_a_net(memory, options, runs):
    """With stem, transitions and dilated blocks."""
    net = tiny("densenet121_features", block_config=(2, 1, 1), **options).train().to(DEVICE)
    net = net.to(memory_format=torch.channels_last)
    x = random_buffer(2, 3, 32, 32, torch.float32)
    gradients = []
    for mode, dtype in (("none", torch.float64), ("none", torch.float32), (memory, torch.float32)):
        copied = copy.deepcopy(net).to(dtype)
        copied.set_memory(mode)
        sum(m.square().mean() for m in copied(x.to(dtype))).backward()
        gradients.append({key: p.grad for key, p in copied.named_parameters()})
    exact, plain, found = gradients
    assert_as_plain([found], [plain], [exact], floor=1e-5)
    units = 2 * 4 + 2  # layers and transitions
    assert runs["run_unit_backward"] == units
