"""Cases of `test_triton` for the check that kernels pass before a net may run in them."""

import math
import re
import warnings

import pytest
import torch
from interpreted_kernels import DEVICE
from tiny_nets import tiny
from torch.utils.checkpoint import checkpoint

from densenet_backbones.dense_block import backends
from densenet_backbones.dense_block.triton import block, self_check
from densenet_backbones.dense_block.triton_training import norms, unit
from densenet_backbones.deploy import deploy

TYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch):
    monkeypatch.setenv(backends.TRITON_SWITCH, "1")
    monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(self_check, "_PASSED", {})


@pytest.fixture
def checks(monkeypatch):
    """A list of what was checked."""
    names = []
    find = self_check._find_fault
    monkeypatch.setattr(
        self_check, "_find_fault", lambda compare, *kind: names.append(kind) or find(compare, *kind)
    )
    return names


def spoil(monkeypatch, module, name, change):
    """Have a function of kernels return, or write, something else."""
    inner = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **rest: change(inner, *args, **rest))


def eval_maps(net):
    x = torch.randn(2, 3, 43, 40, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    with torch.inference_mode():
        return deploy(net.eval())(x)


def training_step(net):
    """Gradients by name; dense blocks keep little, in which kernels may run."""
    net = net.train().to(memory_format=torch.channels_last)
    net.set_memory("shared")
    net.zero_grad()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    sum(m.square().mean() for m in net(x.to(memory_format=torch.channels_last))).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def small_net():
    torch.manual_seed(0)
    return tiny("densenet121_features", block_config=(2, 1)).to(DEVICE)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_kernels_pass_once_for_each_use(dtype, checks):
    x = torch.randn(2, 4, 3, 3, device=DEVICE).to(dtype)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert backends.has_triton(x)
            assert backends.has_triton_training(x, x)
    assert checks == 2 * [(x.device, dtype)]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_check_knows_no_mode_of_its_caller(checks):
    x = torch.randn(2, 4, 3, 3, device=DEVICE, requires_grad=True)

    def run(x):
        assert backends.has_triton_training(x)
        return x.square()

    with torch.autocast(DEVICE, torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(run, x, use_reentrant=False).sum().backward()
        with torch.inference_mode():
            assert backends.has_triton(x)
    assert len(checks) == 2


def double_output(inner, x, *args, **rest):
    inner(x, *args, **rest)
    args[-1].mul_(2)


def forget_a_number(inner, x, *args, **rest):
    inner(x, *args, **rest)
    args[-1][0, 0, 0, 0] = math.nan


@pytest.mark.parametrize("fault", [double_output, forget_a_number])
def test_a_deployed_net_runs_plain_where_a_kernel_computes_something_else(
    fault, monkeypatch, checks
):
    net = small_net()
    with backends.use_triton(False):
        expected = eval_maps(net)
    spoil(monkeypatch, block, "convolve_3x3", fault)
    off = "nan" if fault is forget_a_number else r"1\.0e\+00"
    message = (
        rf"without their Triton kernels of inference: on a small block on {DEVICE}\S* in "
        rf"torch.float32, a layer \(two kernels, dilation 1\) is off by {off} of its norm"
    )
    with pytest.warns(UserWarning, match=message) as said:
        maps = eval_maps(net)
    assert len(said) == len(checks) == 1
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def fail(*args, **rest):
    raise RuntimeError("a fault to test\nand what the compiler says besides")


def test_a_kernel_that_raises_is_not_used(monkeypatch, checks):
    net = small_net()
    with backends.use_triton(False):
        expected = eval_maps(net)
    monkeypatch.setattr(block, "convolve_3x3", fail)
    with pytest.warns(UserWarning, match="they raise RuntimeError: a fault to test$") as said:
        maps = eval_maps(net)
    assert len(said) == len(checks) == 1
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def wrong_bias_gradient(inner, *args, **rest):
    linear, of_weight, of_bias = inner(*args, **rest)
    return linear, of_weight, None if of_bias is None else 1.01 * of_bias


@pytest.mark.parametrize(
    ("module", "name", "change", "part"),
    [
        (
            norms,
            "compute_norm_gradients",
            wrong_bias_gradient,
            "the gradient of norm[12].bias is off by 1",
        ),
        (unit, "compute_weight_gradient", fail, "they raise RuntimeError"),
    ],
)
def test_training_runs_plain_where_a_gradient_is_wrong(
    module, name, change, part, monkeypatch, checks
):
    net = small_net()
    with backends.use_triton(False):
        expected = training_step(net)
    spoil(monkeypatch, module, name, change)
    with pytest.warns(UserWarning) as said:
        gradients = training_step(net)
    assert len(said) == len(checks) == 1
    assert re.search(f"kernels of training: .*{part}", str(said[0].message))
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


def test_within_a_cuda_graph_nothing_is_concluded(monkeypatch, checks):
    """A graph that is captured first has plain operators; the check is still to come."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kind = torch.device("cuda"), torch.float32
    compare = self_check.compare_inference
    assert not self_check.has_passed_check("inference", compare, *kind)
    assert checks == [] and self_check._PASSED == {}
