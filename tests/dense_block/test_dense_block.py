import warnings

import pytest
import torch
import torchvision
from tiny_nets import KINDS, randomise_norms, tiny
from torch import nn

from densenet_backbones.benchmark.measuring import measure_saved_bytes
from densenet_backbones.dense_block import run_plain

MODES = ("bottleneck", "layer", "block")


def buffers_of(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_plain_stacks_maps_in_the_order_they_are_made():
    x = torch.randn(2, 3, 4, 4)
    out = run_plain(x, [lambda x: x[:, :1] + 1, lambda x: x[:, -1:] * 2])
    assert torch.equal(out, torch.cat((x, x[:, :1] + 1, (x[:, :1] + 1) * 2), dim=1))
    assert run_plain(x, []) is x


@pytest.mark.parametrize("name", KINDS)
def test_each_mode_keeps_less_than_the_one_before(name):
    net = tiny(name, growth_rate=8, block_config=(6,) * len(tiny(name).spec.block_config)).train()
    x = torch.randn(2, 3, 64, 64)
    kept = {}
    for memory in ("none", *MODES):
        net.set_memory(memory)
        kept[memory], _ = measure_saved_bytes(net, lambda: sum(m.sum() for m in net(x)))
    if net.spec.bn_size is None:  # nothing but the whole layer to keep less of
        assert kept["bottleneck"] == kept["layer"]
    else:
        assert kept["bottleneck"] > kept["layer"]
    assert kept["none"] > kept["bottleneck"] and kept["layer"] > kept["block"]


@pytest.mark.parametrize("memory", MODES)
def test_nothing_is_computed_twice_without_need(memory):
    net = tiny("densenet121_features", memory=memory)
    calls = []
    net.denseblock1.denselayer1.conv1.forward = lambda x, conv=net.denseblock1.denselayer1.conv1: (
        calls.append(1) or conv._conv_forward(x, conv.weight, conv.bias)
    )
    x = torch.randn(2, 3, 64, 64)
    net.eval()(x)[-1].sum().backward()
    assert len(calls) == 1, "eval mode keeps everything"
    with torch.no_grad():
        net.train()(x)
    assert len(calls) == 2, "so does a forward pass without gradients"
    net(x)[-1].sum().backward()
    assert len(calls) == 4


@pytest.mark.parametrize("memory", MODES)
def test_statistics_are_those_of_one_pass_however_often_gradients_are_taken(memory):
    net = tiny("densenet121_features", memory=memory).double().train()
    plain = tiny("densenet121_features").double().train()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain(x)
    loss = sum(m.square().mean() for m in net(x))
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.autograd.grad(loss, net.conv0.weight)
    expected = buffers_of(plain)
    for key, buffer in net.named_buffers():
        assert torch.equal(buffer, expected[key]), key
    assert net.denseblock1.denselayer1.norm1.momentum == 0.1


def test_torchvisions_checkpointing_counts_twice():
    """What the modes here avoid; should torchvision mend it, this says so."""
    torch.manual_seed(0)
    net = torchvision.models.DenseNet(4, (2, 2), 8, memory_efficient=True).train()
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    counts = {m.num_batches_tracked.item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {1, 2}


@pytest.mark.parametrize("memory", MODES)
def test_a_failed_backward_pass_leaves_the_norms_as_they_were(memory):
    net = tiny("densenet121_features", memory=memory).train()
    loss = sum(m.square().mean() for m in net(torch.randn(2, 3, 64, 64)))
    before = buffers_of(net)
    conv = net.denseblock4.denselayer2.conv1
    broken, conv.forward = conv.forward, lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    conv.forward = broken
    for key, buffer in net.named_buffers():
        assert torch.equal(buffer, before[key])
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("memory", MODES)
def test_with_autocast_and_frozen_stages(memory):
    x = torch.randn(2, 3, 64, 64)
    results = []
    for mode in ("none", memory):
        net = tiny("densenet121_features", memory=mode).train()
        net.freeze(2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(m.float().square().mean() for m in net(x))
        loss.backward()
        results.append((loss.detach(), {k: p.grad for k, p in net.named_parameters()}, net))
    (loss, gradients, plain), (lean_loss, lean_gradients, lean) = results
    assert torch.equal(loss, lean_loss)
    for key, gradient in gradients.items():
        if gradient is None:
            assert lean_gradients[key] is None
        else:
            difference = (gradient - lean_gradients[key]).abs().max()
            assert difference <= 0.02 * gradient.abs().max() + 1e-6, key
    for (key, a), b in zip(plain.named_buffers(), lean.buffers(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_layers_with_hooks_run_plain_and_say_so(memory, kind):
    net = tiny("densenet121_features", memory=memory).train()
    seen = []
    layer = net.denseblock2.denselayer1
    handle = getattr(layer, f"register_{kind}_hook")(lambda *args: seen.append(1) and None)
    x = torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=f"memory='{memory}' is off .* layers carry hooks"):
        net(x)[-1].sum().backward()
    assert len(seen) == 1
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.denseblock2.register_forward_hook(lambda *args: seen.append(2) and None)
        net(x)[-1].sum().backward()
    assert seen == [1, 2], "hooks on blocks are seen once, and cost nothing"


def test_the_drop_is_the_same_when_computed_again():
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    gradients = []
    for memory in ("none", *MODES):
        net = tiny("densenet121_features", memory=memory, proj_drop_rate=0.5, drop_path_rate=0.5)
        randomise_norms(net).double().train()
        torch.manual_seed(3)
        net(x)[-1].square().sum().backward()
        gradients.append(net.conv0.weight.grad)
    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], rtol=1e-10)
