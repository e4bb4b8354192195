"""A training goes on only from a state that is finite and whole."""

import math
import re

import pytest
import torch

from densenet_backbones.checkpoints import CheckpointError, read_checkpoint
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.training.resuming.checkpoint_files import read_training_state


def spoil_weights(state):
    first = next(v for v in state["state_dict"].values() if v.is_floating_point())
    first[(0,) * first.ndim] = math.nan


def spoil_moments(state):
    first = next(iter(state["optimizer_states"][0]["state"].values()))
    first["exp_avg"][(0,) * first["exp_avg"].ndim] = math.inf


def empty_moments(state):
    state["optimizer_states"][0]["state"] = {}


def drop_optimizers(state):
    state["optimizer_states"] = []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, r"state_dict: \S+ has 1 value of NaN or infinity"),
        (spoil_moments, r"optimizer_states: 0\.state\.0\.exp_avg has 1 value of NaN"),
        (empty_moments, r"its optimizer's state is empty after \d+ steps"),
        (drop_optimizers, r"its optimizer's state is empty after \d+ steps"),
        (lambda state: state.update(optimizer_states=[3]), "its optimizer_states are not as"),
    ],
)
def test_a_state_that_cannot_go_on_is_refused(tiny_run, tmp_path, spoil, message):
    state = read_checkpoint(tiny_run / "checkpoints/last.ckpt")
    path = tmp_path / "last.ckpt"
    torch.save(state, path)
    read_training_state(path, DetectorSpec.key)
    spoil(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: {message}"):
        read_training_state(path, DetectorSpec.key)
