"""Options that another start of a run may change, and those that its checkpoint cannot serve."""

import shutil

import pytest
import torch
from tiny_runs import training_arguments

from densenet_backbones.training import cli, precision, running
from densenet_backbones.training.optimization import Optimizer, Schedule

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture
def start(tiny_run, tiny_scenes, tmp_path, monkeypatch, capsys):
    """Goes on with a copy of a finished run, up to the training; returns what is said."""

    def run(*more, change=None):
        folder = tmp_path / "run"
        shutil.copytree(tiny_run, folder)
        if change:
            file = folder / "checkpoints" / "last.ckpt"
            state = torch.load(file, weights_only=True)
            change(state)
            torch.save(state, file)
        monkeypatch.setattr(running, "fit", lambda *args: None)
        monkeypatch.setattr(running.report, "report_results", lambda *args: None)
        capsys.readouterr()
        arguments = training_arguments(tiny_scenes, "--run-dir", str(folder), "--resume", *more)
        try:
            cli.train_det(arguments)
        except SystemExit as end:
            assert end.code == 2
            assert not (folder / "config_from_step_6.yaml").exists()  # before anything is written
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return run


def within_an_epoch(state):
    state["DetectionData"]["batches_done"] = 1


def from_before_options_were_kept(state):
    del state["experiment"], state["precision"]


REFUSED = {
    "optimizer": (("--model.optimizer.name", "sgd"), None, "its optimizer is adamw, not sgd"),
    "optimizer of the same options": (
        ("--model.optimizer.name", "adam"),
        None,
        "its optimizer is adamw, not adam",
    ),
    "optimizer, old checkpoint": (
        ("--model.optimizer.name", "sgd"),
        from_before_options_were_kept,
        "its optimizer is another than sgd",
    ),
    "no averages": (("--ema_decay", "null"), None, r"its weights were averaged (ema_decay 0.9)"),
    "accumulation in an epoch": (
        ("--trainer.accumulate_grad_batches", "3"),
        within_an_epoch,
        "in the middle of an epoch with trainer.accumulate_grad_batches 1, now 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_checkpoint_cannot_serve_is_refused_before_the_start(name, start):
    options, change, sentence = REFUSED[name]
    said = start(*options, change=change)
    assert said.startswith("error: cannot go on from ") and sentence in said
    assert "--init-from" in said


ACCEPTED = {
    "weight decay": ("model.optimizer.weight_decay", "0.25", "0.05"),
    "accumulation": ("trainer.accumulate_grad_batches", "3", "1"),
    "averages": ("ema_decay", "0.5", "0.9"),
    "precision": ("trainer.precision", "bf16-mixed", "32-true"),
}


def test_other_options_are_said(start):
    options = [part for name, value, _ in ACCEPTED.values() for part in (f"--{name}", value)]
    said = start(*options)
    for name, now, before in ACCEPTED.values():
        assert f"From here on {name} is {now}; it was {before}." in said
    assert said.count("From here on ") == len(ACCEPTED)


def test_equal_options_are_not_said(start):
    assert "From here on" not in start()


def test_a_checkpoint_without_options_is_taken(start):
    assert "Going on from" in start(change=from_before_options_were_kept)


def test_weight_decay_and_momentum_of_a_start_count():
    net = torch.nn.Conv2d(1, 1, 1)
    net.no_weight_decay = lambda: {"bias"}
    options = {"name": "momentum", "lr": 1.0, "base_batch": 0}

    def make(**more):
        optimizer = Optimizer(**options, **more).build(net, 1)
        return optimizer, Schedule("constant", warmup=0).build(optimizer, 10)

    optimizer, plan = make(weight_decay=0.1, momentum=0.5)
    states = optimizer.state_dict(), plan.state_dict()
    optimizer, plan = make(weight_decay=0.2, momentum=0.7)
    optimizer.load_state_dict(states[0])
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    plan.load_state_dict(states[1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7]


@pytest.mark.parametrize(("before", "now"), [(10, 5), (5, 10), (4, 3)])
def test_the_plan_goes_on_from_the_same_epoch_where_epochs_have_other_steps(before, now):
    """As by another batch, accumulation, or number of processes or images; twice in a row."""

    def make(epoch_steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = Schedule("cosine", warmup=0)
        return optimizer, schedule.build(optimizer, 8 * epoch_steps, epoch_steps=epoch_steps)

    def train(optimizer, plan, steps):
        for _ in range(steps):
            optimizer.step()
            plan.step()
        return plan.get_last_lr()[0]

    expected = [Schedule("cosine", warmup=0).factor(epoch, 8) for epoch in range(9)]
    optimizer, plan = make(before)
    assert train(optimizer, plan, 2 * before) == pytest.approx(expected[2])
    for steps, epoch in ((now, 2), (before, 4), (before, 6)):
        state = plan.state_dict()
        optimizer, plan = make(steps)
        plan.load_state_dict(state)
        assert plan.get_last_lr()[0] == pytest.approx(expected[epoch])
        assert train(optimizer, plan, 2 * steps) == pytest.approx(expected[epoch + 2])


HARDWARE = {
    # GPU there, GPU computes in bfloat16, processor does, accelerator -> chosen
    "server processor": (False, False, True, "auto", "bf16-mixed"),
    "AVX2": (False, False, False, "auto", "32-true"),
    "new GPU": (True, True, False, "auto", "bf16-mixed"),
    "old GPU": (True, False, True, "gpu", "32-true"),
    "processor beside a GPU": (True, True, False, "cpu", "32-true"),
    "another accelerator": (False, False, True, "mps", "32-true"),
}


@pytest.mark.parametrize("name", HARDWARE)
def test_auto_is_what_the_hardware_does_fast(name, monkeypatch):
    gpu, gpu_is_fast, cpu_is_fast, accelerator, chosen = HARDWARE[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_is_fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: cpu_is_fast)
    assert precision.choose_precision("auto", accelerator) == chosen
    assert precision.choose_precision("bf16-mixed", accelerator) == "bf16-mixed"


@pytest.mark.parametrize(
    ("wanted", "slow"), [("bf16-mixed", True), ("16-mixed", True), ("auto", False)]
)
def test_slow_arithmetic_is_said(wanted, slow, monkeypatch, recwarn):
    monkeypatch.setattr(precision, "has_fast_half", lambda: False)
    trainer = precision.PrecisionTrainer(precision=wanted, accelerator="cpu", logger=False)
    chosen = {"auto": "32-true (auto)", "16-mixed": "bf16-mixed"}.get(wanted, wanted)
    assert precision.name_precision(trainer) == chosen
    said = list(precision.remark_on_precision(trainer))
    assert len(said) == slow
    assert all("--trainer.precision auto" in line for line in said)
    monkeypatch.setattr(precision, "has_fast_half", lambda: True)
    assert list(precision.remark_on_precision(trainer)) == []
