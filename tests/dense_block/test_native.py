"""The C++ kernels compute what PyTorch does, on every instruction set that this machine can run."""

import gc
import math
import os
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from native_blocks import block_by_definition, run_native_block
from tiny_nets import threads_set, tiny

from densenet_backbones.dense_block import backends
from densenet_backbones.dense_block.native import (
    availability,
    block,
    library,
    packing,
)
from densenet_backbones.dense_block.native.block import run_convolution, run_transition
from densenet_backbones.deploy import deploy

# Of float32 sums of up to a thousand products, as a share of the largest value.
BOUND = 3e-6

pytestmark = pytest.mark.usefixtures("nothing_kept")


def random_layer(channels, bottleneck, growth):
    scale, shift = torch.randn(channels), torch.randn(channels) * 0.5
    read = bottleneck or channels
    squeeze = (torch.randn(channels, bottleneck) / channels**0.5, torch.randn(bottleneck))
    conv = torch.randn(growth, read, 3, 3) / (9 * read) ** 0.5, torch.randn(growth)
    return [scale, shift, *(squeeze if bottleneck else ()), *conv]


def difference(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.usefixtures("instructions")
@settings(max_examples=40)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    channels=st.integers(1, 300),
    bottleneck=st.sampled_from([0, 0, 1, 7, 48, 64, 100, 128, 150, 192]),
    growth=st.integers(1, 70),
    count=st.integers(1, 3),
    ceiling=st.sampled_from([math.inf, 1.0]),
    threads=st.integers(1, 3),
)
def test_a_block_is_what_its_definition_says(
    images, height, width, channels, bottleneck, growth, count, ceiling, threads
):
    torch.manual_seed(0)
    layers = [random_layer(channels + i * growth, bottleneck, growth) for i in range(count)]
    x = torch.randn(images, channels, height, width)
    with threads_set(threads):
        found = run_native_block(x, layers, ceiling)
    assert difference(found, block_by_definition(x, layers, ceiling)) <= BOUND


@pytest.mark.usefixtures("instructions")
def test_bottleneck_maps_that_do_not_fit_are_made_in_strips():
    layers = [random_layer(5 + 4 * i, 192, 4) for i in range(3)]
    x = torch.randn(3, 5, 37, 150)
    assert library.load_library().narrow_values(3, 37, 150, 192, 4, 4, 1) < 3 * 37 * 150 * 192
    assert (
        difference(run_native_block(x, layers), block_by_definition(x, layers, math.inf)) <= BOUND
    )


@pytest.mark.usefixtures("instructions")
@settings(max_examples=20)
@given(
    images=st.integers(1, 3),
    height=st.integers(2, 30),
    width=st.integers(2, 30),
    channels=st.integers(1, 300),
    new=st.integers(1, 150),
    ceiling=st.sampled_from([math.inf, 1.0]),
    pool=st.booleans(),
)
def test_a_transition_is_what_its_definition_says(
    images, height, width, channels, new, ceiling, pool
):
    torch.manual_seed(0)
    scale, shift = torch.randn(channels, 1, 1), torch.randn(channels, 1, 1)
    weight, bias = torch.randn(new, channels, 1, 1) / channels**0.5, torch.randn(new)
    x = torch.randn(images, channels, height, width)
    found = run_transition(x, [scale, shift, weight, bias], ceiling, pool=pool)
    normed = (x.double() * scale + shift).clamp(0.0, ceiling)
    expected = F.conv2d(normed, weight.double(), bias.double())
    expected = F.avg_pool2d(expected, 2) if pool else expected
    assert difference(found, expected) <= BOUND
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("instructions")
@settings(max_examples=20)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.integers(1, 300),
    new=st.integers(1, 150),
    ceiling=st.sampled_from([None, math.inf, 1.0]),
    threads=st.sampled_from([1, 2]),
)
def test_a_convolution_is_what_its_definition_says(
    images, height, width, channels, new, ceiling, threads
):
    torch.manual_seed(0)
    weight, bias = torch.randn(new, channels, 3, 3) / (9 * channels) ** 0.5, torch.randn(new)
    x = torch.randn(images, channels, height, width)
    with threads_set(threads):
        found = run_convolution(x, weight, bias, ceiling)
    linear = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    expected = linear if ceiling is None else linear.clamp(0.0, ceiling)
    assert float((found - expected).abs().max() / linear.abs().max()) <= BOUND
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("instructions")
def test_what_is_not_a_number_stays_so_and_reaches_its_neighbours_alone():
    layers = [random_layer(20, 16, 8)]
    x = torch.randn(1, 20, 12, 12)
    x[0, 3, 5, 5] = math.nan
    wrong = run_native_block(x, layers)[0, 20:].isnan().any(0)
    assert wrong[4:7, 4:7].all()
    assert not wrong[:4].any() and not wrong[8:].any(), "tiles are of at most 4x4 cells"


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("side", "bound"), [(10, 1.5), (11, 3.0)])
def test_rounds_as_a_plain_convolution_or_with_large_tiles_twice_as_much(side, bound):
    torch.manual_seed(0)
    weight, x = torch.randn(32, 128, 3, 3) / 24, torch.randn(4, 128, side, side).relu()
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    error = (run_convolution(x, weight, torch.zeros(32), None) - expected).norm()
    assert error <= bound * (F.conv2d(x, weight, padding=1) - expected).norm()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("side", [10, 11], ids=["small tiles", "large tiles"])
def test_weights_are_packed_whatever_the_default_device(side):
    weight, bias, x = torch.randn(8, 20, 3, 3), torch.randn(8), torch.randn(1, 20, side, side)
    with torch.device("meta"):
        found = run_convolution(x, weight, bias, None)
    assert (
        difference(found, F.conv2d(x.double(), weight.double(), bias.double(), padding=1)) <= BOUND
    )


@pytest.mark.usefixtures("compiled")
def test_changed_weights_are_packed_anew_and_go_with_their_model():
    layers = [random_layer(20, 16, 8)]
    x = torch.randn(1, 20, 6, 6)
    first = run_native_block(x, layers)
    assert torch.equal(run_native_block(x, layers), first)
    layers[0][2].mul_(2)
    assert (
        difference(run_native_block(x, layers), block_by_definition(x, layers, math.inf)) <= BOUND
    )
    assert len(block._PACKED) == 1
    layers.clear()
    gc.collect()
    assert len(block._PACKED) == 0


def test_weights_of_a_model_made_and_run_in_inference_mode():
    with torch.inference_mode():
        net = tiny("densenet121_features").eval()
        deployed = deploy(net)
        x = torch.randn(1, 3, 64, 64)
        for ours, theirs in zip(deployed(x), net(x), strict=True):
            assert difference(ours, theirs) <= 1e-5


@pytest.mark.usefixtures("compiled")
def test_a_deployed_net_runs_in_the_kernels_and_so_does_a_compiled_one(monkeypatch):
    ran = []
    for name in ("fill_block", "run_transition"):
        inner = getattr(block, name)
        monkeypatch.setattr(
            f"densenet_backbones.dense_block.native.{name}",
            lambda *args, inner=inner, name=name, **options: (
                ran.append(name) or inner(*args, **options)
            ),
        )
    deployed = deploy(tiny("densenet121_features").eval())
    x = torch.randn(1, 3, 64, 64)
    once = [*["fill_block", "run_transition"] * 3, "fill_block"]
    torch.compiler.reset()
    with torch.inference_mode():
        first = deployed(x)
        assert ran == once
        compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True)
        for a, b in zip(compiled(x), first, strict=True):
            assert difference(a, b) <= 1e-6
    assert ran == once * 2
    assert len(block._PACKED) == 7, "one and the same weights"


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"act_layer": "silu"}])
def test_what_they_do_not_know_runs_without_them(options):
    net = tiny("densenet121_features", **options).eval()
    deployed = deploy(net)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(deployed(x), net(x), strict=True):
            assert difference(ours, theirs) <= 1e-5


# ------------------------------------------------------------------------- compiling


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/c++", "/nowhere/c++"),
        ("false", "false failed: no message"),
        (f"{sys.executable} -c 1/0", "failed: Traceback"),
    ],
)
def test_without_a_compiler_the_plain_form_runs_and_says_so_once(compiler, reason, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    net = tiny("densenet121_features").eval()
    deployed = deploy(net)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        with pytest.warns(UserWarning, match=f"without their C\\+\\+ kernels: .*{reason}") as said:
            first = deployed(x)
        assert len(said) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            deployed(x)
        for ours, theirs in zip(first, net(x), strict=True):
            assert difference(ours, theirs) <= 1e-5


def test_no_compiler_at_all(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no C++ compiler was found" in availability.explain_unavailability()


def test_a_cache_that_cannot_be_written_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "densenet_backbones").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if library.shutil.which("c++") is None:
        pytest.skip("there is no compiler here")
    assert "densenet_backbones" in availability.explain_unavailability()


def test_switched_off_without_a_word(monkeypatch):
    monkeypatch.setenv(availability.SWITCH, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not backends.has_cpp(torch.zeros(1))


@pytest.mark.usefixtures("instructions")
def test_compiled_once_for_a_machine(monkeypatch):
    commands = []
    run = subprocess.run
    monkeypatch.setattr(
        library.subprocess, "run", lambda *a, **kw: commands.append(a[0]) or run(*a, **kw)
    )
    library.load_library.cache_clear()
    library.load_library()
    assert len(commands) == 1 and "-E" in commands[0]


@pytest.mark.usefixtures("instructions")
def test_the_source_compiles_without_warnings(tmp_path):
    compiler = os.environ["CXX"].split()
    flags = [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fopenmp",
        "-march=native",
        "-std=c++17",
        "-fPIC",
        "-shared",
    ]
    command = [*compiler, *flags, *map(str, library._SOURCES), "-o", str(tmp_path / "all.so")]
    subprocess.run(command, check=True)


@pytest.mark.usefixtures("instructions")
def test_packed_columns_are_few():
    lanes = library.load_library().lanes()
    for columns in (1, lanes, 2 * lanes + 1, 5 * lanes, 8 * lanes):
        packed = packing.pack(torch.ones(3, columns), torch.ones(columns))
        assert packed.columns - columns < lanes or packed.columns % (2 * lanes) == 0
        assert float(packed.weight.sum()) == 3 * columns
        assert packed.bias.sum() == columns


def test_a_whole_net_differs_less_than_rounding_does():
    torch.manual_seed(0)
    net = timm.create_model("densenet121_features").eval()
    deployed = deploy(net)
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        for ours, theirs in zip(deployed(x), net.double()(x.double()), strict=True):
            assert difference(ours, theirs) <= 1e-5
