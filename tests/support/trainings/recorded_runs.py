"""Training commands run without their reports, and what they trained on, for tests of resuming."""

import csv
import os
import signal

import lightning.pytorch as pl
import pytest
from tiny_runs import differences, signals_as_before

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import engine, running

EPOCHS, STEPS = 3, 3  # steps an epoch


class Recorder(pl.Callback):
    """In the place of the pictures: notes what is trained on, and stops the run where asked."""

    def __init__(self, stop=None):
        self.seen = {}  # (epoch, batch) -> what the batch was
        self.stop = tuple(stop) if stop else None  # hook, count of its calls, what to do then
        self.calls = {}

    def annotation_of(self, sample):
        return sample.boxes.tolist()

    def _at(self, hook):
        self.calls[hook] = self.calls.get(hook, 0) + 1
        if self.stop and self.stop[:2] == (hook, self.calls[hook]):
            self.stop[2]()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        key = trainer.current_epoch, batch_idx
        assert key not in self.seen
        self.seen[key] = [(s.image_id, int(s.image.sum()), self.annotation_of(s)) for s in batch]
        self._at("train_batch_start")

    def on_train_epoch_start(self, trainer, pl_module):
        self._at("train_epoch_start")

    def on_validation_batch_end(self, *args):
        self._at("validation_batch_end")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def recorded(command, arguments, recorder):
    """Run a training command without its report: (exit code or None, what was trained on)."""
    with pytest.MonkeyPatch.context() as patch, signals_as_before():
        patch.setattr(running.report, "report_results", lambda *args: None)
        patch.setattr(engine, "TrainingPictures", lambda folder: recorder)
        patch.setattr(engine, "EpochLines", lambda clock: pl.Callback())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command(arguments)
        except SystemExit as end:
            return end.code, recorder.seen
    return None, recorder.seen


def last(folder, averaged=True):
    """The parts of a run's last checkpoint that decide how it goes on."""
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    wanted = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops")
    wanted += ("current_model_state", "averaging_state") if averaged else ()
    assert set(wanted) <= set(state)
    return {name: state[name] for name in wanted}


def metrics(folder):
    """Rows of metrics.csv without empty cells, as written."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def assert_goes_on(train, whole, folder, hook, calls, end, expected_code, steps):
    """A run that is stopped and resumed sees and computes what a whole one did.

    Args:
        train: Runs a training in a folder: returns exit code and what was trained on.
        whole: Folder of the whole run, and what it was trained on.
        folder: Of the run that is stopped.
        hook: Where it is stopped.
        calls: How manieth call of the hook that is.
        end: What is done there.
        expected_code: Exit code of the stopped run.
        steps: Number of steps that it has done.
    """
    whole_folder, whole_seen = whole
    code, seen = train(folder, stop=(hook, calls, end))
    assert code == expected_code
    assert last(folder)["global_step"] == len(seen) == steps
    code, more = train(folder, "--resume")
    assert code is None
    assert not set(seen) & set(more)
    assert {**seen, **more} == whole_seen
    assert differences(last(folder), last(whole_folder)) == []
    assert metrics(folder) == metrics(whole_folder)
