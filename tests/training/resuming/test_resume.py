"""A run that is stopped and resumed equals one that was never stopped, bit for bit."""

import math
import shutil
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import yaml
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
from tiny_runs import differences, files_below, training_arguments

from densenet_backbones.heads.detection.dsod import DSOD
from densenet_backbones.training import callbacks, cli
from densenet_backbones.training.arguments import expand_short_flags
from densenet_backbones.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture(scope="module")
def train(tiny_scenes):
    """Runs `train_det` without its report: returns (exit code or None, what was trained on)."""

    def run(folder, *more, stop=None, epochs=EPOCHS):
        arguments = training_arguments(tiny_scenes, *more, epochs=epochs)
        return recorded(cli.train_det, [*arguments, "--run-dir", str(folder)], Recorder(stop))

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
    "ctrl-c in a step": ("train_batch_start", 5, interrupt, 130, 5),
    "sigterm in a step": ("train_batch_start", 4, terminate, 143, 4),
    "in the last step of an epoch": ("train_batch_start", 3, terminate, 143, 3),
    "between epochs": ("train_epoch_start", 3, interrupt, 130, 6),
    "in an evaluation": ("validation_batch_end", 3, interrupt, 130, 6),
}


@pytest.mark.parametrize("name", first_now(STOPS, 2))
def test_a_resumed_run_equals_one_never_stopped(name, train, whole, tmp_path):
    assert_goes_on(train, whole, tmp_path / "run", *STOPS[name])


def test_workers_change_nothing(train, whole, tmp_path):
    whole_folder, whole_seen = whole
    workers = ("--data.num_workers", "2")
    code, seen = train(tmp_path, *workers, stop=("train_batch_start", 5, terminate))
    assert code == 143
    code, more = train(tmp_path, *workers, "--resume")
    assert code is None
    assert {**seen, **more} == whole_seen
    assert differences(last(tmp_path), last(whole_folder)) == []


@pytest.mark.long
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_same_seed_gives_the_same_bits(workers, train, whole, tmp_path):
    whole_folder, whole_seen = whole
    code, seen = train(tmp_path / "again", "--data.num_workers", workers)
    assert code is None and seen == whole_seen
    assert differences(last(tmp_path / "again"), last(whole_folder)) == []
    assert metrics(tmp_path / "again") == metrics(whole_folder)


def test_a_stop_waits_for_the_whole_optimiser_step(train, tmp_path):
    summed = ("--trainer.accumulate_grad_batches", "2", "--batch-size", "2", "--ema_decay", "null")
    _, whole_seen = train(tmp_path / "whole", *summed, epochs=2)
    code, seen = train(
        tmp_path / "run", *summed, epochs=2, stop=("train_batch_start", 3, terminate)
    )
    assert code == 143
    assert len(seen) == 4  # batches of two whole steps
    code, more = train(tmp_path / "run", *summed, "--resume", epochs=2)
    assert code is None
    assert {**seen, **more} == whole_seen
    assert len(whole_seen) == 2 * 6
    reference = last(tmp_path / "whole", averaged=False)
    assert differences(last(tmp_path / "run", averaged=False), reference) == []
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("save_every", "kept"), [(timedelta(hours=1), STEPS), (timedelta(0), 4)])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    save_every, kept, train, whole, tmp_path, monkeypatch, capsys
):
    """The checkpoint is of the last epoch, or the last interval; never of the broken step."""
    losses, calls = DSOD.losses, []

    def broken(self, *args):
        calls.append(1)
        found = losses(self, *args)
        return {**found, "bbox_regression": found["bbox_regression"] / (len(calls) != 5)}

    monkeypatch.setattr(callbacks, "SAVE_EVERY", save_every)
    monkeypatch.setattr(DSOD, "losses", broken)
    code, seen = train(tmp_path)
    assert code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 4 " in message
    assert "bbox_regression inf" in message
    batch = [image_id for image_id, *_ in seen[1, 1]]
    assert all(f"train_{image_id:06d}.jpg" in message for image_id in batch)
    assert message.count(".jpg") == len(batch)
    assert last(tmp_path)["global_step"] == kept
    monkeypatch.setattr(DSOD, "losses", losses)
    code, _ = train(tmp_path, "--resume")
    assert code is None
    assert differences(last(tmp_path), last(whole[0])) == []
    assert metrics(tmp_path) == metrics(whole[0])  # rows after the checkpoint are not there twice


def test_a_changed_batch_size_is_refused_in_an_epoch_and_writes_nothing(train, tmp_path, capsys):
    train(tmp_path, stop=("train_batch_start", 2, terminate))
    before = files_below(tmp_path / "checkpoints")
    config = (tmp_path / "config.yaml").read_bytes()
    for _ in range(2):  # the refusal must not make the second try pass
        code, seen = train(tmp_path, "--resume", "--batch-size", "3")
        assert code == 1 and not seen
        assert "batch size was 4 when it began and is 3 now; give 4" in capsys.readouterr().err
    assert files_below(tmp_path / "checkpoints") == before
    assert (tmp_path / "config.yaml").read_bytes() == config


def test_other_weights_are_refused_before_anything_is_written(train, whole, capsys):
    before = files_below(whole[0])
    for other, what in (
        (("--model.detector", "dsod300_smallest"), "the detector's name was dsod_tiny"),
        (("--model.args.image_size", "72"), "the detector's args was"),
    ):
        code, _ = train(whole[0], "--resume", *other)
        assert code == 2
        assert what in capsys.readouterr().err
    assert files_below(whole[0]) == before


def test_a_finished_run_can_be_given_more_epochs(train, whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    code, seen = train(tmp_path / "run", "--resume")
    assert code is None and not seen
    assert "has all its epochs already" in capsys.readouterr().out
    code, seen = train(tmp_path / "run", "--resume", epochs=EPOCHS + 1)
    assert code is None and sorted(seen) == [(EPOCHS, b) for b in range(STEPS)]
    rates = [float(row["lr"]) for row in metrics(tmp_path / "run") if "lr" in row]
    assert len(rates) == (EPOCHS + 1) * STEPS
    # steps 9 to 11 of 12, two of which are warm-up: on the longer cosine, from its first step on
    longer = [0.01 * (1 + math.cos(math.pi * step / 10)) / 2 for step in (7, 8, 9)]
    assert rates[9:] == pytest.approx(longer, rel=1e-6)
    assert (tmp_path / "run/config.yaml").read_bytes() == (whole[0] / "config.yaml").read_bytes()
    added = yaml.safe_load((tmp_path / "run/config_from_step_9.yaml").read_text())
    assert added["trainer"]["max_epochs"] == EPOCHS + 1


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_the_last_file_where_the_folder_was_moved(tmp_path):
    _, before, _ = callbacks.make_checkpoint_callbacks(RunFolder(tmp_path / "old"))
    _, moved, _ = callbacks.make_checkpoint_callbacks(RunFolder(tmp_path / "new"))
    before.best_model_path = f"{before.dirpath}/last.ckpt"
    moved.load_state_dict(before.state_dict())
    assert moved.best_model_path == ""


def test_the_best_score_is_kept_where_the_folder_was_moved(tmp_path):
    def best(folder):
        folder.mkdir(exist_ok=True)
        return callbacks.make_checkpoint_callbacks(RunFolder(folder))[0]

    def better(callback, score):
        trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
        return callback.check_monitor_top_k(trainer, torch.tensor(score))

    before = best(tmp_path / "old")
    file = f"{before.dirpath}/best.ckpt"
    before.best_k_models, before.kth_best_model_path = {file: torch.tensor(0.5)}, file
    before.best_model_path, before.best_model_score = file, torch.tensor(0.5)
    moved = best(tmp_path / "new")
    (tmp_path / "new/checkpoints").mkdir()
    torch.save({}, tmp_path / "new/checkpoints/best.ckpt")
    moved.load_state_dict(before.state_dict())
    assert (better(moved, 0.4), better(moved, 0.6)) == (False, True)
    assert moved.best_model_path == str(tmp_path / "new/checkpoints/best.ckpt")
    # a damaged file is replaced by the next weights
    (tmp_path / "new/checkpoints/best.ckpt").write_bytes(b"PK")
    (again := best(tmp_path / "new")).load_state_dict(before.state_dict())
    assert better(again, 0.4)
    elsewhere = best(tmp_path / "fork")  # goes on from a checkpoint, without the best file
    elsewhere.load_state_dict(before.state_dict())
    assert better(elsewhere, 0.4)


def test_without_config_a_resumed_run_takes_its_own(tmp_path):
    def chosen(*argv):
        return next(a for a in expand_short_flags(argv) if a.startswith("--config="))

    argv = ("--run-dir", str(tmp_path), "--resume")
    assert chosen(*argv).endswith("quickstart.yaml")
    for name in ("config.yaml", "config_from_step_9.yaml", "config_from_step_10.yaml"):
        (tmp_path / name).write_text("ema_decay: null\n")
        assert chosen(*argv) == f"--config={tmp_path / name}"
    assert chosen(*argv, "--config", "dsod300_voc").endswith("dsod300_voc.yaml")
    assert chosen("--run-dir", str(tmp_path)).endswith("quickstart.yaml")


def test_nothing_to_resume_is_an_error(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in (("--resume",), ("--ckpt_path", "elsewhere/checkpoints/last.ckpt")):
        code, _ = train(tmp_path / "none", *argv)
        assert code == 2
        assert "nothing to resume: there is no " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_alone_are_nothing_to_go_on_from(train, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "checkpoints" / "last.ckpt")
    code, _ = train(tmp_path, "--resume")
    assert code == 1
    assert "start one from its weights with --init-from" in capsys.readouterr().err
