"""Training by a call: the same words, bits and refusals as on the command line."""

import json

import pytest
import torch
from tiny_runs import DETECTOR_ARGS, signals_as_before

import densenet_backbones
from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.command.calling import OF_TERMINALS, make_words
from densenet_backbones.command.training import make_parser

pytestmark = pytest.mark.usefixtures("empty_figures")


# `tiny_runs.training_arguments` as keywords.
OPTIONS = {
    "config": "quickstart",
    "epochs": 2,
    "batch_size": 4,
    "ema_decay": 0.9,
    "model": {
        "detector": "dsod_tiny",
        "args": DETECTOR_ARGS,
        "optimizer": {"name": "adamw", "lr": 0.01, "base_batch": 0},
        "schedule": {"name": "cosine", "warmup": 0.1},
    },
    "data.augmentation": "light",
    "data.num_workers": 0,
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "precision": "32-true",
        "accumulate_grad_batches": 1,
    },
}


@pytest.fixture(autouse=True)
def as_before():
    with signals_as_before():
        yield


def test_a_call_trains_the_bits_of_the_command_line(tiny_run, tiny_scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = densenet_backbones.train(tiny_scenes, **OPTIONS)
    assert result.folder.resolve() == tmp_path / "runs/quickstart"
    typed_file = tiny_run / "model.safetensors"
    typed = read_state_dict(typed_file)
    called = read_state_dict(result.model_file)
    assert typed.keys() == called.keys()
    assert all(torch.equal(typed[name], called[name]) for name in typed)
    metrics = json.loads((tiny_run / "evaluation/metrics.json").read_text())
    assert result.numbers == metrics["coco"]["numbers"] and "AP50" in result.numbers
    assert result.model().categories.names == densenet_backbones.load(typed_file).categories.names


def test_a_dry_run_has_a_folder_to_be_and_no_model(tiny_scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = densenet_backbones.train(tiny_scenes, dry_run=True, run_dir="a", **OPTIONS)
    assert not result.numbers and result.folder.name == "a" and not result.folder.exists()
    with pytest.raises(CheckpointError, match="there is no such file"):
        result.model()


def test_every_flag_is_a_keyword():
    flags = [a for a in make_parser()._actions if a.dest not in OF_TERMINALS]
    values = {a.dest: True if a.nargs == 0 else (a.choices or ["5"])[0] for a in flags}
    known, rest = make_parser().parse_known_args(make_words(values))
    assert rest == []
    assert all(getattr(known, a.dest) not in (None, False, []) for a in flags)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epoch": 3}, "did you mean"),
        ({"dry_run": "yes"}, "dry_run must be True or False"),
        ({"print_config": ""}, "print_config is for the command line alone"),
        ({"task": "detecting"}, "detecting"),
        ({"config": "quickstrt"}, "did you mean 'quickstart'"),
        ({"data": "nowhere"}, "nowhere"),
        ({"batch_size": "many"}, "batch_size"),
        ({"model": {"detector": "dsod_tinny"}}, "dsod_tinny"),
        ({"model": {"detectr": "dsod_tiny"}}, "did you mean"),
    ],
)
def test_refusals_are_raised(options, sentence, tiny_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        densenet_backbones.train(**{"data": tiny_scenes, **options})
    assert sentence in str(error.value) and "error: " not in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
