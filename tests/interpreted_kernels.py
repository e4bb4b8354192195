"""Cases of `test_kernels`, in a file of its own: Triton reads TRITON_INTERPRET when it is imported.

On a machine with a GPU the same cases run there, compiled.
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from densenet_backbones.dense_block.folded_layer import FoldedTensors
from densenet_backbones.dense_block.kernels import (
    conv3x3,
    fused_layer,
    pointwise,
    run_folded_kernels,
    usable,
)
from densenet_backbones.dense_block.kernels.block import two_kernels

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Float32 differs from the reference by the order of its sums. A bfloat16 has 8 significant bits:
# output and bottleneck are each rounded by up to 2^-9 of their value, and the errors of a
# bottleneck's many channels mostly cancel in the sum that follows.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def random_layer(channels, bottleneck, growth, dtype, dilation=1, relu6=False, bias2=False):
    """Values as folding makes them: one bound per channel, a few channels negative or constant."""
    theta = torch.randn(channels) * 0.5
    low, high = theta.clone(), torch.full_like(theta, math.inf)
    if relu6:
        high = low + 6 * torch.rand(channels)
    negative = torch.rand(channels) < 0.3
    low[negative & torch.tensor(not relu6)] = -math.inf
    high[negative & torch.tensor(not relu6)] = theta[negative & torch.tensor(not relu6)]
    low[0] = high[0] = 0.0
    weight2 = torch.randn(growth, bottleneck, 3, 3) / (9 * bottleneck) ** 0.5
    tensors = (
        low,
        high,
        torch.randn(bottleneck, channels) / channels**0.5,
        torch.randn(bottleneck) + 0.5,
        weight2.to(memory_format=torch.channels_last),
        torch.randn(growth) if bias2 else None,
    )
    return FoldedTensors(
        *(t if t is None else t.to(DEVICE, dtype) for t in tensors),
        dilation=dilation,
        mid_high=6.0 if relu6 else math.inf,
    )


def random_buffer(images, channels, height, width, dtype):
    x = torch.randn(images, channels, height, width, device=DEVICE, dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def clamped(x, layer):
    low, high = (bound.double()[:, None, None] for bound in (layer.low, layer.high))
    return x.double().clamp(low, high)


def reference_bottleneck(x, layer):
    """In float64, from the rounded values that the kernels get."""
    x = F.conv2d(clamped(x, layer), layer.weight1.double()[:, :, None, None], layer.bias1.double())
    return x.clamp(layer.mid_low, layer.mid_high)


def reference_maps(squeezed, layer):
    d = layer.dilation
    bias = None if layer.bias2 is None else layer.bias2.double()
    return F.conv2d(squeezed.double(), layer.weight2.double(), bias, padding=d, dilation=d)


def assert_close(actual, expected, dtype):
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[dtype], float(error)


def arguments(layer):
    return layer.low, layer.high, layer.weight1, layer.bias1, layer.weight2, layer.bias2


def options(layer):
    return {"dilation": layer.dilation, "mid_low": layer.mid_low, "mid_high": layer.mid_high}


# Images, height, width, channels, bottleneck, growth: odd sizes, widths that no block divides.
SIZES = [(1, 5, 7, 40, 48, 12), (2, 5, 9, 65, 128, 32), (2, 1, 1, 24, 48, 12)]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pointwise(sizes, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype, relu6=sizes[0] == 2)
    x = random_buffer(images, channels + 5, height, width, dtype)
    out = random_buffer(images, bottleneck + 3, height, width, dtype)
    before = out.clone()
    bounds = {"out_low": layer.mid_low, "out_high": layer.mid_high}
    pointwise(x, layer.low, layer.high, layer.weight1, layer.bias1, out, **bounds)
    assert_close(out[:, :bottleneck], reference_bottleneck(x[:, :channels], layer), dtype)
    assert torch.equal(out[:, bottleneck:], before[:, bottleneck:])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_transition(pool, dtype):
    layer = random_layer(36, 20, 4, dtype)
    x = random_buffer(2, 36, 7, 6, dtype)
    out = random_buffer(2, 30, 3 if pool else 7, 3 if pool else 6, dtype)
    before = out.clone()
    pointwise(x, layer.low, layer.high, layer.weight1, layer.bias1, out, pool=pool)
    expected = F.conv2d(
        clamped(x, layer), layer.weight1.double()[:, :, None, None], layer.bias1.double()
    )
    assert expected.min() < 0, "nothing is cut off"
    assert_close(out[:, :20], F.avg_pool2d(expected, 2) if pool else expected, dtype)
    assert torch.equal(out[:, 20:], before[:, 20:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pixels", [None, 64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_conv3x3_writes_its_slice_and_nothing_else(sizes, pixels, dilation, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype, dilation, bias2=dilation == 2)
    squeezed = random_buffer(images, bottleneck, height, width, dtype)
    buffer = random_buffer(images, channels + growth + 3, height, width, dtype)
    before = buffer.clone()
    new = slice(channels, channels + growth)
    where = {"dilation": dilation, "pixels": pixels}
    conv3x3(squeezed, layer.weight2, layer.bias2, buffer[:, new], **where)
    assert_close(buffer[:, new], reference_maps(squeezed, layer), dtype)
    buffer[:, new] = before[:, new]
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("pixels", "dilation"), [(32, 1), (64, 2), (128, 1)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fused_layer(sizes, pixels, dilation, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype, dilation, relu6=pixels == 64)
    buffer = random_buffer(images, channels + growth + 3, height, width, dtype)
    before = buffer.clone()
    fused_layer(buffer, *arguments(layer), **options(layer), pixels=pixels)
    new = slice(channels, channels + growth)
    expected = reference_maps(reference_bottleneck(before[:, :channels], layer), layer)
    assert_close(buffer[:, new], expected, dtype)
    buffer[:, new] = before[:, new]
    assert torch.equal(buffer, before)


def test_a_bottleneck_wider_than_a_block():
    layer = random_layer(32, 192, 48, torch.float32, bias2=True)
    buffer = random_buffer(1, 80, 6, 5, torch.float32)
    expected = reference_maps(reference_bottleneck(buffer[:, :32], layer), layer)
    fused_layer(buffer, *arguments(layer), pixels=64)
    assert_close(buffer[:, 32:], expected, torch.float32)


@pytest.mark.parametrize("way", [two_kernels, fused_layer])
def test_padding_is_zero_and_not_the_bias(way):
    """With a bottleneck of ones everywhere, an output counts the taps inside of the image."""
    zeros = torch.zeros(48, 16, device=DEVICE)
    weight2 = torch.ones(16, 48, 3, 3, device=DEVICE) / 48
    buffer = torch.zeros(2, 32, 3, 4, device=DEVICE).to(memory_format=torch.channels_last)
    bounds = (torch.zeros(16, device=DEVICE), torch.full((16,), math.inf, device=DEVICE))
    tensors = (*bounds, zeros, torch.ones(48, device=DEVICE), weight2, None)
    if way is two_kernels:
        two_kernels(buffer, *tensors, 1, 0.0, math.inf)
    else:
        fused_layer(buffer, *tensors, pixels=32)
    count = torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]], device=DEVICE)
    assert (buffer[:, 16:] - count).abs().max() < 1e-5


@pytest.mark.parametrize("way", [two_kernels, fused_layer])
def test_nan_and_infinity_stay_where_convolutions_take_them(way):
    layer = random_layer(16, 48, 12, torch.float32)
    buffer = random_buffer(2, 28, 5, 5, torch.float32)
    buffer[0, 3, 2, 2] = math.nan
    if way is two_kernels:
        two_kernels(buffer, *arguments(layer), 1, 0.0, math.inf)
    else:
        fused_layer(buffer, *arguments(layer), pixels=64)
    found = buffer[:, 16:].isnan().any(dim=1)
    expected = torch.zeros_like(found)
    expected[0, 1:4, 1:4] = True
    assert torch.equal(found, expected)


def small_block(dtype):
    layers, width = [], 20
    for growth in (12, 16, 12):
        layers.append(random_layer(width, 48, growth, dtype))
        width += growth
    return layers, width


@pytest.mark.parametrize("images_at_once", [None, 1, 2])
def test_a_block(images_at_once):
    layers, width = small_block(torch.float32)
    buffer = random_buffer(3, width, 5, 6, torch.float32)
    expected = buffer[:, :20].double()
    for layer in layers:
        new = reference_maps(reference_bottleneck(expected, layer), layer)
        expected = torch.cat((expected, new), dim=1)
    assert run_folded_kernels(buffer, layers, images_at_once) is buffer
    assert_close(buffer, expected, torch.float32)


def test_a_block_in_compiled_code():
    layers, width = small_block(torch.float32)
    buffer = random_buffer(2, width, 5, 6, torch.float32)
    expected = run_folded_kernels(buffer.clone(), layers)

    def run(x):
        return run_folded_kernels(x.clone(), layers) * 2

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(buffer), expected * 2)


def test_operators_keep_to_what_they_declare():
    layer = random_layer(16, 48, 12, torch.float32)
    buffer = random_buffer(2, 28, 3, 4, torch.float32)
    rest = (*arguments(layer), 1, 0.0, math.inf)
    ops = torch.ops.densenet_backbones
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.folded_layer, (buffer, *rest, 64), test_utils=checks)
    torch.library.opcheck(ops.folded_layer_measured, (buffer, *rest), test_utils=checks)
    out = random_buffer(2, 48, 3, 4, torch.float32)
    torch.library.opcheck(
        ops.folded_pointwise, (buffer, *rest[:4], out, 0.0, 6.0, False), test_utils=checks
    )
    torch.library.opcheck(
        ops.folded_conv3x3, (out, layer.weight2, None, buffer[:, 16:], 1, None), test_utils=checks
    )


def test_other_memory_formats_are_an_error():
    layer = random_layer(16, 48, 12, torch.float32)
    planes = torch.randn(2, 28, 5, 5, device=DEVICE)
    with pytest.raises(ValueError, match="x must be channels-last"):
        fused_layer(planes, *arguments(layer))
    with pytest.raises(ValueError, match="x must be channels-last"):
        run_folded_kernels(planes, [layer])
    half = random_buffer(2, 28, 8, 5, torch.float32)[:, :, ::2]
    with pytest.raises(ValueError, match="x must be channels-last"):
        run_folded_kernels(half, [layer])


def test_wrong_widths_are_an_error():
    layer = random_layer(16, 48, 12, torch.float32)
    buffer = random_buffer(2, 30, 5, 5, torch.float32)
    with pytest.raises(ValueError, match="end at channel 28, the buffer at 30"):
        run_folded_kernels(buffer, [layer])
    with pytest.raises(ValueError, match="reads 16 channels of 28"):
        run_folded_kernels(buffer, [layer, layer])
    with pytest.raises(ValueError, match=r"out must have shape \(2, 12, 5, 5\)"):
        conv3x3(random_buffer(2, 48, 5, 5, torch.float32), layer.weight2, None, buffer)
    with pytest.raises(ValueError, match="buffer must have at least 28 channels"):
        fused_layer(buffer[:, :20], *arguments(layer))
    with pytest.raises(ValueError, match=r"maps are torch.float16 and weights torch.float32"):
        fused_layer(buffer.half(), *arguments(layer))
    with pytest.raises(ValueError, match="halo of 40 fits into 64 pixels"):
        fused_layer(buffer, *arguments(layer), dilation=40, pixels=64)


def test_usable_here():
    assert usable(torch.device(DEVICE), torch.bfloat16)
