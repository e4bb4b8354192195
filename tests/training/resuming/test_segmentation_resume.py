"""A segmentation training that is stopped and resumed equals one never stopped, bit for bit."""

import pytest
from long_cases import first_now
from recorded_runs import (
    EPOCHS,
    STEPS,
    Recorder,
    assert_goes_on,
    interrupt,
    last,
    metrics,
    recorded,
    terminate,
)
from tiny_runs import differences, files_below
from tiny_segmenters import segmentation_arguments

from densenet_backbones.heads import SegmentationLoss
from densenet_backbones.training import cli

pytestmark = pytest.mark.usefixtures("empty_figures")


class MaskRecorder(Recorder):
    """Notes images and masks."""

    def annotation_of(self, sample):
        return int(sample.mask.sum())


@pytest.fixture(scope="module")
def train(tiny_masks):
    """Runs `train_seg` without its report: returns (exit code or None, what was trained on)."""

    def run(folder, *more, stop=None):
        # Class weights are a buffer of the loss, dropout a random choice inside the model; the
        # optimizer is the quick start's.
        weighed = ("--model.loss.class_weights", "median_frequency")
        dropped = ("--model.args.backbone_kwargs.drop_rate", "0.2")
        muon = ("--model.optimizer.name", "muon")
        options = (*weighed, *dropped, *muon, *more, "--run-dir", str(folder))
        arguments = segmentation_arguments(tiny_masks, *options, epochs=EPOCHS)
        return recorded(cli.train_seg, arguments, MaskRecorder(stop))

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
    "in an evaluation": ("validation_batch_end", 3, terminate, 143, 6),
}


@pytest.mark.parametrize("name", first_now(STOPS))
def test_a_resumed_run_equals_one_never_stopped(name, train, whole, tmp_path):
    assert_goes_on(train, whole, tmp_path / "run", *STOPS[name])


@pytest.mark.long
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_same_seed_gives_the_same_bits(workers, train, whole, tmp_path):
    whole_folder, whole_seen = whole
    code, seen = train(tmp_path / "again", "--data.num_workers", workers)
    assert code is None and seen == whole_seen
    assert differences(last(tmp_path / "again"), last(whole_folder)) == []
    assert metrics(tmp_path / "again") == metrics(whole_folder)


def test_another_model_is_refused_before_anything_is_written(train, whole, capsys):
    before = files_below(whole[0])
    for other, what in (
        (("--model.segmenter", "fcdensenet56", "--model.args", "{}"), "the segmenter's name was"),
        (("--model.args.attention", "true"), "the segmenter's args was"),
    ):
        code, _ = train(whole[0], "--resume", *other)
        assert code == 2
        assert what in capsys.readouterr().err
    assert files_below(whole[0]) == before


def test_a_loss_that_is_not_finite_names_the_images(train, tmp_path, monkeypatch, capsys):
    forward = SegmentationLoss.forward
    calls = []

    def broken(self, *args):
        calls.append(1)
        found = forward(self, *args)
        return {**found, "cross_entropy": found["cross_entropy"] / (len(calls) != 2)}

    monkeypatch.setattr(SegmentationLoss, "forward", broken)
    code, seen = train(tmp_path)
    assert code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 1 " in message and "cross_entropy inf" in message
    assert "look at these images' masks" in message
    assert all(f"train_{image_id:06d}.jpg" in message for image_id, *_ in seen[0, 1])
