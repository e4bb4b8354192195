"""Pruned nets against the whole ones with zeros in the place of what was taken out."""

import copy
import json
import re
import warnings
from contextlib import nullcontext
from typing import get_args

import onnxruntime
import pytest
import timm
import torch
from tiny_nets import KINDS, randomise_norms, tiny

from densenet_backbones.analysis.feature_reuse import measure_reuse
from densenet_backbones.analysis.reuse_findings import check_findings, list_sentences
from densenet_backbones.anatomy.heatmap_picture import plot_heatmap
from densenet_backbones.anatomy.pruning import choose_connections, cut_weights, mask_weights
from densenet_backbones.condensenet import convert
from densenet_backbones.dense_block import MEMORY_MODES
from densenet_backbones.dense_block.modes import SharedMemory
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.deploy import FoldedBlock, deploy
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.layers import SelectiveLayer
from densenet_backbones.torchvision_models import DETECTORS, MODELS

# One for each builder: those of single backbones are the same function.
BUILDERS = [name for name in MODELS if not re.search("densenet(1|201|74)|_v2", name)]
SMALL = {"growth_rate": 4, "block_config": (3, 4, 3), "num_init_features": 6}
SHARES = [{"keep": 0.6}, {"layers": 3}, {"keep": 0.7, "layers": 3}]


def build(**fields):
    torch.manual_seed(0)
    name = "densenet40_k12_features"
    net = timm.create_model(name, features_only=False, num_classes=5, **{**SMALL, **fields})
    return randomise_norms(net).double()


def prune(net, pruning, **fields):
    pruned = build(connections=pruning.connections, **fields)
    pruned.load_state_dict(cut_weights(net, pruning.connections))
    return pruned


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("bn_size", [0, 2])
def test_a_pruned_net_equals_the_masked_one(shares, bn_size):
    net = build(bn_size=bn_size)
    pruning = choose_connections(net, **shares)
    masked, pruned = mask_weights(net, pruning.connections), prune(net, pruning, bn_size=bn_size)
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    for train in (False, True):
        expected, found = masked.train(train)(x), pruned.train(train)(x)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(net.eval()(x), masked.eval()(x))
    assert count(pruned) < count(net)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("condense")])
def test_memory_modes_and_the_deployed_form_are_those_of_the_masked_net(name):
    whole = tiny(name, layers=3).double()
    pruning = choose_connections(whole, keep=0.7, layers=1)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    masked = mask_weights(whole, pruning.connections).eval()
    pruned = tiny(name, layers=3, connections=pruning.connections).double().eval()
    pruned.load_state_dict(cut_weights(whole, pruning.connections))
    expected = masked(x)
    for net in (pruned, deploy(pruned)):
        assert all(map(is_close, net(x), expected))
    state = copy.deepcopy(pruned.state_dict())
    sum(m.square().mean() for m in masked.train()(x)).backward()
    after_a_pass = cut_weights(masked, pruning.connections)
    for parameter in masked.parameters():
        parameter.data = parameter.grad
    gradients = cut_weights(masked, pruning.connections)
    for memory in MEMORY_MODES:
        pruned.load_state_dict(state)
        pruned.zero_grad()
        pruned.train().set_memory(memory)
        falls_back = memory in get_args(SharedMemory)
        with pytest.warns(match="Layer") if falls_back else nullcontext():
            sum(m.square().mean() for m in pruned(x)).backward()
        assert all(is_close(v, after_a_pass[n]) for n, v in pruned.state_dict().items())
        assert all(is_close(p.grad, gradients[n]) for n, p in pruned.named_parameters())


def is_close(found, expected):
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_pruned_net_is_scripted_exported_and_deployed(tmp_path):
    net = build(bn_size=2)
    pruning = choose_connections(net, keep=0.6, layers=2)
    pruned = prune(net, pruning, bn_size=2).eval()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    expected = pruned(x)
    assert torch.equal(torch.jit.script(pruned)(x), expected)
    assert torch.equal(torch.export.export(pruned, (x,)).module()(x), expected)
    deployed = deploy(pruned)
    assert torch.allclose(deployed(x), expected, rtol=1e-10)
    assert torch.allclose(torch.export.export(deployed, (x,)).module()(x), expected, rtol=1e-10)
    file, x, pruned = tmp_path / "pruned.onnx", x.float(), pruned.float()
    exported = deploy(pruned, for_export=True)
    assert count(exported) < count(deployed)
    torch.onnx.export(exported, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), pruned(x), rtol=1e-4, atol=1e-5)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_taps_inside_of_a_block_are_those_of_the_masked_net():
    name, layers = "densenet40_k12_features", ("denseblock1.denselayer1", "denseblock2.denselayer3")
    whole = timm.create_model(name, features_only=True, **SMALL).eval()
    pruning = choose_connections(whole, keep=0.6, layers=2)
    made = {**SMALL, "layer_taps": layers}
    masked = timm.create_model(name, features_only=True, **made).eval()
    masked.load_state_dict(mask_weights(whole, pruning.connections).state_dict())
    pruned = timm.create_model(name, **made, features_only=True, connections=pruning.connections)
    pruned.load_state_dict(cut_weights(whole, pruning.connections))
    x = torch.rand(1, 3, 16, 16)
    for net in (pruned.eval(), deploy(pruned)):
        for found, expected in zip(net(x), masked(x), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bn_size", [0, 2])
@pytest.mark.parametrize("act", ["relu", "relu6", "silu"])
def test_the_deployed_form_runs_what_is_left_as_a_whole_block(bn_size, act):
    """In kernels, compiled, and layer by layer for a hook; absent layers are not computed."""
    net = build(bn_size=bn_size, act_layer=act)
    pruning = choose_connections(net, keep=0.6, layers=3)
    masked = mask_weights(net, pruning.connections).float().eval()
    pruned = prune(net, pruning, bn_size=bn_size, act_layer=act).float().eval()
    x = torch.rand(2, 3, 24, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deployed = deploy(pruned)
        found = [deployed(x)]
    blocks = [block for block in deployed.modules() if isinstance(block, FoldedBlock)]
    assert sum(map(len, blocks)) == sum(net.spec.block_config) - len(pruning.absent)
    with torch.inference_mode():
        found += [deployed(x), torch.compile(deployed, backend="eager")(x)]
        calls = []
        first = next(iter(blocks[0].values()))
        first.register_forward_hook(lambda *_: calls.append(1))
        with pytest.warns(UserWarning, match="runs layer by layer"):
            found.append(deployed(x))
    assert calls == [1]
    for maps in found:
        assert torch.allclose(maps, masked(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_does_not_say_what_it_reads_is_not_folded():
    class Others(SelectiveLayer):
        runs_in_halves = True

    net = build(bn_size=2)
    pruning = choose_connections(net, keep=0.6)
    pruned = prune(net, pruning, bn_size=2).eval()
    layer = next(m for m in pruned.modules() if isinstance(m, SelectiveLayer))
    layer.__class__ = Others
    with pytest.warns(UserWarning, match="is an Others"):
        deployed = deploy(pruned)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(deployed(x), pruned(x), rtol=1e-10)


def test_a_net_is_pruned_again():
    net = build(bn_size=2)
    first = choose_connections(net, keep=0.8)
    once = prune(net, first, bn_size=2)
    second = choose_connections(once, keep=0.8, layers=2)
    twice, masked = prune(once, second, bn_size=2), mask_weights(once, second.connections)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(twice.eval()(x), masked.eval()(x), rtol=1e-12, atol=1e-12)


def test_the_map_of_a_pruned_net_has_holes(tmp_path):
    net = build(bn_size=2)
    pruned = prune(net, choose_connections(net, keep=0.7, layers=2), bn_size=2)
    connections = pruned.spec.connections
    for block, reuse, whole in zip(
        connections, measure_reuse(pruned), measure_reuse(net), strict=True
    ):
        assert [r.name for r in reuse.readers] == [r.name for r in whole.readers]
        absent = [n for n, sources in enumerate(block, start=1) if not sources]
        layers = zip(block, reuse.readers, whole.readers, strict=False)
        for sources, reader, before in [*layers]:
            expected = [w if s in sources else None for s, w in enumerate(before.plain)]
            assert list(reader.plain) == pytest.approx(expected)
        behind, before = reuse.readers[-1], whole.readers[-1]
        kept = [None if s in absent else w for s, w in enumerate(before.plain)]
        assert list(behind.plain) == pytest.approx(kept)
    assert len(list(list_sentences(measure_reuse(pruned)))) == 3
    assert len(check_findings(measure_reuse(pruned))) == 4
    plot_heatmap(measure_reuse(pruned), "pruned", tmp_path / "map.png")


def test_the_least_used_goes_first():
    net = build()
    with torch.no_grad():
        block = net.denseblock2
        width = net.spec.blocks[1].in_channels
        block.denselayer3.conv1.weight[:, width : width + 4] *= 1e-6
    pruning = choose_connections(net, keep=0.95)
    assert pruning.before - pruning.after == 1 and pruning.connections[1][2] == (0, 2)


@pytest.mark.parametrize("name", BUILDERS)
def test_models_on_a_pruned_trunk_are_built_from_plain_values(name):
    torch.manual_seed(0)
    blocks = [3] * 6 if name.startswith("fcdense") else [3, 3, 3, 3]
    small = {"growth_rate": 4, "block_config": blocks, "num_init_features": 8}
    kind = "detector" if name in DETECTORS else "segmenter"
    whole = build_registered(kind, name, 3, small).double().eval()
    pruning = choose_connections(whole, keep=0.7, layers=2)
    plain = json.loads(json.dumps(pruning.connections))
    pruned = build_registered(kind, name, 3, {**small, "connections": plain}).double().eval()
    pruned.load_state_dict(cut_weights(whole, pruning.connections))
    x = torch.rand(1, 3, 160, 160, dtype=torch.float64)
    maps = [
        find_net(model)(x)
        for model in (pruned, mask_weights(whole, pruning.connections).eval(), whole)
    ]
    assert all(map(is_close, *maps[:2])) and not all(map(is_close, *maps[1:]))


def find_net(model):
    return next(m for m in model.modules() if isinstance(m, DenseFeatureNet))


def test_a_condensenet_is_refused():
    net = tiny("condensenet74_c8_features")
    for model in (net, convert(net)):
        with pytest.raises(ValueError, match="a CondenseNet prunes itself in training"):
            choose_connections(model, keep=0.5)
    with pytest.raises(ValueError, match="connections are for nets without groups"):
        tiny("condensenet74_c8_features", connections=[[[0], [0]]] * 5)


@pytest.mark.parametrize(
    "connections",
    [
        [[[0]]],
        [[[0], [0, 1], [0, 3]], [[0]] * 4, [[0]] * 3],
        [[[0], [], [2]], [[0]] * 4, [[0]] * 3],
        [[[0], [1, 0], [0]], [[0]] * 4, [[0]] * 3],
        "all",
    ],
)
def test_connections_that_cannot_be_are_refused(connections):
    with pytest.raises(ValueError, match="connections"):
        DenseNetSpec(block_config=(3, 4, 3), connections=connections)
