"""A run that is stopped and resumed equals one that was never stopped, bit for bit."""

import csv
import os
import signal

import lightning.pytorch as pl
import pytest

from tiny_runs import differences, signals_as_before, training_arguments

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import cli

EPOCHS, STEPS = 3, 3  # steps an epoch


class Recorder(pl.Callback):
    """In the place of the pictures: notes what is trained on, and stops the run where asked."""

    def __init__(self, stop=None):
        self.seen = {}  # (epoch, batch) -> what the batch was
        self.stop = tuple(stop) if stop else None  # hook, count of its calls, what to do then
        self.calls = {}

    def _at(self, hook):
        self.calls[hook] = self.calls.get(hook, 0) + 1
        if self.stop and self.stop[:2] == (hook, self.calls[hook]):
            self.stop[2]()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        key = trainer.current_epoch, batch_idx
        assert key not in self.seen
        self.seen[key] = [(s.image_id, int(s.image.sum()), s.boxes.tolist()) for s in batch]
        self._at("train_batch_start")

    def on_train_epoch_start(self, trainer, pl_module):
        self._at("train_epoch_start")

    def on_validation_batch_end(self, *args):
        self._at("validation_batch_end")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def train(tiny_scenes):
    """Runs `train_det` without its report: returns (exit code or None, what was trained on)."""

    def run(folder, *more, stop=None, epochs=EPOCHS):
        recorder = Recorder(stop)
        with pytest.MonkeyPatch.context() as patch, signals_as_before():
            patch.setattr(cli.report, "after_training", lambda *args: None)
            patch.setattr(cli, "TrainingPictures", lambda folder: recorder)
            patch.setattr(cli, "EpochLines", pl.Callback)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            arguments = training_arguments(tiny_scenes, *more, epochs=epochs)
            try:
                cli.train_det([*arguments, "--run-dir", str(folder)])
            except SystemExit as end:
                return end.code, recorder.seen
        return None, recorder.seen

    return run


def last(folder):
    """The parts of a run's last checkpoint that decide how it goes on."""
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    wanted = ("epoch", "global_step", "state_dict", "current_model_state", "averaging_state")
    wanted += ("optimizer_states", "lr_schedulers", "loops")
    assert set(wanted) <= set(state)
    return {name: state[name] for name in wanted}


def metrics(folder):
    """Rows of metrics.csv without empty cells, as written."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run that was never stopped, and what it trained on: the reference."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    code, seen = train(folder)
    assert code is None and sorted(seen) == [(e, b) for e in range(EPOCHS) for b in range(STEPS)]
    return folder, seen


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


# hook, count of its calls, what happens there; exit code; steps in last.ckpt
STOPS = {
    "ctrl-c in a step": ("train_batch_start", 5, interrupt, 130, 5),
    "sigterm in a step": ("train_batch_start", 4, terminate, 143, 4),
    "in the last step of an epoch": ("train_batch_start", 3, terminate, 143, 3),
    "between epochs": ("train_epoch_start", 3, interrupt, 130, 6),
    "in an evaluation": ("validation_batch_end", 3, interrupt, 130, 6),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_resumed_run_equals_one_never_stopped(name, train, whole, tmp_path):
    whole_folder, whole_seen = whole
    *stop, expected_code, steps = STOPS[name]
    folder = tmp_path / "run"
    code, seen = train(folder, stop=stop)
    assert code == expected_code
    assert last(folder)["global_step"] == len(seen) == steps
    code, more = train(folder, "--resume")
    assert code is None
    assert not set(seen) & set(more)
    assert {**seen, **more} == whole_seen
    assert differences(last(folder), last(whole_folder)) == []
    assert metrics(folder) == metrics(whole_folder)
