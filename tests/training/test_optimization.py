"""Forms of optimizers that are fast on a CPU: the same steps, and checkpoints keep the form."""

import copy

import pytest
import timm.optim
import torch
from tiny_nets import tiny

from densenet_backbones.training import running
from densenet_backbones.training.optimization import Optimizer

FUSED = ("adamw", "momentum", "sgd")
MUONS = ("muon", "nmuon", "adamuon", "nadamuon")


def optimizer_of(net, name):
    return Optimizer(name, lr=0.01, base_batch=0, weight_decay=0.05).build(net, 8)


def take_steps(optimizer, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_form_takes_the_same_steps(name):
    net = tiny("densenet121_features")
    plain = copy.deepcopy(net)
    for model, fused in ((net, True), (plain, False)):
        optimizer = optimizer_of(model, name)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        take_steps(optimizer, 1)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MUONS)
def test_muon_on_a_cpu_is_timm_s_with_products_of_float32(name, monkeypatch):
    net = tiny("densenet121_features")
    theirs = copy.deepcopy(net)
    optimizer, usual = optimizer_of(net, name), optimizer_of(theirs, name)
    usual.__class__ = timm.optim.Muon
    iterate, seen = timm.optim.muon.zeropower_via_newtonschulz, []

    def watch(*args, dtype=None, **kwargs):
        seen.append(dtype)
        return iterate(*args, dtype=torch.float32, **kwargs)

    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", watch)
    take_steps(optimizer, 1)
    assert seen and set(seen) == {torch.float32}
    seen.clear()
    take_steps(usual, 1)
    assert seen and set(seen) == {None}  # timm's own says nothing, which is bfloat16
    for ours, timms in zip(net.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, timms)


@pytest.mark.parametrize("name", MUONS)
def test_a_failed_step_leaves_timm_as_it_was(name):
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    optimizer = optimizer_of(tiny("densenet121_features"), name)

    def fail():
        raise RuntimeError("of the closure")

    with pytest.raises(RuntimeError, match="of the closure"):
        optimizer.step(fail)
    assert timm.optim.muon.zeropower_via_newtonschulz is iterate


@pytest.mark.parametrize("name", MUONS)
def test_muon_goes_on_with_the_same_bits(name):
    net = tiny("densenet121_features")
    optimizer = optimizer_of(net, name)
    take_steps(optimizer, 1)
    resumed = copy.deepcopy(net)
    resumed_optimizer = optimizer_of(resumed, name)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, resumed_optimizer):
        take_steps(each, 2)
    for ours, theirs in zip(resumed.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("fused", [True, False])
def test_what_was_begun_goes_on_with_the_same_bits(name, fused):
    net = tiny("densenet121_features")
    optimizer = optimizer_of(net, name)
    for group in optimizer.param_groups:
        group["fused"] = fused
    take_steps(optimizer, 1)
    resumed = copy.deepcopy(net)
    resumed_optimizer = optimizer_of(resumed, name)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["fused"] for group in resumed_optimizer.param_groups] == [fused] * len(
        optimizer.param_groups
    )
    for each in (optimizer, resumed_optimizer):
        take_steps(each, 2)
    for ours, theirs in zip(resumed.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_others_and_other_devices_keep_torch_s_choice():
    for net, name in (
        (tiny("densenet121_features"), "rmsprop"),
        (tiny("densenet121_features").double(), "adamw"),
        (tiny("densenet121_features").to("meta"), "adamw"),
    ):
        groups = optimizer_of(net, name).param_groups
        assert not any(group.get("fused") for group in groups)


def test_torch_uses_no_more_threads_than_there_are_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(running, "count_cores", lambda: 2)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        running.limit_threads()
        assert torch.get_num_threads() == 3, "as the user wants it"
        monkeypatch.delenv("OMP_NUM_THREADS")
        running.limit_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(running, "count_cores", lambda: 16)
        running.limit_threads()
        assert torch.get_num_threads() == 2, "fewer stay"
    finally:
        torch.set_num_threads(before)
