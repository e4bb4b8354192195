"""Whether weights fit a network: everything that is wrong, in one error."""

import dataclasses

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import TINY
from weight_names import state

from densenet_backbones.checkpoints import (
    CheckpointError,
    fit_to,
    to_torchvision,
)
from densenet_backbones.densenet import DenseNetSpec
from densenet_backbones.variants import VARIANTS

TINY_SPEC = DenseNetSpec(**TINY)


def test_weights_of_the_network_come_back_under_our_names():
    weights = state(TINY_SPEC, classes=2)
    fitted = fit_to(to_torchvision(weights), known=weights, needed=weights)
    assert fitted.keys() == weights.keys()
    assert all(fitted[key] is weights[key] for key in weights)


def test_everything_that_is_wrong_is_in_one_error():
    known = state(TINY_SPEC)
    weights = state(TINY_SPEC)
    for key in [key for key in weights if key.startswith(("denseblock3", "transition3.conv"))]:
        del weights[key]
    weights["layer1.weight"] = weights["norm0.weight"] = torch.empty(3, device="meta")
    with pytest.raises(ValueError, match="do not fit the network") as caught:
        fit_to(weights, known, needed=known)
    assert isinstance(caught.value, CheckpointError)
    text = str(caught.value)
    missing = [k for k in known if k not in weights and not k.endswith("num_batches_tracked")]
    assert f"{len(missing)} entries are missing" in text
    parts = ["are missing: ", "1 entry is unexpected: layer1.weight", "norm0.weight (3,) for (8,)"]
    assert [text.index(p) for p in parts] == sorted(text.index(p) for p in parts)


def test_the_error_says_what_the_file_is():
    with pytest.raises(CheckpointError) as caught:
        known = state(VARIANTS["densenet121"])
        fit_to(to_torchvision(state(VARIANTS["densenet169"])), known, needed=known)
    assert (
        "the file looks like densenet169 (growth rate 32, blocks 6-12-32-32), complete up to c5"
        in str(caught.value)
    )
    with torch.device("meta"):
        resnet = torchvision.models.resnet18().state_dict()
    with pytest.raises(CheckpointError, match="looks like no known DenseNet"):
        fit_to(resnet, known, needed=known)


@pytest.mark.parametrize("in_chans", [1, 3, 7])
def test_image_channels_and_classes_are_left_to_the_loader(in_chans):
    known = state(TINY_SPEC, classes=5)
    fit_to(state(TINY_SPEC, classes=9, in_chans=in_chans), known, needed=known)
    fit_to(state(TINY_SPEC, classes=0), known, needed=known)
    fit_to(state(TINY_SPEC, classes=2), state(TINY_SPEC), needed=state(TINY_SPEC))
    weights = state(TINY_SPEC)
    weights["conv0.weight"] = torch.empty(8, 3, 3, 3, device="meta")
    with pytest.raises(CheckpointError, match=r"conv0\.weight \(8, 3, 3, 3\) for \(8, 3, 7, 7\)"):
        fit_to(weights, known, needed=known)


def test_known_layers_that_are_not_needed_may_be_absent():
    known = state(TINY_SPEC)
    needed = [key for key in known if key.startswith(("conv0", "norm0", "denseblock1"))]
    short = {key: known[key] for key in needed}
    assert fit_to(short, known, needed).keys() == short.keys()
    assert fit_to(known, known, needed).keys() == known.keys()
    with pytest.raises(CheckpointError, match=r"looks like .*, complete up to c2; choose"):
        fit_to(short, known, needed=known)
    # present but of another network is wrong, needed or not
    other = known | {"norm5.weight": torch.empty(1, device="meta")}
    with pytest.raises(CheckpointError, match=r"norm5\.weight \(1,\) for"):
        fit_to(other, known, needed)


def spec_with(norm: str) -> DenseNetSpec:
    return dataclasses.replace(TINY_SPEC, norm=norm, norm_group_size=1 if norm == "group" else None)


@pytest.mark.parametrize("target", ["bn", "frozen", "sync"])
@pytest.mark.parametrize("source", ["bn", "frozen", "sync"])
def test_counters_of_batches_may_be_missing_or_too_many(source, target):
    known = state(spec_with(target))
    fitted = fit_to(state(spec_with(source)), known, needed=known)
    assert fitted.keys() <= known.keys()
    counters = {key for key in known if key.endswith("num_batches_tracked")}
    assert known.keys() - fitted.keys() == (counters if source == "frozen" else set())


def test_batch_norm_and_group_norm_are_told_apart():
    batch, group = state(spec_with("bn")), state(spec_with("group"))
    with pytest.raises(CheckpointError, match=r"network's norms keep no running statistics"):
        fit_to(batch, group, needed=group)
    with pytest.raises(CheckpointError, match=r"the file's norms have no running statistics"):
        fit_to(group, batch, needed=batch)


@settings(max_examples=50)
@given(data=st.data())
def test_what_is_wrong_is_counted_exactly(data):
    known = state(TINY_SPEC)
    names = st.sampled_from([key for key in known if not key.endswith("num_batches_tracked")])
    dropped = data.draw(st.sets(names, max_size=4))
    reshaped = data.draw(st.sets(names, max_size=4)) - dropped
    added = data.draw(st.sets(st.sampled_from(["fc.weight", "norm9.bias", "layer1"]), max_size=3))
    weights = {key: value for key, value in known.items() if key not in dropped}
    weights |= dict.fromkeys(reshaped, torch.empty(2, 1, 1, device="meta"))
    weights |= dict.fromkeys(added, torch.empty(2, device="meta"))
    if not dropped | reshaped | added:
        assert fit_to(weights, known, known) == weights
        return
    with pytest.raises(CheckpointError) as caught:
        fit_to(weights, known, known)
    text = str(caught.value)
    for found, what in (
        (dropped, "missing"),
        (added, "unexpected"),
        (reshaped, "of another shape"),
    ):
        verb = "entry is" if len(found) == 1 else "entries are"
        assert (f"{len(found)} {verb} {what}" in text) == bool(found)
