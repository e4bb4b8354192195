"""Which network weights belong to, from names and shapes."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import TINY
from torch import Tensor
from weight_names import net, small, state

from densenet_backbones.checkpoints import (
    CheckpointError,
    recognize,
    to_torchvision,
)
from densenet_backbones.densenet import DenseNetSpec
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.variants import VARIANTS


def part(name: str, taps: tuple[int, ...], tap: str = "raw") -> dict[str, Tensor]:
    return DenseFeatureNet(net(VARIANTS[name]), taps, tap).state_dict()


def shapes_of(spec: DenseNetSpec) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in net(spec).state_dict().items()}


TINY_SPEC = DenseNetSpec(**TINY)


@pytest.mark.parametrize("name", VARIANTS)
def test_published_networks_are_recognized_whole(name):
    weights = state(VARIANTS[name], classes=7, in_chans=4)
    found = recognize(weights)
    assert (found.spec, found.variants) == (VARIANTS[name], (name,))
    assert (found.classes, found.in_chans, found.statistics) == (7, 4, True)
    assert found.missing == found.unexpected == ()
    last = f"c{len(VARIANTS[name].block_config) + 1}"
    assert found.complete_to == last
    assert all(levels[-1] == last for levels in found.levels.values())


def test_names_of_other_libraries_and_prefixes_are_read():
    weights = {f"module.{key}": v for key, v in to_torchvision(state(TINY_SPEC, 2)).items()}
    assert recognize(weights).spec == TINY_SPEC
    twice = weights | {f"ema.{key}": value for key, value in weights.items()}
    assert recognize(twice, prefix="ema.module").classes == 2


@settings(max_examples=60)
@given(
    fields=st.fixed_dictionaries(
        {
            "block_config": st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
            "num_init_features": st.integers(1, 12).map(lambda half: 2 * half),
            "bn_size": st.sampled_from([None, 1, 2, 4]),
            "stem": st.sampled_from(["imagenet", "cifar", "deep"]),
            "final_norm": st.booleans(),
            "compression": st.sampled_from([0.5, 1.0]),
        }
    ),
    growth=st.integers(1, 6),
    rates=st.booleans(),
    data=st.data(),
)
def test_any_network_is_recognized(fields, growth, rates, data):
    count = len(fields["block_config"])
    if rates:
        each = st.integers(1, 6)
        growth = data.draw(st.lists(each, min_size=count, max_size=count).map(tuple))
    if data.draw(st.booleans()):
        widths = st.lists(st.integers(1, 30), min_size=count - 1, max_size=count - 1).map(tuple)
        fields["transition_channels"] = data.draw(widths)
    spec = DenseNetSpec(growth_rate=growth, **fields)
    weights = state(spec)
    found = recognize(weights)
    assert found.missing == found.unexpected == ()
    assert shapes_of(found.spec) == shapes_of(spec)
    for a, b in zip(found.spec.blocks, spec.blocks, strict=True):
        assert (a.in_channels, a.channels, a.growth_rate) == (
            b.in_channels,
            b.channels,
            b.growth_rate,
        )
    assert found.complete_to == f"c{count + 1}"


@pytest.mark.parametrize("norm", ["frozen", "group", "sync"])
def test_norms_without_statistics_or_counters(norm):
    spec = dataclasses.replace(VARIANTS["densenet121"], norm=norm)
    found = recognize(state(spec))
    assert (found.missing, found.unexpected) == ((), ())
    assert found.variants == ("densenet121",)
    assert found.statistics == (norm != "group")
    assert found.spec.norm == ("group" if norm == "group" else "bn")  # frozen cannot be seen


def test_group_norms_of_widths_without_common_divisor():
    spec = dataclasses.replace(small(VARIANTS["densenet121"]), norm="group", norm_group_size=1)
    assert recognize(state(spec)).spec == spec


CUT = [
    # tap, last tap, raw, norm, compressed
    ("raw", 1, "c2", "c1", "c1"),
    ("raw", 3, "c4", "c3", "c3"),
    ("norm", 2, "c3", "c3", "c2"),
    ("compressed", 3, "c4", "c4", "c4"),
    ("pooled", 2, "c3", "c3", "c3"),
    ("raw", 4, "c5", "c5", "c5"),
]


@pytest.mark.parametrize(("tap", "last", "raw", "norm", "compressed"), CUT)
def test_weights_that_end_early(tap, last, raw, norm, compressed):
    found = recognize(part("densenet121", (last,), tap))
    assert found.complete_to == raw
    assert found.levels["norm"][-1] == norm
    assert found.levels["compressed"][-1] == found.levels["pooled"][-1] == compressed
    assert found.missing == found.unexpected == ()
    begin = {"densenet121", "densenet169", "densenet201", "densenet264"}
    assert set(found.variants) == ({"densenet121"} if last > 2 else begin)


def test_a_published_network_without_its_final_norm_lacks_the_last_level():
    body = state(VARIANTS["densenet121"])
    found = recognize({key: value for key, value in body.items() if not key.startswith("norm5")})
    assert (found.variants, found.complete_to) == (("densenet121",), "c4")


def test_gaps_and_strangers_are_listed_and_end_the_levels():
    weights = state(VARIANTS["densenet121"])
    del weights["denseblock2.denselayer3.conv1.weight"]
    weights["transition3.conv.bias"] = torch.empty(512, device="meta")
    weights["denseblock4.denselayer1.norm2.bias"] = torch.empty(3, device="meta")
    found = recognize(weights)
    assert found.missing == ("denseblock2.denselayer3.conv1.weight",)
    assert set(found.unexpected) == {
        "transition3.conv.bias",
        "denseblock4.denselayer1.norm2.bias",
    }
    assert (found.complete_to, found.variants) == ("c2", ("densenet121",))
    assert found.levels["compressed"] == ("c1", "c2")


def test_weights_without_a_stem_have_no_level():
    weights = {k: v for k, v in state(TINY_SPEC).items() if not k.startswith(("conv0", "norm0"))}
    found = recognize(weights)
    assert (found.in_chans, found.complete_to) == (None, None)
    assert found.spec.block_config == TINY_SPEC.block_config
    assert found.missing[0] == "conv0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "they hold no denseblock1"),
        ({"denseblock1.denselayer1.norm1.weight": (8,)}, "no convolutions of denseblock1"),
        ({"denseblock1.denselayer99999999.conv1.weight": (4, 8, 3, 3)}, "a layer 99999999, more"),
        (
            {
                "denseblock1.denselayer1.conv1.weight": (6, 8, 1, 1),
                "denseblock1.denselayer1.conv2.weight": (4, 6, 3, 3),
            },
            r"no common multiple of the growth rates \(6 to 4\)",
        ),
        (
            {
                "conv1.weight": (5, 5, 3, 3),
                "denseblock1.denselayer1.conv1.weight": (4, 5, 3, 3),
            },
            "fit no network of this package: .*num_init_features must be even",
        ),
    ],
)
def test_what_is_no_densenet_of_ours_is_named(change, message):
    weights = {key: torch.empty(shape, device="meta") for key, shape in change.items()}
    with pytest.raises(CheckpointError, match=message):
        recognize(weights)


@settings(max_examples=60)
@given(
    shapes=st.dictionaries(
        st.sampled_from(sorted(state(small(VARIANTS["densenet264d"])))),
        st.lists(st.integers(0, 9), max_size=5),
        min_size=1,
    )
)
def test_shapes_that_make_no_sense_are_an_error_or_listed(shapes):
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    try:
        found = recognize(weights)
    except CheckpointError:
        return
    assert set(found.unexpected) <= weights.keys()
    assert not set(found.missing) & weights.keys()
