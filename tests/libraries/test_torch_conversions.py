"""Networks that are copied, pickled, averaged, spread over processes, or given other norms."""

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import timm.utils
import torch
import torch.distributed as dist
from forked_processes import start_beside
from long_cases import by_turns
from timm.utils.model import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from tiny_nets import KINDS, tiny
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.dense_block import Memory

TAPS = ("raw", "norm", "compressed", "pooled")
MEMORY = get_args(Memory)
CLASSIFIER = {"features_only": False, "num_classes": 3}


def image(seed: int = 1, **kwargs) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


def maps_of(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def loss_of(output) -> Tensor:
    return sum(m.square().mean() for m in maps_of(output))


def after_a_step(net: nn.Module) -> nn.Module:
    """The net in training mode after a step of SGD, with gradients left in place."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    loss_of(net.train()(image())).backward()
    optimizer.step()
    return net


# ------------------------------------------------------------------------------ copies


FORMS = {"features": {"tap": "norm"}, "classifier": CLASSIFIER}
COPIES = {"copy": copy.deepcopy, "pickle": lambda net: pickle.loads(pickle.dumps(net))}
WAYS = {f"{how} of {form}": (FORMS[form], COPIES[how]) for form in FORMS for how in COPIES}


@pytest.mark.parametrize(("name", "memory", "way"), by_turns(KINDS, MEMORY, WAYS))
def test_copies_are_equal_and_independent(name, memory, way):
    options, make_copy = WAYS[way]
    net = tiny(name, memory=memory, **options)
    net.freeze(2)
    twin = make_copy(after_a_step(net))
    assert twin.memory == memory and twin.frozen_stages == 2 and twin.spec == net.spec
    assert [m.training for m in twin.modules()] == [m.training for m in net.modules()]
    for (key, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad, key
        assert a.data_ptr() != b.data_ptr() and torch.equal(a, b)
    with torch.no_grad():
        for a, b in zip(*(maps_of(n.eval()(image(2))) for n in (net, twin)), strict=True):
            assert torch.equal(a, b)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    changed = {
        key for key, v in after_a_step(twin).state_dict().items() if not torch.equal(v, before[key])
    }
    assert "denseblock2.denselayer1.norm1.running_mean" in changed
    assert not any(key.startswith(("conv0", "denseblock1", "transition1")) for key in changed)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{"memory": "block"}, CLASSIFIER], ids=["features", "head"])
def test_timms_moving_average_follows(name, options):
    net = tiny(name, **options)
    average = timm.utils.ModelEmaV3(net, decay=0.75)
    start = {key: value.clone() for key, value in net.named_parameters()}
    average.update(after_a_step(net))
    for key, value in average.module.named_parameters():
        expected = 0.75 * start[key] + 0.25 * net.get_parameter(key)
        assert (value - expected).abs().max() <= 1e-6
    assert len(maps_of(average.module(image()))) == len(maps_of(net(image())))
    assert not average.module.training


# ------------------------------------------------------------------------------ processes

# memory mode, frozen stages
RUNS = (("none", 0), ("layer", 0), ("layer", 2), ("shared", 0), ("shared_lean", 2))
WORLD = 2


def _net(memory: str, frozen: int) -> nn.Module:
    net = tiny("densenet121_features", memory=memory).double().train()
    net.freeze(frozen)
    return net


def _worker(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    for i, (memory, frozen) in enumerate(RUNS):
        net = _net(memory, frozen)
        # find_unused_parameters and static_graph keep their defaults, False
        parallel = DistributedDataParallel(net)
        loss_of(parallel(image(seed=rank, dtype=torch.float64))).backward()
        gradients = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
        torch.save((gradients, dict(net.named_buffers())), folder / f"{i}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="gloo and file rendezvous as on Linux")
def test_two_processes_average_gradients_and_keep_their_own_statistics(tmp_path):
    """One of them is this one."""
    other = start_beside(_worker, tmp_path)
    _worker(1, tmp_path)
    assert other.join()
    for i, (_, frozen) in enumerate(RUNS):
        alone = []
        for rank in range(WORLD):
            net = _net("none", frozen)
            loss_of(net(image(seed=rank, dtype=torch.float64))).backward()
            alone.append(net)
        trained = {key for key, p in alone[0].named_parameters() if p.requires_grad}
        assert any(key.startswith("conv0") for key in trained) == (frozen == 0)
        for rank in range(WORLD):
            gradients, buffers = torch.load(tmp_path / f"{i}-{rank}.pt", weights_only=True)
            assert gradients.keys() == trained
            for key, found in gradients.items():
                mean = sum(net.get_parameter(key).grad for net in alone) / WORLD
                assert (found - mean).abs().max() <= 1e-12 * mean.abs().max()
            for key, found in buffers.items():
                buffer = alone[rank].get_buffer(key)
                assert (found - buffer).abs().max() <= 1e-12 * buffer.abs().max(), key
            assert buffers["norm5.num_batches_tracked"] == 1
            assert buffers["norm0.num_batches_tracked"] == (frozen == 0)
        one, two = (net.norm5.weight.grad for net in alone)
        assert (one - two).abs().max() > 0.01 * one.abs().max(), "they see different images"


# ------------------------------------------------------------------------------ other norms


def frozen_as_in_detr(net: nn.Module) -> nn.Module:
    """Swaps each `nn.BatchNorm2d` as DETR's backbone does (facebookresearch/detr, backbone.py)."""
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(net, name, frozen.to(child.weight.dtype))
        else:
            frozen_as_in_detr(child)
    return net


# What each converter does, and how exact it is. torchvision's frozen norm multiplies and adds by
# itself, so it rounds otherwise; SyncBatchNorm calls batch norm's own kernel in eval mode. In
# training it needs a GPU, so that is not tested here.
CONVERTERS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "sync": (nn.SyncBatchNorm.convert_sync_batchnorm, True),
    "detr": (frozen_as_in_detr, False),
    "timm": (freeze_batch_norm_2d, False),
    "there and back": (
        lambda net: unfreeze_batch_norm_2d(freeze_batch_norm_2d(net)),
        True,
    ),
}


def relus_run(net: nn.Module) -> int:
    """How many ReLUs a forward pass calls."""
    calls = []
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *args: calls.append(1))
    net(image())
    return len(calls)


@pytest.mark.parametrize(("name", "tap", "converter"), by_turns(KINDS, TAPS, CONVERTERS))
def test_converted_norms_change_nothing_in_eval(name, tap, converter):
    convert, exact = CONVERTERS[converter]
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        net = tiny(name, tap=tap).to(dtype).eval()
        other = convert(copy.deepcopy(net)).eval()
        before, after = ([type(m) for m in n.modules()] for n in (net, other))
        assert sum(a is not b for a, b in zip(before, after, strict=True)) == (
            0 if converter == "there and back" else before.count(nn.BatchNorm2d)
        )
        with torch.no_grad():
            pairs = zip(net(image(dtype=dtype)), other(image(dtype=dtype)), strict=True)
            for expected, found in pairs:
                error = (found - expected).abs().max() / expected.abs().max()
                assert error == 0 if exact else error <= tolerance
    assert relus_run(other.float()) == before.count(nn.ReLU) == after.count(nn.ReLU)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_swap_on_norms_that_hold_the_activation_would_be_seen(name):
    net = tiny(name).eval()
    bare = copy.deepcopy(net)
    for module in bare.modules():
        for key, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, key, nn.Identity())
    with torch.no_grad():
        error = (bare(image())[-1] - net(image())[-1]).abs().max()
    assert error > 0.1 * net(image())[-1].abs().max()


@pytest.mark.parametrize("memory", MEMORY)
def test_converted_nets_train_in_every_memory_mode(memory):
    found = {}
    for mode in ("none", memory):
        net = frozen_as_in_detr(tiny("densenet121_features", memory=mode)).double().train()
        loss_of(net(image(dtype=torch.float64))).backward()
        assert not any("norm" in key for key, _ in net.named_parameters())
        found[mode] = {key: p.grad for key, p in net.named_parameters()}
    torch.testing.assert_close(found[memory], found["none"], rtol=1e-12, atol=0)
