"""A classifier's training that is stopped and resumed equals one never stopped, bit for bit."""

import pytest
from long_cases import first_now
from recorded_runs import (
    EPOCHS,
    STEPS,
    Recorder,
    assert_goes_on,
    interrupt,
    recorded,
    terminate,
)
from tiny_classifiers import classification_arguments, write_folders

from densenet_backbones.training import cli

pytestmark = pytest.mark.usefixtures("empty_figures")


class LabelRecorder(Recorder):
    """Notes images and labels."""

    def annotation_of(self, sample):
        return int(sample.labels[0])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Runs `train_cls` without its report: returns (exit code or None, what was trained on)."""
    data = write_folders(tmp_path_factory.mktemp("labelled") / "data", count=4 * STEPS // 3)

    def run(folder, *more, stop=None):
        # Everything of timm that draws by chance, and dropout inside the model.
        mixed = '{"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "erasing": 0.5}'
        random = ("--model.regularization", mixed, "--model.args.proj_drop_rate", "0.2")
        options = (*random, *more, "--run-dir", str(folder))
        arguments = classification_arguments(data, *options, epochs=EPOCHS)
        return recorded(cli.train_cls, arguments, LabelRecorder(stop))

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run that was never stopped, and what it trained on: the reference."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    code, seen = train(folder)
    assert code is None and sorted(seen) == [(e, b) for e in range(EPOCHS) for b in range(STEPS)]
    return folder, seen


# hook, count of its calls, what happens there; exit code; steps in last.ckpt
STOPS = {
    "in the middle of an epoch": ("train_batch_start", 5, interrupt, 130, 5),
    "in the second evaluation": ("validation_batch_end", 5, terminate, 143, 6),
}


@pytest.mark.parametrize("name", first_now(STOPS))
def test_a_resumed_run_equals_one_never_stopped(name, train, whole, tmp_path):
    assert_goes_on(train, whole, tmp_path / "run", *STOPS[name])
