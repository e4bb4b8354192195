import os
import subprocess
import sys
import warnings

import pytest
import torch
from fresh_processes import run_fresh
from hypothesis import given
from hypothesis import strategies as st
from locations import PROJECT
from tiny_nets import tiny

from densenet_backbones.benchmark.command import main
from densenet_backbones.benchmark.gpu_costs import compute_net_cost, list_block_shapes
from densenet_backbones.dense_block import backends
from densenet_backbones.dense_block.triton import availability, explain_unavailability, is_usable
from densenet_backbones.dense_block.triton.choice import choose_fastest
from densenet_backbones.dense_block.triton.tiles import find_best_tile
from densenet_backbones.deploy import deploy
from densenet_backbones.variants import VARIANTS

CPU = torch.device("cpu")


@pytest.mark.long
@pytest.mark.parametrize("cases", [("checks", "kernels", "norms"), ("training",)], ids=str)
def test_kernels_compute_what_they_say(cases):
    """All of those files: in a process of its own, whose Triton interprets."""
    pytest.importorskip("triton")
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    # The plain form is torch's, so that no C++ is compiled.
    options = {"OMP_NUM_THREADS": "1", "DENSENET_BACKBONES_NATIVE": "0", **interpret}
    files = [f"tests/support/interpreted/interpreted_{name}.py" for name in cases]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *files],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **options},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_without_triton_the_package_imports_and_says_why_there_are_no_kernels():
    out = run_fresh(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, densenet_backbones\n"
        "from densenet_backbones.dense_block import triton\n"
        "print(triton.explain_unavailability(torch.device('cuda')))"
    )
    assert out.strip() == "triton is not installed"


def test_why_there_are_no_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(availability, "_has_triton", lambda: True)
    assert "the maps are on cpu" in explain_unavailability(CPU)
    assert "not torch.float64" in explain_unavailability(CPU, torch.float64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 or newer, and cuda:0 has 7.5" in explain_unavailability(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert explain_unavailability(torch.device("cuda:0")) is None


def test_the_plain_form_is_announced_once(monkeypatch):
    monkeypatch.setattr(availability, "explain_unavailability", lambda *args: "a reason to test")
    with pytest.warns(UserWarning, match="run without their Triton kernels: a reason to test"):
        assert not is_usable(CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_usable(CPU)


def test_a_cpu_is_no_reason_for_a_message():
    deployed = deploy(tiny("densenet121_features").eval())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        deployed(torch.randn(1, 3, 64, 64))


# Maps that say they are on a GPU, and a net in evaluation and in training.
ON_A_GPU = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, "tests/support/nets")
import torch
from tiny_nets import tiny
from densenet_backbones.dense_block import backends
from densenet_backbones.deploy import deploy

backends.is_on_gpu = lambda x: True
x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
net = tiny("densenet121_features", memory="shared").to(memory_format=torch.channels_last)
with torch.inference_mode():
    deploy(net.eval())(x)
sum(m.sum() for m in net.train()(x)).backward()
print([name for name in sys.modules if name.startswith("densenet_backbones.dense_block.triton")])
"""


def test_by_default_a_gpu_runs_plain_operators_and_no_kernel_is_imported(monkeypatch):
    monkeypatch.delenv(backends.TRITON_SWITCH, raising=False)
    assert run_fresh(ON_A_GPU).strip() == "[]"


def test_the_switch_is_read_at_each_use(monkeypatch):
    monkeypatch.delenv(backends.TRITON_SWITCH, raising=False)
    assert not backends.is_triton_asked_for()
    monkeypatch.setenv(backends.TRITON_SWITCH, "1")
    assert backends.is_triton_asked_for()
    with backends.use_triton(False):
        assert not backends.is_triton_asked_for()
        with backends.use_triton():
            assert backends.is_triton_asked_for()
        assert not backends.is_triton_asked_for()
    monkeypatch.setenv(backends.TRITON_SWITCH, "0")
    assert not backends.is_triton_asked_for()


@pytest.mark.parametrize("switch", ["0", "1"])
def test_a_compiled_transition_is_one_operator_only_where_kernels_may_run(switch, monkeypatch):
    monkeypatch.setenv(backends.TRITON_SWITCH, switch)
    monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(backends, "_is_for_cpp", lambda x: False)
    monkeypatch.setattr(availability, "explain_unavailability", lambda *args: f"a reason {switch}")
    deployed = deploy(tiny("densenet121_features", block_config=(1, 1)).eval())
    calls = []

    def read(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(deployed, backend=read, fullgraph=True)(torch.randn(1, 3, 64, 64))
    assert sum("folded_transition" in call for call in calls) == int(switch)
    assert sum("folded_block" in call for call in calls) == 2


def test_a_gpu_without_kernels_takes_the_plain_form_and_says_so_once(monkeypatch):
    monkeypatch.setenv(backends.TRITON_SWITCH, "1")
    monkeypatch.setattr(
        availability, "explain_unavailability", lambda *args: "another reason to test"
    )
    deployed = deploy(tiny("densenet121_features").eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = deployed(x)
        monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
        with pytest.warns(UserWarning, match="another reason to test") as said:
            maps = deployed(x)
    assert len(said) == 1
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_training_on_a_gpu_without_kernels_is_plain_and_says_so_once(monkeypatch):
    monkeypatch.setenv(backends.TRITON_SWITCH, "1")
    monkeypatch.setattr(
        availability, "explain_unavailability", lambda *args: "a third reason to test"
    )
    monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
    net = tiny("densenet121_features").train().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    expected = [m.detach() for m in net(x)]
    net.set_memory("shared")
    with pytest.warns(UserWarning, match="a third reason to test") as said:
        maps = net(x)
        sum(m.sum() for m in maps).backward()
    assert len(said) == 1
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_where_nothing_can_be_measured_the_first_way_is_taken():
    assert choose_fastest("key", {"first": lambda: 1 / 0, "second": lambda: None}, CPU) == "first"


@given(
    rows=st.integers(1, 70),
    width=st.integers(1, 40),
    dilation=st.integers(1, 3),
    pixels=st.sampled_from([32, 64, 128, 256]),
)
def test_tiles_cover_the_maps_and_fit(rows, width, dilation, pixels):
    tile = find_best_tile(rows, width, dilation, pixels)
    if tile is None:
        assert min(width, 1 + 2 * dilation) * (1 + 2 * dilation) > pixels
        return
    side = 0 if tile.width == width else dilation
    assert (tile.height + 2 * dilation) * (tile.width + 2 * side) <= pixels
    assert tile.count == -(-rows // tile.height) * -(-width // tile.width)


@pytest.mark.parametrize(
    ("rows", "width", "recompute"), [(64 * 56, 56, 1.31), (64 * 14, 14, 1.15), (64 * 7, 7, 1.15)]
)
def test_recomputing_is_as_rare_as_the_kernel_says(rows, width, recompute):
    assert find_best_tile(rows, width, 1, 256).recompute <= recompute


def test_the_floor_on_paper():
    """Of densenet121 at 224 pixels in bfloat16: 47 MB unfused, 24 MB fused, 5.7 GFLOP an image."""
    cost = compute_net_cost(VARIANTS["densenet121"], 224, 224)
    assert cost.flops / 1e9 == pytest.approx(5.7, abs=0.1)
    assert cost.bytes_unfused / 1e6 == pytest.approx(47.5, abs=0.1)
    assert cost.bytes_fused / 1e6 == pytest.approx(24.2, abs=0.1)
    shapes = list_block_shapes(VARIANTS["densenet121"], 800, 1344)
    assert [s[:2] for s in shapes] == [(200, 336), (100, 168), (50, 84), (25, 42)]


@pytest.mark.parametrize("command", [["gpu"], ["inference", "--device", "cuda"]])
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it does without a GPU")
def test_the_measurement_needs_a_gpu(command, capsys):
    with pytest.raises(SystemExit):
        main(command)
    assert "needs a CUDA device" in capsys.readouterr().err
