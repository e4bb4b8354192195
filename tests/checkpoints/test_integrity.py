"""Damage in files of weights is noticed: changed bits, values and types that cannot be computed."""

import json
import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from tiny_nets import tiny

from densenet_backbones.checkpoints import CheckpointError, fit_to, read_checkpoint, read_state_dict
from densenet_backbones.checkpoints.integrity import DIGESTS, compute_digests
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import read_model_file


def some_weights():
    generator = torch.Generator().manual_seed(0)
    return {f"layer{n}.weight": torch.randn(50, 8, generator=generator) for n in range(8)}


def write_torch(path):
    torch.save({"state_dict": some_weights(), "epoch": 3}, path)


def write_safetensors(path):
    described = {"description": "some"}
    digests = compute_digests(some_weights(), described)
    path.write_bytes(safetensors.torch.save(some_weights(), {**described, DIGESTS: digests}))


WRITERS = {".ckpt": write_torch, ".safetensors": write_safetensors}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_changed_bit_of_a_tensor_is_noticed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path)
    assert read_state_dict(path).keys() == some_weights().keys()
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for name, value in some_weights().items():
        start = whole.index(value.numpy().tobytes())
        changed = bytearray(whole)
        changed[start + int(rng.integers(value.nbytes))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=rf"a{suffix}: it is damaged: \S*{name} is not"):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_changed_bit_anywhere_is_noticed_or_changes_nothing(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        changed = bytearray(whole)
        changed[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            read = read_state_dict(path)
        except CheckpointError:
            continue
        assert all(torch.equal(value, read[name]) for name, value in some_weights().items())


def test_a_record_that_calls_itself_a_folder_is_damaged(tmp_path):
    """torch reads none of it, and gives the values that memory happened to hold."""
    path = tmp_path / "a.pth"
    write_torch(path)
    whole = path.read_bytes()
    places = [found.start() + 38 for found in re.finditer(rb"PK\x01\x02", whole)]
    assert len(places) >= 3
    for place in places:  # of the record's attributes in the list of contents
        path.write_bytes(whole[:place] + b"\x10" + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"a\.pth: it is damaged"):
            read_state_dict(path)


def test_files_without_checksums_and_digests_are_read(tmp_path):
    path = tmp_path / "a.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_torch(path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_state_dict(path).keys() == some_weights().keys()
    safetensors.torch.save_file(some_weights(), tmp_path / "a.safetensors", {"other": "text"})
    assert read_state_dict(tmp_path / "a.safetensors").keys() == some_weights().keys()


def test_a_changed_description_is_noticed(tiny_run, tmp_path):
    whole = (tiny_run / "model.safetensors").read_bytes()
    names = json.loads(_metadata(tiny_run / "model.safetensors")[DetectorSpec.key])
    name = names["categories"]["names"][0]
    changed = whole.replace(name.encode(), name.swapcase().encode())
    assert changed != whole and len(changed) == len(whole)
    (tmp_path / "model.safetensors").write_bytes(changed)
    with pytest.raises(CheckpointError, match="its description is not what was written"):
        read_model_file(tmp_path / "model.safetensors", (DetectorSpec,))


def test_model_files_hold_a_digest_of_each_tensor(tiny_run):
    path = tiny_run / "model.safetensors"
    metadata = _metadata(path)
    weights = safetensors.torch.load_file(path)
    assert json.loads(metadata[DIGESTS]).keys() == {"", *weights}
    assert json.loads(metadata[DIGESTS]) == json.loads(compute_digests(weights, metadata))


def _metadata(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "has 1 value of NaN or infinity"),
        (torch.tensor([float("inf")] * 2), "has 2 values of NaN or infinity"),
        (torch.tensor([1.0, -0.5]), "has variances below 0"),
        (torch.ones(2, dtype=torch.int8), "is int8, not floating point"),
        (torch.ones(2, dtype=torch.uint8), "is uint8, not floating point"),
        (torch.ones(2).to(torch.float8_e4m3fn), "is float8_e4m3fn, not floating point"),
    ],
)
def test_weights_that_nothing_can_be_computed_with_are_named(tmp_path, value, message):
    path = tmp_path / "a.pth"
    torch.save({**some_weights(), "norm.running_var": value}, path)
    with pytest.raises(CheckpointError, match=rf"a\.pth: norm\.running_var {message}"):
        read_state_dict(path)
    assert read_checkpoint(path)["norm.running_var"].dtype == value.dtype  # to be looked at


def test_counters_and_masks_may_be_whole_numbers(tmp_path):
    more = {"norm.num_batches_tracked": torch.tensor(3), "mask": torch.ones(2, dtype=torch.bool)}
    torch.save({**some_weights(), **more}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() >= more.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_take_no_weights_that_are_not_finite(tmp_path, value):
    net = tiny("densenet121_features")
    weights = net.state_dict()
    weights["norm5.weight"][0] = value
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"norm5\.weight has 1 value of NaN or infinity"):
        fit_to(weights, known=net.state_dict(), needed=weights)
    with pytest.raises(CheckpointError, match=r"a\.pth: norm5\.weight has 1 value"):
        read_state_dict(tmp_path / "a.pth")
