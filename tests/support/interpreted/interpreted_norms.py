"""Cases of `test_kernels` for what norms compute of vectors: see `interpreted_kernels`."""

import copy
from collections import Counter

import pytest
import torch
from interpreted_kernels import DEVICE, TOLERANCES, run_unchecked
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.dense_block import backends
from densenet_backbones.dense_block.norms import Moments, read_norm
from densenet_backbones.dense_block.triton_training import norms as kernels

# Fewer than a program has, some programs, and a last one that is not full.
CHANNELS = [1, 5, 16, 150]
COUNT = 60.0


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def ran(monkeypatch):
    """Kernels run wherever the vectors are, unchecked; what was started, in turn."""
    run_unchecked(monkeypatch)
    names = []
    for name in ("make_affine", "compute_norm_gradients"):
        inner = getattr(kernels, name)
        monkeypatch.setattr(
            kernels,
            name,
            lambda *args, inner=inner, name=name: names.append(name) or inner(*args),
        )
    return names


def random_norm(channels, dtype=torch.float32, cls=nn.BatchNorm2d, **options):
    """With parameters and statistics of its own, and an eps that is not lost in rounding."""
    norm = cls(channels, eps=0.125, **options).to(DEVICE, dtype)
    with torch.no_grad():
        for name, value in (*norm.named_parameters(), *norm.named_buffers()):
            if value.is_floating_point():
                value.uniform_(0.5, 2) if name.endswith("var") else value.normal_()
    return norm


def random_moments(channels):
    """Slices, as a block has them of the statistics of all its maps."""
    mean, var = torch.randn(2, channels + 3, device=DEVICE)
    return Moments(mean[:channels], var[:channels].square())


def parameters_of(norm):
    return norm.weight, norm.bias


def plainly(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(backends, "is_on_gpu", lambda x: False)
        return function()


def assert_same(found, expected):
    """By rounding alone: float32's, of three operations, or once that of a half precision."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            near = 2e-6 if theirs.dtype == torch.float32 else TOLERANCES.get(theirs.dtype, 0)
            torch.testing.assert_close(ours, theirs, rtol=near, atol=near)


# ------------------------------------------------------------------------ forth


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("affine", [True, False])
def test_the_map_and_the_running_statistics(channels, affine, dtype, ran, monkeypatch):
    norm = random_norm(channels, dtype, momentum=0.3, affine=affine)
    before, other = copy.deepcopy(norm), copy.deepcopy(norm)
    moments = random_moments(channels)
    given = copy.deepcopy(moments)

    def run(norm):
        with torch.no_grad():
            return vars(read_norm(norm).make_affine(parameters_of(norm), moments, COUNT)).values()

    expected = plainly(monkeypatch, lambda: run(other))
    assert ran == []
    assert_same(run(norm), expected)
    assert ran == ["make_affine"]
    assert_same(norm.buffers(), other.buffers())
    assert norm.num_batches_tracked == before.num_batches_tracked + 1
    assert not torch.equal(norm.running_var, before.running_var)
    assert torch.equal(moments.mean, given.mean) and torch.equal(moments.var, given.var)


def test_the_running_variance_is_unbiased(ran):
    norm, moments = random_norm(8, momentum=1.0), random_moments(8)
    norm.running_mean.fill_(1e6)  # of which nothing stays, rounding included
    read_norm(norm).make_affine(parameters_of(norm), moments, 4.0)
    assert ran == ["make_affine"]
    torch.testing.assert_close(norm.running_mean, moments.mean)
    torch.testing.assert_close(norm.running_var, moments.var * 4 / 3)


@pytest.mark.parametrize("kind", ["not asked", "eval", "frozen", "frozen batch norm", "untracked"])
def test_nothing_is_mixed_where_nothing_is_tracked(kind, ran, monkeypatch):
    count = None if kind == "not asked" else COUNT
    options = {"track_running_stats": False} if kind == "untracked" else {}
    cls = FrozenBatchNorm2d if kind == "frozen batch norm" else nn.BatchNorm2d
    norm = random_norm(20, cls=cls, **options).train(kind not in ("eval", "frozen"))
    norm.requires_grad_(kind != "frozen")
    form, before = read_norm(norm), copy.deepcopy(list(norm.buffers()))
    moments = random_moments(20) if form.of_batch else form.get_running()

    def run():
        with torch.no_grad():
            return vars(form.make_affine(parameters_of(norm), moments, count)).values()

    assert_same(run(), plainly(monkeypatch, run))
    assert ran == ["make_affine"]
    assert all(map(torch.equal, norm.buffers(), before))


def test_a_cumulative_average_is_mixed_by_plain_operators(ran, monkeypatch):
    norm = random_norm(20, momentum=None)
    other, asked = copy.deepcopy(norm), []
    monkeypatch.setattr(
        kernels,
        "make_affine",
        lambda *args, inner=kernels.make_affine: asked.append(args) or inner(*args),
    )
    for _ in range(2):
        moments = random_moments(20)
        with torch.no_grad():
            read_norm(norm).make_affine(parameters_of(norm), moments, COUNT)
            plainly(
                monkeypatch,
                lambda given=moments: read_norm(other).make_affine(
                    parameters_of(other), given, COUNT
                ),
            )
    assert ran == ["make_affine", "make_affine"] and all(len(args) == 3 for args in asked), (
        "mixed nothing"
    )
    assert all(map(torch.equal, norm.buffers(), other.buffers()))
    assert norm.num_batches_tracked == 2


def test_double_precision_is_left_to_plain_operators(ran):
    norm = random_norm(20, torch.float64)
    moments = Moments(*torch.rand(2, 20, device=DEVICE, dtype=torch.float64))
    found = read_norm(norm).make_affine(parameters_of(norm), moments, COUNT)
    assert found.scale.dtype == torch.float64 and ran == []
    norm, moments = random_norm(20), random_moments(20)
    norm.running_var = norm.running_var.double()  # of one vector alone: the map is still a kernel's
    read_norm(norm).make_affine(parameters_of(norm), moments, COUNT)
    assert ran == ["make_affine"] and norm.num_batches_tracked == 1


def test_autograd_sees_that_running_statistics_changed(ran):
    norm = random_norm(4)
    x = torch.randn(4, device=DEVICE, requires_grad=True)
    kept = x * norm.running_mean
    read_norm(norm).make_affine(parameters_of(norm), random_moments(4), COUNT)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


# ------------------------------------------------------------------------ back


def random_sums(rows, channels):
    """As kernels return them: two views of rows of both, or vectors for no rows."""
    sums = torch.randn(max(rows, 1), 2, channels, device=DEVICE)
    return tuple(sums[0].unbind()) if rows == 0 else (sums[:, 0], sums[:, 1])


def run_back(norm, sums, moments, asked):
    form = read_norm(norm)
    with torch.no_grad():
        affine = form.make_affine(parameters_of(norm), moments)
        return form.backward(sums, affine, moments, COUNT, asked)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", [0, 1, 63, 150])
def test_gradients_follow_from_sums(rows, channels, dtype, ran, monkeypatch):
    norm, moments = random_norm(channels, dtype), random_moments(channels)
    sums = random_sums(rows, channels)
    asked = parameters_of(norm)
    expected = plainly(monkeypatch, lambda: run_back(norm, sums, moments, asked))
    found = run_back(norm, sums, moments, asked)
    assert ran == ["make_affine", "compute_norm_gradients"]
    scale = max(rows, 1) ** 0.5  # sums of as many, of which errors are parts
    for ours, theirs in zip(found, expected, strict=True):
        assert_same([ours / scale], [theirs / scale])
    again = run_back(norm, sums, moments, asked)
    assert all(map(torch.equal, again, found)), "in one order"


@pytest.mark.parametrize("norm", ["eval", "frozen", "not affine", "weight", "bias"])
def test_only_what_is_asked_for(norm, ran, monkeypatch):
    kind, cls = norm, FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    norm = random_norm(20, cls=cls, **({"affine": False} if kind == "not affine" else {}))
    norm.train(kind != "eval")
    form, sums = read_norm(norm), random_sums(3, 20)
    moments = random_moments(20) if form.of_batch else form.get_running()
    asked = [
        norm.weight if kind in ("weight", "eval") else None,
        norm.bias if kind in ("bias", "eval") else None,
    ]
    expected = plainly(monkeypatch, lambda: run_back(norm, sums, moments, asked))
    found = run_back(norm, sums, moments, asked)
    assert_same(found, expected)
    assert [g is not None for g in found[1:]] == [p is not None for p in asked]
    assert found[0].any() == form.of_batch, "statistics that are constants take nothing"
    assert Counter(ran) == {"make_affine": 1, "compute_norm_gradients": 1}


@pytest.mark.parametrize("rows", [256, 257])
def test_very_many_rows_are_added_up_before(rows):
    sums = torch.randn(rows, 2, 5, device=DEVICE)
    found = kernels.reduce_rows(sums)
    assert [len(part) for part in found] == ([256] * 2 if rows == 256 else [1] * 2)
    total = torch.stack([part.sum(0) for part in found])
    torch.testing.assert_close(total, sums.sum(0), rtol=1e-5, atol=1e-5)
