"""Names of weights: every library's to ours, and back."""

import dataclasses

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import TINY
from weight_names import NAMINGS, named, prefixed, small, state

from densenet_backbones.checkpoints import (
    CheckpointError,
    find_place,
    to_ours,
    to_timm_features,
    to_torchvision,
)
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet
from densenet_backbones.variants import VARIANTS

OURS = {"conv0.weight": 0, "denseblock1.denselayer12.norm1.running_var": 1, "classifier.bias": 2}
WRAPPERS = [
    "module.",  # DataParallel, DDP, torch.optim.swa_utils.AveragedModel
    "_orig_mod.",  # torch.compile
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.",  # Lightning tasks
    "net.",
    "model.backbone.",
    "backbone.0.body.",  # DETR
    "module.backbone.0.body.",
    "model.backbone.conv_encoder.model.",  # transformers' DETR
    "model.backbone.model.",
    "_backbone.",  # transformers' TimmBackbone
    "backbone.body.",  # torchvision's detectors
    "encoder.",  # smp
    "encoder.model.",  # smp's tu-
    "model.encoder.model._orig_mod.",
    "module.densenet121.",  # CheXNet
]


@pytest.mark.parametrize(
    "keys",
    [
        ["features.conv0.weight", "features.denseblock1.denselayer12.norm1.running_var"],
        ["features.conv0.weight", "features.denseblock1.denselayer12.norm.1.running_var"],
        ["features_conv0.weight", "features_denseblock1.denselayer12.norm1.running_var"],
        ["conv0.weight", "denseblock1.denselayer12.norm1.running_var"],
    ],
    ids=["torchvision", "old torchvision", "timm features_only", "ours"],
)
def test_to_ours_reads_every_known_spelling(keys):
    assert to_ours(dict(zip([*keys, "classifier.bias"], (0, 1, 2), strict=True))) == OURS


def test_old_dots_are_changed_inside_dense_layers_only():
    assert list(to_ours({"features.denseblock3.denselayer2.conv.2.weight": 0})) == [
        "denseblock3.denselayer2.conv2.weight"
    ]
    assert list(to_ours({"features.transition1.norm.weight": 0})) == ["transition1.norm.weight"]


# ------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trips_over_the_family(variant):
    weights = named(small(VARIANTS[variant]))
    body = {key: name for key, name in weights.items() if not key.startswith("classifier.")}
    assert to_ours(weights) == weights
    assert to_ours(to_torchvision(weights)) == weights
    assert to_ours(to_timm_features(weights)) == body
    for naming in ("old torchvision", "efficient_densenet"):
        assert to_ours(prefixed(NAMINGS[naming](weights), "module.")) == weights


@pytest.mark.parametrize("norm", ["bn", "frozen", "group"])
@pytest.mark.parametrize("variant", ["densenet121", "densenet264d", "densenet40bc_k12", "dsod"])
def test_every_norm_and_stem_under_wrappers(variant, norm):
    weights = named(dataclasses.replace(small(VARIANTS[variant]), norm=norm, norm_group_size=1))
    for wrapper in WRAPPERS:
        assert to_ours(prefixed(to_torchvision(weights), wrapper)) == weights
        assert to_ours(prefixed(weights, wrapper)) == weights


@pytest.mark.parametrize("taps", [(0,), (1,), (2,), (0, 3)])
@pytest.mark.parametrize("tap", ["raw", "norm", "compressed", "pooled"])
def test_parts_of_nets(tap, taps):
    with torch.device("meta"):
        net = DenseFeatureNet(DenseNet(DenseNetSpec(**TINY)), taps, tap)
    weights = {key: key for key in net.state_dict()}
    for naming in NAMINGS.values():
        assert to_ours(naming(weights)) == weights
        assert to_ours(prefixed(naming(weights), "model.backbone.")) == weights


words = st.one_of(
    st.sampled_from([w for wrapper in WRAPPERS for w in wrapper.split(".") if w]),
    st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(lambda w: w != "features"),
)
heads = st.dictionaries(
    st.sampled_from(["bbox_embed.weight", "fpn.inner.0.weight", "input_proj.bias", "head.fc.bias"]),
    st.integers(),
)


@settings(max_examples=60)
@given(
    prefix=st.lists(words, min_size=1, max_size=5).map(lambda parts: ".".join(parts) + "."),
    naming=st.sampled_from(sorted(NAMINGS)),
    variant=st.sampled_from(["densenet121", "densenet264d", "densenet40_k12"]),
    head=heads,
    data=st.data(),
)
def test_any_prefix_and_any_order(prefix, naming, variant, head, data):
    weights = {key: key for key in state(small(VARIANTS[variant]))}
    saved = {**{f"zz_{key}": value for key, value in head.items()}}
    saved.update(prefixed(NAMINGS[naming](weights), prefix))
    order = data.draw(st.permutations(sorted(saved)))
    assert to_ours({key: saved[key] for key in order}) == weights


# ------------------------------------------------------------------------------ bigger models


def test_a_classifier_of_several_layers_keeps_its_names():
    state = {"m.features.conv0.weight": 0, "m.classifier.0.weight": 1, "m.classifier.2.bias": 2}
    assert to_ours(state) == {"conv0.weight": 0, "classifier.0.weight": 1, "classifier.2.bias": 2}


def test_the_counter_of_averaged_weights_is_no_weight():
    averaged = {"n_averaged": -1} | prefixed(OURS, "module.")  # torch's AveragedModel
    timm_took_off = {"n_averaged": -1} | OURS
    assert to_ours(averaged) == to_ours(timm_took_off) == OURS


def test_heads_are_left_out_and_a_distant_classifier_too():
    state = {"a.features.conv0.weight": 0, "classifier.weight": 1, "a.fc.weight": 2, "a.x": 3}
    assert to_ours(state) == {"conv0.weight": 0}


def test_a_dense_decoder_is_no_second_backbone():
    encoder = {key: key for key in state(small(VARIANTS["densenet121"]))}
    decoder = {key: "decoder" for key in encoder if key.startswith("denseblock")}
    assert to_ours(prefixed(encoder, "encoder.") | prefixed(decoder, "decoder.")) == encoder


# ------------------------------------------------------------------------------ two networks


def two(first: str, second: str) -> dict:
    names = state(small(VARIANTS["densenet121"]))
    return {p + key: (p, key) for p in (first, second) for key in names}


@pytest.mark.parametrize(
    ("first", "second"),
    [("student.", "teacher."), ("model.", "model_ema.module."), ("", "ema."), ("a.", "a.b.")],
)
def test_two_networks_are_refused_and_can_be_chosen(first, second):
    with pytest.raises(CheckpointError, match=rf"2 DenseNets, .* '{first}' and '{second}'; choose"):
        to_ours(two(first, second))
    chosen = to_ours(two(first, second), prefix=second)
    assert {value[0] for value in chosen.values()} == {second}
    assert "denseblock1.denselayer1.norm1.weight" in chosen


@pytest.mark.parametrize(
    "prefix",
    ["teacher", "teacher.", "teacher.features", "teacher.features.", "teacher._orig_mod.features."],
)
def test_a_prefix_is_read_with_or_without_its_end(prefix):
    state = prefixed(two("student.features.", "teacher.features."), "")
    state["teacher.classifier.weight"] = ("teacher.features.", "classifier")
    chosen = to_ours(state, prefix=prefix)
    assert {value[0] for value in chosen.values()} == {"teacher.features."}
    assert "classifier.weight" in chosen


def test_a_prefix_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match=r"under the prefix 'x\.'; there is one under 'a\.'"):
        to_ours({"a.conv0.weight": 0}, prefix="x")
    with pytest.raises(CheckpointError, match="there is none at all"):
        to_ours({"layer1.weight": 0}, prefix="")


def test_one_weight_under_two_names_is_refused():
    with pytest.raises(ValueError, match=r"2 DenseNets, under the prefixes '' and 'features\.'"):
        to_ours({"conv0.weight": 0, "features.conv0.weight": 1})
    with pytest.raises(ValueError, match=r"'denseblock1.denselayer1.norm1.bias' twice, .*norm\.1"):
        to_ours({f"denseblock1.denselayer1.{n}.bias": 0 for n in ("norm1", "norm.1")})


def test_other_networks_keep_their_names():
    with torch.device("meta"):
        state = torchvision.models.resnet18().state_dict()
    assert find_place(state) is None
    assert to_ours(state).keys() == state.keys()


@pytest.mark.parametrize(
    ("rename", "naming"),
    [
        ("ours", "ours"),
        ("torchvision", "torchvision's and timm's"),
        ("old torchvision", "before 0.4"),
        ("timm features_only", "timm's features_only"),
        ("efficient_densenet", "gpleiss"),
    ],
)
def test_namings_are_told_apart(rename, naming):
    weights = named(small(VARIANTS["densenet121"]))
    assert naming in find_place(prefixed(NAMINGS[rename](weights), "model.")).naming
