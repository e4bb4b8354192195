import pickle

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from tiny_nets import TINY
from torch import nn

from densenet_backbones.checkpoints import (
    CheckpointError,
    fit_to,
    read_checkpoint,
    read_state_dict,
    to_ours,
    to_torchvision,
)
from densenet_backbones.densenet import DenseNet, DenseNetSpec

OURS = {"conv0.weight": 0, "denseblock1.denselayer12.norm1.running_var": 1, "classifier.bias": 2}


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


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_maps_are_inverse_on_whole_nets(library):
    with torch.device("meta"):
        if library == "timm":
            theirs = timm.create_model("densenet121")
        else:
            theirs = torchvision.models.densenet121(weights=None)
        ours = DenseNet()
    assert to_ours(theirs.state_dict()).keys() == ours.state_dict().keys()
    assert to_torchvision(ours.state_dict()).keys() == theirs.state_dict().keys()


def test_one_weight_under_two_names_is_refused():
    with pytest.raises(ValueError, match=r"hold 'conv0.weight' twice, .* 'features.conv0.weight'"):
        to_ours({"conv0.weight": 0, "features.conv0.weight": 1})


def test_fit_to_checks_both_directions():
    known = {"conv0.weight", "norm5.weight", "norm5.num_batches_tracked", "classifier.weight"}
    weights = {"features.conv0.weight": 0, "features.norm5.weight": 1, "classifier.weight": 2}
    assert fit_to(weights, known, needed=known).keys() == known - {"norm5.num_batches_tracked"}
    assert fit_to({"conv0.weight": 0}, known, needed=["conv0.weight"]) == {"conv0.weight": 0}
    with pytest.raises(ValueError, match=r"lack 1 entries this network needs, .* 'norm5.weight'"):
        fit_to({"conv0.weight": 0}, known, needed=known)
    with pytest.raises(
        ValueError, match=r"hold 1 entries .* not have, the first is 'layer1.weight'"
    ):
        fit_to({**weights, "layer1.weight": 0}, known, needed=known)


# ------------------------------------------------------------------------------ reading


def tiny_state():
    torch.manual_seed(0)
    return DenseNet(DenseNetSpec(**TINY), num_classes=2).state_dict()


@pytest.mark.parametrize("form", ["torch", "legacy torch", "safetensors", "state_dict", "model"])
def test_weights_come_back_as_saved(tmp_path, form):
    state = tiny_state()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form in ("state_dict", "model"):
        torch.save({form: state, "epoch": 3, "names": ["a"]}, path)
        assert read_checkpoint(path)["epoch"] == 3
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "harmful.pth", tmp_path / "ran"
    torch.save({"state_dict": tiny_state(), "extra": Harmful(trace)}, path)
    with pytest.raises(CheckpointError, match=r"harmful.pth: it holds a pickled \S*open, and .*"):
        read_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file must be one that could have run code"


def test_whole_modules_are_refused_with_a_way_out(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), path)
    message = r"pickled \S*Sequential, .*torch.save\(model.state_dict\(\), ...\)"
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


def test_whole_modules_of_unknown_classes_are_refused_too(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(DenseNet(DenseNetSpec(**TINY)), path)
    with pytest.raises(CheckpointError, match="pickled densenet_backbones"):
        read_state_dict(path)


def write_scripted(path):
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), path)


WRITERS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not weights"),
    "cut": lambda path: (torch.save(tiny_state(), path), path.write_bytes(path.read_bytes()[:900])),
    "scripted": write_scripted,
    "zip": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WRITERS)
def test_unreadable_files_are_named(tmp_path, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    WRITERS[kind](path)
    with pytest.raises(CheckpointError, match=f"weights{suffix}: it "):
        read_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: there is no such file"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds no weights but a list"),
        ({}, "it holds no weights but a dict"),
        ({"epoch": 3, "weight": torch.ones(1)}, "entry 'epoch' is a int where a tensor is needed"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "content.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)
