import argparse
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from tiny_nets import TINY
from torch import nn

from densenet_backbones.checkpoints import (
    CheckpointError,
    read_checkpoint,
    read_state_dict,
    to_ours,
)
from densenet_backbones.checkpoints.reading import read_weights_file
from densenet_backbones.densenet import DenseNet, DenseNetSpec


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


# ------------------------------------------------------------------------------ entries


ENTRIES = "state_dict model model_state_dict net weights state_dict_ema model_ema ema module"


@pytest.mark.parametrize("entry", ENTRIES.split())
def test_weights_are_found_under_the_usual_entries(tmp_path, entry):
    path = tmp_path / "run.pth"
    torch.save({"epoch": 3, entry: {"a": torch.ones(2)}, "optimizer": {"state": {}}}, path)
    file = read_weights_file(path)
    assert (file.entry, file.other_entries, list(file.weights)) == (entry, (), ["a"])


def test_entries_may_be_nested_and_chosen(tmp_path):
    path = tmp_path / "run.pth"
    content = {
        "model": {"state_dict": {"a": torch.ones(1)}},
        "state_dict_ema": {"a": torch.zeros(1)},
        "mine": {"a": torch.full((1,), 2.0)},
    }
    torch.save(content, path)
    file = read_weights_file(path)
    assert (file.entry, file.other_entries) == ("model.state_dict", ("state_dict_ema",))
    said = "entry 'model.state_dict' are taken, not the averaged ones of 'state_dict_ema'"
    with pytest.warns(UserWarning, match=said):
        assert read_state_dict(path)["a"] == 1
    assert read_state_dict(path, entry="state_dict_ema")["a"] == 0
    assert read_state_dict(path, entry="mine")["a"] == 2
    assert read_state_dict(path, entry="model.state_dict")["a"] == 1
    with pytest.raises(CheckpointError, match=r"no entry 'ema' in it; its entries are 'model', "):
        read_state_dict(path, entry="ema")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "loop.pth"
    content: dict = {}
    content["model"] = content
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="entry 'model' is a dict where a tensor is needed"):
        read_state_dict(path)


# ------------------------------------------------------------------------------ torch's formats


def test_old_torch_files_of_torchvision_are_read(tmp_path):
    # torchvision's published files: not zipped, dotted names, no counters of batches
    net = torchvision.models.DenseNet(growth_rate=4, block_config=(1, 2), num_init_features=8)
    old = {
        key.replace(".norm1", ".norm.1").replace(".conv2", ".conv.2"): value
        for key, value in net.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    path = tmp_path / "old.pth"
    torch.save(old, path, _use_new_zipfile_serialization=False)
    file = read_weights_file(path)
    assert file.format == "torch (legacy)"
    assert to_ours(file.weights).keys() == {
        key for key in to_ours(net.state_dict()) if not key.endswith("num_batches_tracked")
    }


def test_safetensors_are_known_by_content(tmp_path):
    path = tmp_path / "blob"
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    assert read_weights_file(path).format == "safetensors"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_with_a_way_out(tmp_path, recwarn):
    path = tmp_path / "net.pt"
    write_scripted(path)
    with pytest.raises(CheckpointError, match=r"TorchScript archive, .*torch\.jit\.load\(file\)"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_options_and_numpy_numbers_of_training_programs_are_read(tmp_path, zipped):
    path = tmp_path / "run.pth"
    numbers = {"f8": np.float64(0.25), "f2": np.float16(0.5), "i8": np.int64(-3), "b": np.True_}
    options = argparse.Namespace(lr=0.1, model="densenet121", scales=[np.float32(2)])
    content = {"state_dict": {"a": torch.ones(1)}, "args": options, **numbers}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert {key: read[key] for key in numbers} == {"f8": 0.25, "f2": 0.5, "i8": -3, "b": True}
    assert all(type(read[key]) in (float, int, bool) for key in numbers)
    assert vars(read["args"]) == {"lr": 0.1, "model": "densenet121", "scales": [2.0]}
    assert read_state_dict(path)["a"] == 1


def test_reading_leaves_no_class_allowed_behind(tmp_path):
    path = tmp_path / "run.pth"
    torch.save({"args": argparse.Namespace(a=1), "n": np.float64(1)}, path)
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before


def test_code_inside_options_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "harmful.pth", tmp_path / "ran"
    torch.save({"args": argparse.Namespace(hook=Harmful(trace))}, path)
    with pytest.raises(CheckpointError, match=r"it holds a pickled \S*open"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "value", [np.zeros(2), np.str_("a"), np.datetime64("2020-01-01")], ids=["array", "text", "date"]
)
def test_other_numpy_values_are_refused(tmp_path, value):
    path = tmp_path / "run.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "scores": value}, path)
    with pytest.raises(CheckpointError, match=r"run\.pth: it "):
        read_checkpoint(path)


def test_python_2_files_are_read(tmp_path):
    # Python 2 wrote its strings, NumPy's bytes among them, as SHORT_BINSTRING.
    path = tmp_path / "old.pth"
    content = {"a": torch.ones(1), "note": "\xe9"}
    torch.save({"state_dict": content}, path, _use_new_zipfile_serialization=False)
    unicode, short = b"X\x02\x00\x00\x00\xc3\xa9", b"U\x01\xe9"
    assert path.read_bytes().count(unicode) == 1
    path.write_bytes(path.read_bytes().replace(unicode, short))
    assert read_checkpoint(path)["state_dict"]["note"] == "\xe9"
