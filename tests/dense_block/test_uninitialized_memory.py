"""No execution reads memory that it has not written: filled with NaN, it computes the same bits."""

import copy
from contextlib import contextmanager

import pytest
import torch
from tiny_nets import threads_set, tiny

from densenet_backbones.dense_block import MEMORY_MODES
from densenet_backbones.deploy import deploy

NET = "densenet121_features"
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
CASES = [(dtype, False) for dtype in DTYPES] + [(torch.float32, True)]  # with autocast
SIZE = (33, 49)  # odd maps


@contextmanager
def filled():
    """Every `torch.empty` is full of NaN, or of a type's largest whole number."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # PyTorch's default
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_no_garbage(run):
    expected = run()
    with filled():
        assert torch.empty(1).isnan()
        found = run()
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype, autocast", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_training(memory, layout, dtype, autocast):
    net = tiny(NET, memory=memory).train()
    net = net.to(dtype, memory_format=LAYOUTS[layout])
    x = torch.randn(2, 3, *SIZE).to(dtype, memory_format=LAYOUTS[layout])

    def run():
        trained = copy.deepcopy(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            maps = trained(x)
        sum(y.double().square().mean() for y in maps).backward()
        gradients = [p.grad for p in trained.parameters()]
        return [*maps, *gradients, *trained.buffers()]

    with threads_set(1):
        assert_no_garbage(run)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_deployed(layout, dtype, threads):
    net = deploy(tiny(NET).eval()).to(dtype, memory_format=LAYOUTS[layout])
    x = torch.randn(2, 3, *SIZE).to(dtype, memory_format=LAYOUTS[layout])
    with threads_set(threads), torch.no_grad():
        assert_no_garbage(lambda: net(x))
