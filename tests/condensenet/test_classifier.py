"""A CondenseNet trained by the command of classifiers: its stages, resumed in their middle."""

import json
import math
import re

import pytest
from recorded_runs import Recorder, assert_goes_on, interrupt, recorded
from tiny_classifiers import classification_arguments, write_folders

from densenet_backbones import load
from densenet_backbones.checkpoints import read_state_dict
from densenet_backbones.condensenet import find_learned_groups
from densenet_backbones.training import cli

EPOCHS, STEPS = 3, 3
NET = {"growth_rate": 4, "block_config": [1, 1, 1], "num_init_features": 8, "image_size": 16}


class LabelRecorder(Recorder):
    """Notes images and labels."""

    def annotation_of(self, sample):
        return int(sample.labels[0])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs `train_cls` without its report: returns (exit code or None, what was trained on)."""
    data = write_folders(tmp_path_factory.mktemp("labelled") / "data", count=4 * STEPS // 3)
    kind = ("--model.classifier", "condensenet50_cifar", "--model.args", json.dumps(NET))

    def run(folder, *more, stop=None):
        options = (*kind, *more, "--run-dir", str(folder))
        arguments = classification_arguments(data, *options, epochs=EPOCHS)
        return recorded(cli.train_cls, arguments, LabelRecorder(stop))

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("condensed") / "whole"
    code, seen = train(folder)
    assert code is None
    return folder, seen


def test_a_classifier_is_condensed_over_half_of_its_training(whole):
    folder, _ = whole
    steps = re.findall(r"dropped inputs at step (\d+)\.", (folder / "log.txt").read_text())
    assert list(map(int, steps)) == [math.ceil(EPOCHS * STEPS * part / 6) for part in (1, 2, 3)]
    weights = read_state_dict(folder / "checkpoints" / "last.ckpt")
    stages = [int(value) for name, value in weights.items() if name.endswith("conv1.stage")]
    assert len(stages) == 3 and set(stages) == {3}  # C - 1
    layers = find_learned_groups(load(folder / "checkpoints" / "last.ckpt").model)
    assert [float(layer.mask.float().mean()) for layer in layers] == [0.25] * 3


def test_a_classifier_stopped_in_mid_condensation_goes_on_bit_for_bit(train, whole, tmp_path):
    assert_goes_on(train, whole, tmp_path / "run", "train_batch_start", 4, interrupt, 130, 4)
