"""Cases of `test_kernels`, in a file of its own: Triton reads TRITON_INTERPRET when it is imported.

On a machine with a GPU the same cases run there, compiled.
"""

import math
import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny_nets import tiny
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from densenet_backbones.dense_block import (
    FoldedConv2d,
    FoldedLayer,
    backends,
)
from densenet_backbones.dense_block.folded import run_folded, run_folded_compiled
from densenet_backbones.dense_block.folded import transition as folded_transition
from densenet_backbones.dense_block.interfaces import LayerWeights
from densenet_backbones.dense_block.plain import run_plain
from densenet_backbones.dense_block.triton import (
    block,
    convolve_1x1,
    convolve_3x3,
    is_usable,
    run_folded_kernels,
    run_fused_layer,
    self_check,
)
from densenet_backbones.dense_block.triton.block import run_two_kernels
from densenet_backbones.deploy import deploy

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Float32 differs from the reference by the order of its sums. A bfloat16 has 8 significant bits:
# output and bottleneck are each rounded by up to 2^-9 of their value, and the errors of a
# bottleneck's many channels mostly cancel in the sum that follows.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
WAYS = [run_two_kernels, partial(run_fused_layer, pixels=64)]


def random_layer(channels, bottleneck, growth, dtype, norm_dtype=None):
    """Norms in either direction, and one that is constant."""
    scale, shift = torch.randn(channels), torch.randn(channels) * 0.5
    scale[0] = 0.0
    weights = (
        torch.randn(channels, bottleneck) / channels**0.5,
        torch.randn(bottleneck) + 0.5,
        torch.randn(growth, bottleneck, 3, 3).to(memory_format=torch.channels_last)
        / (9 * bottleneck) ** 0.5,
        torch.randn(growth),
    )
    norm = (part.to(DEVICE, norm_dtype or dtype) for part in (scale, shift))
    return LayerWeights(*norm, *(part.to(DEVICE, dtype) for part in weights))


def random_buffer(images, channels, height, width, dtype):
    x = torch.randn(images, channels, height, width, device=DEVICE, dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def normed(x, layer, ceiling=math.inf):
    """In float64, from the rounded values that the kernels get."""
    scale, shift = (part.double()[:, None, None] for part in (layer.scale, layer.shift))
    return (scale * x.double() + shift).clamp(0, ceiling)


def squeezed_of(x, layer):
    weight = layer.weight1.double().t()[:, :, None, None]
    return F.conv2d(x, weight, layer.bias1.double())


def reference_bottleneck(x, layer, ceiling=math.inf):
    return squeezed_of(normed(x, layer, ceiling), layer).clamp(0, ceiling)


def reference_maps(squeezed, layer, dilation=1):
    weight, bias = layer.weight2.double(), layer.bias2.double()
    return F.conv2d(squeezed.double(), weight, bias, padding=dilation, dilation=dilation)


def assert_close(actual, expected, dtype):
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[dtype], float(error)


# Images, height, width, channels, bottleneck, growth: odd sizes, widths that no block divides.
SIZES = [(1, 5, 7, 40, 48, 12), (2, 5, 9, 65, 128, 32), (2, 1, 1, 24, 48, 12)]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pointwise(sizes, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype, torch.float32)
    x = random_buffer(images, channels + 5, height, width, dtype)
    out = random_buffer(images, bottleneck + 3, height, width, dtype)
    before = out.clone()
    ceiling = 6.0 if images == 2 else math.inf
    convolve_1x1(x, *layer[:4], out, ceiling=ceiling, activate=True)
    assert_close(out[:, :bottleneck], reference_bottleneck(x[:, :channels], layer, ceiling), dtype)
    assert torch.equal(out[:, bottleneck:], before[:, bottleneck:])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_transition(pool, dtype):
    """Its weight is a convolution's: the inputs of an output lie side by side."""
    layer = random_layer(36, 20, 4, dtype)
    weight = layer.weight1.t().contiguous().t()
    x = random_buffer(2, 36, 7, 6, dtype)
    out = random_buffer(2, 30, 3 if pool else 7, 3 if pool else 6, dtype)
    before = out.clone()
    convolve_1x1(x, layer.scale, layer.shift, weight, layer.bias1, out, pool=pool)
    expected = squeezed_of(normed(x, layer), layer)
    assert expected.min() < 0, "nothing is cut off"
    assert_close(out[:, :20], F.avg_pool2d(expected, 2) if pool else expected, dtype)
    assert torch.equal(out[:, 20:], before[:, 20:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("pixels", "dilation"), [(None, 1), (None, 2), (64, 2)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_conv3x3_writes_its_slice_and_nothing_else(sizes, pixels, dilation, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype)
    squeezed = random_buffer(images, bottleneck, height, width, dtype)
    buffer = random_buffer(images, channels + growth + 3, height, width, dtype)
    before = buffer.clone()
    new = slice(channels, channels + growth)
    where = {"dilation": dilation, "pixels": pixels}
    convolve_3x3(squeezed, layer.weight2, layer.bias2, buffer[:, new], **where)
    assert_close(buffer[:, new], reference_maps(squeezed, layer, dilation), dtype)
    buffer[:, new] = before[:, new]
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("pixels", "dilation"), [(32, 1), (64, 2), (128, 1)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fused_layer(sizes, pixels, dilation, dtype):
    images, height, width, channels, bottleneck, growth = sizes
    layer = random_layer(channels, bottleneck, growth, dtype, torch.float32)
    ceiling = 6.0 if pixels == 64 else math.inf
    buffer = random_buffer(images, channels + growth + 3, height, width, dtype)
    before = buffer.clone()
    run_fused_layer(buffer, layer, dilation=dilation, ceiling=ceiling, pixels=pixels)
    new = slice(channels, channels + growth)
    squeezed = reference_bottleneck(before[:, :channels], layer, ceiling)
    assert_close(buffer[:, new], reference_maps(squeezed, layer, dilation), dtype)
    buffer[:, new] = before[:, new]
    assert torch.equal(buffer, before)


def test_a_bottleneck_wider_than_a_block():
    layer = random_layer(32, 192, 48, torch.float32)
    buffer = random_buffer(1, 80, 6, 5, torch.float32)
    expected = reference_maps(reference_bottleneck(buffer[:, :32], layer), layer)
    run_fused_layer(buffer, layer, pixels=64)
    assert_close(buffer[:, 32:], expected, torch.float32)


@pytest.mark.parametrize("way", WAYS, ids=["two kernels", "fused"])
def test_padding_is_zero_and_not_the_bias(way):
    """With a bottleneck of ones everywhere, an output counts the taps inside of the image."""
    shapes = {"scale": (16,), "shift": (16,), "weight1": (16, 48), "bias2": (16,)}
    zeros = {name: torch.zeros(shape, device=DEVICE) for name, shape in shapes.items()}
    weight2 = torch.ones(16, 48, 3, 3, device=DEVICE) / 48
    buffer = torch.zeros(2, 32, 3, 4, device=DEVICE).to(memory_format=torch.channels_last)
    way(buffer, LayerWeights(**zeros, bias1=torch.ones(48, device=DEVICE), weight2=weight2))
    count = torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]], device=DEVICE)
    assert (buffer[:, 16:] - count).abs().max() < 1e-5


@pytest.mark.parametrize("way", WAYS, ids=["two kernels", "fused"])
def test_nan_stays_where_convolutions_take_it(way):
    layer = random_layer(16, 48, 12, torch.float32)
    buffer = random_buffer(2, 28, 5, 5, torch.float32)
    buffer[0, 3, 2, 2] = math.nan
    way(buffer, layer)
    found = buffer[:, 16:].isnan().any(dim=1)
    expected = torch.zeros_like(found)
    expected[0, 1:4, 1:4] = True
    assert torch.equal(found, expected)


# ------------------------------------------------------------------------ beside the plain form


def folded_layers(act, dilation, dtype=torch.float32):
    """A block of 20 channels and layers of unequal widths."""
    layers, width = [], 20
    for growth in (12, 16, 12):
        scale, shift, weight1, bias1, weight2, bias2 = random_layer(width, 48, growth, dtype)
        conv = nn.Conv2d(48, growth, 3, padding=dilation, dilation=dilation)
        conv = FoldedConv2d(conv, weight2, bias2)
        layers.append(FoldedLayer(scale, shift, (weight1, bias1), conv, act()))
        width += growth
    return layers


def run_unchecked(monkeypatch):
    """Have kernels run wherever the maps are, without their check, which starts kernels as well."""
    monkeypatch.setenv(backends.TRITON_SWITCH, "1")
    monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(self_check, "has_passed_check", lambda *args: True)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Kernels run wherever the maps are."""
    run_unchecked(monkeypatch)


@pytest.fixture
def kernel_runs(monkeypatch):
    """A list that grows by one with each layer that kernels run."""
    runs = []
    run = block.run_layer
    monkeypatch.setattr(block, "run_layer", lambda *args: (runs.append(1), run(*args)))
    return runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("act", "dilation"), [(nn.ReLU, 1), (nn.ReLU6, 2)])
def test_a_block_is_the_plain_one(act, dilation, dtype, monkeypatch, kernel_runs):
    layers = folded_layers(act, dilation, dtype)
    x = 3 * random_buffer(2, 20, 5, 6, dtype)
    with torch.inference_mode():
        expected = run_folded(x, layers)
        assert kernel_runs == []
        run_unchecked(monkeypatch)
        run = run_folded if dilation == 1 else run_folded_compiled
        assert_close(run(x, layers), expected.double(), dtype)
    assert len(kernel_runs) == 3


@pytest.mark.parametrize("act", [nn.SiLU, nn.LeakyReLU])
@torch.inference_mode()
def test_other_activations_are_left_to_the_plain_form(act, as_on_a_gpu, kernel_runs):
    layers = folded_layers(act, 1)
    x = random_buffer(1, 20, 5, 6, torch.float32)
    assert_close(run_folded(x, layers), run_plain(x, layers).double(), torch.float32)
    assert kernel_runs == []


def test_images_in_parts():
    weights = [LayerWeights(*layer.list_tensors()) for layer in folded_layers(nn.ReLU, 1)[:2]]
    buffer = random_buffer(3, 48, 3, 4, torch.float32)
    expected = run_folded_kernels(buffer.clone(), weights)
    assert run_folded_kernels(buffer, weights, images_at_once=2) is buffer
    assert_close(buffer, expected.double(), torch.float32)


@pytest.mark.parametrize("options", [{}, {"act_layer": "relu6"}, {"tap": "norm"}], ids=str)
def test_a_deployed_net(options, as_on_a_gpu, kernel_runs, monkeypatch):
    pooled = []
    run = folded_transition._run_transition
    monkeypatch.setattr(
        folded_transition, "_run_transition", lambda *args: pooled.append(1) or run(*args)
    )
    net = tiny("densenet121_features", **options).eval().to(DEVICE)
    deployed = deploy(net)
    x = torch.randn(1, 3, 43, 70, device=DEVICE)
    with torch.inference_mode():
        for ours, theirs in zip(deployed(x), net(x), strict=True):
            assert_close(ours, theirs.double(), torch.float32)
    assert len(kernel_runs) == sum(net.spec.block_config)
    assert len(pooled) == (0 if options.get("tap") == "norm" else 3), "a tap looks behind the norm"


def test_a_compiled_net(as_on_a_gpu):
    """Ahead of time as inductor compiles it, with its knowledge of shapes and strides."""
    deployed = deploy(tiny("densenet121_features", block_config=(2, 1)).eval().to(DEVICE))
    calls = []

    def read(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    compiled = torch.compile(deployed, backend=aot_autograd(fw_compiler=read), fullgraph=True)
    x = torch.randn(1, 3, 43, 40, device=DEVICE)
    with torch.inference_mode():
        for ours, theirs in zip(compiled(x), deployed(x), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
    assert sum("folded_block" in call for call in calls) == 2
    assert sum("folded_transition" in call for call in calls) == 1


def test_operators_keep_to_what_they_declare(as_on_a_gpu):
    ops = torch.ops.densenet_backbones
    x = random_buffer(2, 16, 3, 5, torch.float32)
    layer = random_layer(16, 48, 12, torch.float32)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        ops.folded_block.default, (x, list(layer), 1, 1, math.inf), test_utils=checks
    )
    norm = [part[:, None, None] for part in layer[:2]]
    conv = [layer.weight1.t()[:, :, None, None], layer.bias1]
    torch.library.opcheck(
        ops.folded_transition.default, (x, [*norm, *conv], 6.0, True), test_utils=checks
    )


# ------------------------------------------------------------------------ what is refused


def test_other_memory_formats_are_an_error():
    layer = random_layer(16, 48, 12, torch.float32)
    planes = torch.randn(2, 28, 5, 5, device=DEVICE)
    with pytest.raises(ValueError, match="x must be channels-last"):
        run_fused_layer(planes, layer)
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
        convolve_3x3(random_buffer(2, 48, 5, 5, torch.float32), layer.weight2, layer.bias2, buffer)
    with pytest.raises(ValueError, match="buffer must have at least 28 channels"):
        run_fused_layer(buffer[:, :20], layer)
    with pytest.raises(ValueError, match=r"maps are torch.float16 and weights torch.float32"):
        run_fused_layer(buffer.half(), layer)
    with pytest.raises(ValueError, match="halo of 40 fits into 64 pixels"):
        run_fused_layer(buffer, layer, dilation=40, pixels=64)


def test_usable_here():
    assert is_usable(torch.device(DEVICE), torch.bfloat16)
