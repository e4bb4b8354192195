"""Dense blocks that train in the C++ kernels as a whole, on each instruction set.

Both are float32, and each is held against the plain execution in float64.
"""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_nets import threads_set
from torch import nn
from training_blocks import assert_as_exact, block_of, maps, step, with_shifts

from densenet_backbones.dense_block.native import shared_block

MODES = ("shared", "shared_lean")


def rows(*shape):
    return maps(*shape, memory_format=torch.channels_last)


def single(block, last=True):
    return (
        copy.deepcopy(block)
        .float()
        .to(memory_format=torch.channels_last if last else torch.contiguous_format)
    )


def step_in_kernels(block, x, memory, ran=1):
    """One step of a block in float32; ``ran`` is how many blocks the kernels run as a whole."""
    with patch.object(shared_block, "run_forward", wraps=shared_block.run_forward) as forward:
        result = step(block, x, memory)
    assert forward.call_count == ran
    return result


def check(block, x, memory, last=True, ran=1):
    narrow = single(block, last)
    found = step_in_kernels(narrow, x.float(), memory, ran)
    usual = step(narrow, x.float(), "none")
    assert_as_exact(found, usual, lambda block: step(block, x, "none"), block)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_a_relu_whose_input_is_zero_but_for_its_rounding():
    """Either slope is right, and no more than that: the check still sees a gradient that is off."""
    block, x = block_of(3, 33, entry=140, bn_size=4), rows(3, 140, 7, 12)
    with_biases(block)

    def run(block):
        return step(block, x, "none")

    out, _, buffers = usual = step(single(block), x.float(), "none")
    gradients = {k: g.float() for k, g in run(with_shifts(block, -4e-7))[1].items()}
    assert (gradients["x"] - run(block)[1]["x"]).abs().max() > 1e-3
    assert_as_exact((out, gradients, buffers), usual, run, block)
    gradients["denselayer1.conv1.weight"] *= 1.01
    with pytest.raises(AssertionError, match=r"denselayer1.conv1.weight"):
        assert_as_exact((out, gradients, buffers), usual, run, block)


@pytest.mark.usefixtures("instructions")
@example(3, 33, 140, 4, True, 3, 7, 12, False, "shared", 1)
@settings(max_examples=40)
@given(
    layers=st.integers(1, 3),
    growth=st.integers(1, 50),
    entry=st.integers(2, 150),
    bn_size=st.none() | st.integers(1, 4),
    biased=st.booleans(),
    images=st.integers(1, 3),
    height=st.integers(3, 10) | st.integers(11, 18),  # of Winograd's small tiles and large ones
    width=st.integers(3, 10) | st.integers(11, 18),
    last=st.booleans(),
    memory=st.sampled_from(MODES),
    threads=st.integers(1, 3),
)
def test_any_block_equals_the_plain_one(
    layers, growth, entry, bn_size, biased, images, height, width, last, memory, threads
):
    block = block_of(layers, growth, entry=entry, bn_size=bn_size)
    if biased:
        with_biases(block)
    with threads_set(threads):
        check(block, rows(images, entry, height, width), memory, last)


def with_biases(block, name=None):
    """Gives the last convolution of every layer, or the one of a name, a bias."""
    for layer in block.values():
        conv = getattr(layer, name or ("conv2" if layer.bottleneck else "conv1"))
        conv.bias = nn.Parameter(torch.randn(conv.out_channels, dtype=torch.float64))
    return block


def without_affine(block):
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight = norm.bias = None


def average_of_batches(block):
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None
        norm.num_batches_tracked.fill_(3)


def untracked(block):
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def partly_in_evaluation(block):
    block.denselayer2.norm1.eval()
    block.denselayer1.norm2.eval()


def all_in_evaluation(block):
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()


def partly_constant(block):
    block.denselayer1.conv1.weight.requires_grad_(False)
    block.denselayer2.conv2.weight.requires_grad_(False)
    block.denselayer2.norm1.weight.requires_grad_(False)
    block.denselayer3.norm2.bias.requires_grad_(False)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize(
    "change",
    [
        without_affine,
        average_of_batches,
        untracked,
        partly_in_evaluation,
        partly_constant,
        all_in_evaluation,
    ],
)
def test_norms_and_parameters_of_all_kinds(change, memory):
    block = block_of()
    change(block)
    check(block, rows(3, 6, 7, 5), memory)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("memory", MODES)
def test_frozen_norms(memory):
    check(block_of(norm="frozen"), rows(3, 6, 7, 5), memory)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("bn_size", [None, 2])
def test_dropped_values(bn_size, memory):
    """The same values are dropped as in the plain execution: one seed means one result."""
    block = single(with_biases(block_of(bn_size=bn_size, growth=9, proj_drop_rate=0.3)))
    x = rows(3, 6, 7, 5).float()
    found, expected = (step_in_kernels(block, x, *mode) for mode in ((memory,), ("none", 0)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[0][:, 6:] == 0).float().mean() > 0.2


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("memory", MODES)
def test_what_they_do_not_know_runs_unit_by_unit(memory):
    block, x = block_of(), rows(3, 6, 7, 5)
    with_biases(block, "conv1")
    check(block, x, memory, ran=0)
    dilated = block_of(1)
    dilated.denselayer1.conv2.dilation = dilated.denselayer1.conv2.padding = (2, 2)
    check(dilated, x, memory, ran=0)
    dropped = block_of(drop_path_rate=0.3).float()
    both = [step_in_kernels(dropped, x.float(), mode, ran=0) for mode in (memory, "none")]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        step_in_kernels(block_of().float(), x.float(), memory, ran=0)
    step_in_kernels(block_of().float(), x.float().contiguous(), memory, ran=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_threads_give_the_same_bits(threads):
    block, x = block_of(growth=20).float(), rows(2, 6, 9, 8).float()
    with threads_set(threads):
        first, *others = (step_in_kernels(block, x, mode) for mode in (*MODES, *MODES))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
def test_a_step_may_not_use_statistics_that_were_changed_since():
    block = single(block_of())
    block.memory = "shared"
    block.denselayer2.norm1.eval()  # goes by its running statistics, which the graph keeps
    norm = block.denselayer1.norm1
    before = norm.running_mean._version, norm.num_batches_tracked._version
    out = block(rows(2, 6, 5, 4).float())
    assert norm.running_mean._version > before[0] and norm.num_batches_tracked._version > before[1]
    block.denselayer2.norm1.running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("memory", MODES)
def test_what_is_not_a_number_stays_so(memory):
    x = rows(2, 6, 5, 4).float()
    x[0, 0, 0, 0] = torch.nan
    found, expected = (step(single(block_of()), x, mode) for mode in (memory, "none"))
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        for key, value in theirs.items():
            assert ours[key].isnan()[value.isnan()].all(), key
