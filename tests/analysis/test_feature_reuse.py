"""Feature reuse on nets with planted weights, and on heads whose readers are known."""

import itertools
import math

import pytest
import timm
import torch
import torchvision
from tiny_nets import TINY, randomise_norms, tiny

from densenet_backbones.analysis.feature_reuse import find_head_readers, measure_reuse
from densenet_backbones.analysis.reuse_findings import (
    check_findings,
    list_sentences,
    measure_spread,
    rank_sources,
)
from densenet_backbones.condensenet import condense, convert

SMALL = {"growth_rate": 4, "block_config": (3, 4, 4), "num_init_features": 6}


def classifier(**fields):
    torch.manual_seed(0)
    name = "densenet40_k12_features"
    net = timm.create_model(name, features_only=False, num_classes=5, **{**SMALL, **fields})
    return randomise_norms(net)


def readers_of(net):
    """Name, norm and weight of everything that reads a block, and where its sources begin."""
    for number, plan in enumerate(net.spec.blocks, start=1):
        starts = [0, *range(plan.in_channels, plan.channels + 1, plan.growth_rate)]
        for layer in net.get_submodule(f"denseblock{number}").values():
            yield layer.norm1, layer.conv1.weight, starts
        if plan.transition_channels is not None:
            transition = net.get_submodule(f"transition{number}")
            yield transition.norm, transition.conv.weight, starts
        else:
            yield net.norm5, net.classifier.weight, starts


def plant(net, value_of):
    """Gives each reader the weight ``value_of(reader, source)`` on a source, of either sign."""
    with torch.no_grad():
        for reader, (_, weight, starts) in enumerate(readers_of(net)):
            signs = torch.randint(0, 2, weight.shape) * 2 - 1
            for source, (start, end) in enumerate(itertools.pairwise(starts)):
                weight[:, start:end] = value_of(reader, source) * signs[:, start:end]


@pytest.mark.parametrize("bn_size", [None, 2])
def test_planted_weights_are_found_where_they_were_planted(bn_size):
    net = classifier(bn_size=bn_size or 0)
    plant(net, lambda reader, source: 1 + reader + 0.125 * source)
    planted = list(readers_of(net))
    found = [reader for block in measure_reuse(net) for reader in block.readers]
    assert [r.kind for r in found].count("layer") == 11
    assert [r.kind for r in found if r.kind != "layer"] == ["transition"] * 2 + ["classifier"]
    for number, (reader, (norm, weight, starts)) in enumerate(zip(found, planted, strict=True)):
        gamma, variance = norm.weight.detach().double(), norm.running_var.double()
        factors = gamma.abs() / (variance + norm.eps).sqrt()
        for source, (start, end) in enumerate(itertools.pairwise(starts)):
            if start >= weight.shape[1]:
                assert reader.plain[source] is None and reader.scaled[source] is None
                continue
            value = 1 + number + 0.125 * source
            assert reader.plain[source] == value
            scaled = value * factors[start:end].mean()
            assert reader.scaled[source] == pytest.approx(float(scaled), rel=1e-12)


def held(net, scaled=False):
    return [finding.held for finding in check_findings(measure_reuse(net), scaled)]


def test_each_finding_is_held_or_not_by_itself():
    net = classifier()
    transitions, last = (3, 8), 13  # readers 0 to 13: layers of blocks 1 to 3, and these

    def paper(reader, source):
        if reader == last:
            return 1.0 + source
        is_later_layer = reader > 3 and reader not in transitions
        return 0.5 if is_later_layer and source == 0 else 1.0

    plant(net, paper)
    assert held(net) == held(net, scaled=False) == [True, True, True, True]
    against = (
        # Layers look at their newest input alone, but for the transition's output in later blocks.
        lambda r, s: (50.0 if s == 1 else paper(r, s)) if r in (2, 6, 7, 11, 12) else paper(r, s),
        lambda r, s: 1000.0 if (r, s) == (transitions[1], 1) else paper(r, s),
        lambda r, s: 0.5 if r in (6, 7, 11, 12) and s == 1 else paper(r, s) + (s == 0),
        lambda r, s: 6.0 - s if r == last else paper(r, s),
    )
    for number, weights in enumerate(against):
        plant(net, weights)
        assert held(net) == [n != number for n in range(4)]


def test_spread_is_the_share_of_sources_used_in_effect():
    assert measure_spread([1.0, 1.0, 1.0, None]) == pytest.approx(1)
    assert measure_spread([1.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)
    assert measure_spread([0.0, 0.0]) == 0
    assert 1 / 2 < measure_spread([3.0, 1.0]) < 1


def test_sentences_name_the_least_and_the_most_used():
    net = classifier()
    plant(net, lambda reader, source: {0: 2.0, 2: 0.5}.get(source, 1.0))
    blocks = measure_reuse(net)
    assert next(source for source, _ in rank_sources(blocks[1])) == "denselayer2"
    assert list(list_sentences(blocks))[1].startswith("denseblock2: its readers use denselayer2")
    assert "the block's input most" in list(list_sentences(blocks))[1]


HEADS = {
    # RetinaNet's pyramid reads c3 to c5 from blocks 2 to 4, the last one normed.
    "retinanet_fpn": [(2, "inner_blocks.0.0"), (3, "inner_blocks.1.0"), (4, "inner_blocks.2.0")],
    "dsod_tiny": [(4, "adapter.trans.conv")],
    "fcdensenet56": [("blocks_up.4", "net.classifier")],
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_read_where_it_reads_a_block(name):
    small = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8}
    sizes = {"min_size": 64} if name.startswith("retina") else {}
    if name == "fcdensenet56":
        small["block_config"] = (1,) * 6
    model = torchvision.models.get_model(name, num_classes=3, **small, **sizes)
    size = 160 if name == "dsod_tiny" else 64
    images = torch.rand(2, 3, size, size)
    inputs = images if name == "fcdensenet56" else list(images)
    readers = find_head_readers(model.train(), inputs)
    assert model.training
    ends = [(str(block), conv) for block, conv in HEADS[name]]
    assert len(readers) >= len(ends)
    for block, conv in ends:
        assert any(b.endswith(block) and c.endswith(conv) for b, c, _ in readers), readers
    blocks = measure_reuse(model, readers)
    assert sum(r.kind == "head" for block in blocks for r in block.readers) == len(readers)
    for block in blocks:
        assert all(not math.isnan(v) for r in block.readers for v in r.plain if v is not None)


def test_a_converted_condensenet_is_measured_as_the_masked_one():
    name = "condensenet74_c8_features"
    net = tiny(name, features_only=False, num_classes=5).double()
    whole = measure_reuse(net)
    assert condense(net, 1.0)
    masked, converted = measure_reuse(net), measure_reuse(convert(net))
    assert masked != whole
    assert [r.kind for r in masked[-1].readers] == ["layer", "layer", "classifier"]
    for one, other in zip(masked, converted, strict=True):
        for scaled in (False, True):
            values = one.values(scaled), other.values(scaled)
            assert torch.allclose(*values, rtol=1e-12, equal_nan=True)


def test_a_model_without_dense_blocks_is_refused():
    with pytest.raises(ValueError, match="has no dense block"):
        measure_reuse(torch.nn.Conv2d(3, 3, 1))


def test_tiny_is_measured_with_every_norm():
    for norm in ("bn", "frozen", "sync", "group"):
        net = timm.create_model("densenet121_features", **TINY, compression=1.0, norm=norm)
        assert len(measure_reuse(net)) == 4
