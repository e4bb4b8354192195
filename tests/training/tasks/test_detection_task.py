"""Rates, decay and averages against arithmetic by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tiny_runs import DETECTOR_ARGS, PYRAMID_ARGS
from torch import nn

from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.training.callbacks import EMA
from densenet_backbones.training.optimization import Optimizer, Schedule, count_images_per_step
from densenet_backbones.training.tasks.detection import DetectionTask

CATEGORIES = Categories(("dog", "cat"), (7, 3))


def tiny_task(**options):
    return DetectionTask("dsod_tiny", DETECTOR_ARGS, categories=CATEGORIES, **options)


def rates(schedule, steps, top=2.0):
    """The optimizer's rate at each step of a run, as training sees it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=top)
    scheduler = schedule.build(optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_schedule_divides_at_its_fractions():
    found = rates(Schedule("step", [0.25, 0.5], gamma=0.1, warmup=0), 8)
    assert found == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02, 0.02, 0.02])


def test_cosine_schedule_falls_to_zero():
    found = rates(Schedule("cosine", warmup=0), 4)
    assert found == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])


def test_poly_schedule_has_power_nine_tenths():
    found = rates(Schedule("poly", warmup=0), 4)
    assert found == pytest.approx([2, 2 * 0.75**0.9, 2 * 0.5**0.9, 2 * 0.25**0.9])


@pytest.mark.parametrize("name", ["step", "cosine", "poly", "constant"])
def test_warm_up_rises_in_a_line_from_a_thousandth(name):
    found = rates(Schedule(name, [0.9], warmup=0.4), 10)
    rise = [2 * (0.001 + 0.999 * step / 4) for step in range(4)]
    assert found[:5] == pytest.approx([*rise, 2])
    assert all(later <= 2 for later in found[5:])


def test_constant_schedule_stays():
    assert rates(Schedule("constant", warmup=0), 5) == [2.0] * 5


def test_after_warm_up_the_fractions_are_those_of_the_whole_run():
    found = rates(Schedule("step", [0.5], gamma=0.5, warmup=0.2), 10)
    assert found[2:] == pytest.approx([2, 2, 2, 1, 1, 1, 1, 1])
    found = rates(Schedule("cosine", warmup=0.2), 10)
    assert found[6] == pytest.approx(1)  # half of the eight steps after warm-up


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["step", "cosine", "poly", "constant"])
def test_very_short_runs_have_a_rate(name, steps):
    found = [Schedule(name, warmup=0.5).factor(step, steps) for step in range(steps + 2)]
    assert all(0 <= factor <= 1 for factor in found)


def test_a_restored_schedule_follows_the_options_of_now():
    parameter = nn.Parameter(torch.zeros(1))
    before = torch.optim.SGD([parameter], lr=2.0)
    state = Schedule("cosine", warmup=0).build(before, 4).state_dict() | {"last_epoch": 2}
    now = torch.optim.SGD([parameter], lr=3.0)
    scheduler = Schedule("cosine", warmup=0).build(now, 8)
    now.load_state_dict(before.state_dict())
    scheduler.load_state_dict(state)
    assert now.param_groups[0]["lr"] == pytest.approx(3 * (1 + math.sqrt(0.5)) / 2)
    now.step()
    scheduler.step()
    assert now.param_groups[0]["lr"] == pytest.approx(3 * (1 + math.cos(math.pi * 3 / 8)) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": [0.5, 0.2]}, r"rising fractions in \(0, 1\), got \[0.5, 0.2\]"),
        ({"milestones": [0.5, 1.0]}, r"rising fractions in \(0, 1\)"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamv"}, "there is no 'adamv'; did you mean 'adam"),
        ({"lr": -1.0}, "optimizer.lr must be at least 0 and finite, got -1.0"),
        ({"lr": math.nan}, "optimizer.lr must be at least 0 and finite, got nan"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay must be at least 0"),
    ],
)
def test_impossible_optimizers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(**options)


def test_the_rate_is_scaled_to_the_images_behind_a_step():
    data, trainer = SimpleNamespace(batch=4), SimpleNamespace(world_size=2)
    trainer.accumulate_grad_batches = 3
    assert count_images_per_step(data, trainer) == 24
    assert Optimizer(lr=0.1, base_batch=128).scale_lr(24) == pytest.approx(0.1 * 24 / 128)
    assert Optimizer(lr=0.1, base_batch=128).scale_lr(128) == 0.1
    assert Optimizer(lr=0.1, base_batch=0).scale_lr(24) == 0.1


def test_weight_decay_and_rate_reach_the_optimizer():
    options = Optimizer("adamw", lr=0.01, base_batch=8, weight_decay=0.05)
    task = tiny_task(optimizer=options, schedule=Schedule("constant", warmup=0))
    first = next(task.model.backbone.parameters())
    first.requires_grad_(False)
    task.trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch=4),
        world_size=2,
        accumulate_grad_batches=2,
        estimated_stepping_batches=10,
        num_training_batches=4,
        max_steps=-1,
    )
    optimizer = task.configure_optimizers()["optimizer"]
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {g["lr"] for g in optimizer.param_groups} == {0.01 * 16 / 8}
    exempt = task.model.no_weight_decay()
    named = dict(task.model.named_parameters())
    assert exempt and exempt < set(named)
    trained = {name: p for name, p in named.items() if p is not first}
    assert {name: decay[id(p)] for name, p in trained.items()} == {
        name: 0.0 if name in exempt else 0.05 for name in trained
    }
    assert len(decay) == sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)


def test_classical_momentum_of_the_published_schedules():
    """The published detectors were trained with Caffe's SGD, which is not Nesterov's."""
    task = tiny_task(optimizer=Optimizer("momentum", momentum=0.8))
    task.trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch=4),
        world_size=1,
        accumulate_grad_batches=1,
        estimated_stepping_batches=10,
        num_training_batches=4,
        max_steps=-1,
    )
    optimizer = task.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.8, False)


def test_the_detector_is_described_with_its_preprocessing():
    spec = tiny_task().spec.to_dict()
    assert spec["categories"] == {"names": ["dog", "cat"], "ids": [7, 3]}
    assert spec["preprocessing"]["image_size"] == [64, 64]
    assert spec["args"] == DETECTOR_ARGS


class Counter(pl.LightningModule):
    """One weight and one counting buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("statistics", torch.zeros(2))


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9])
def test_the_average_follows_tensorflows_rule(decay):
    module, ema = Counter(), EMA(decay)
    ema.setup(SimpleNamespace(), module, "fit")
    expected = None
    for step, value in enumerate([3.0, -1.0, 5.0, 2.0, 8.0], start=1):
        module.weight.data.fill_(value)
        module.steps.fill_(step)
        module.statistics.fill_(value)
        # n updates were made before; the first one copies
        n = step - 1
        kept = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else kept * expected + (1 - kept) * value
        ema.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)
    average = ema._average_model.module
    assert average.weight.item() == pytest.approx(expected, rel=1e-6)
    assert average.statistics.tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert average.steps.item() == 5  # counters are copied, not averaged


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_impossible_averages_are_refused(decay):
    with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\)"):
        EMA(decay)


def test_one_training_image_is_refused_where_batch_norm_needs_two(tiny_scenes):
    task = tiny_task()
    data = DetectionData(str(tiny_scenes), layout="coco")
    data._sets["train"] = replace(data.train_set, records=data.train_set.records[:1])
    task.trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(DataError, match=r"one training image, and batch norm of .* needs two"):
        task.setup("fit")


def test_the_task_tells_the_data_what_its_detector_takes(tiny_scenes):
    task, data = tiny_task(), DetectionData(str(tiny_scenes), layout="coco")
    task.trainer = SimpleNamespace(datamodule=data)
    task.setup("fit")
    assert data.model_input == ModelInput((64, 64), 64, 64, data.model_input.fill_color)
    assert task.model.transform.resize_in_training


@pytest.mark.parametrize(
    ("augmentation", "stage", "off"),
    [
        ("flip", "fit", False),
        ("lsj", "fit", True),
        ("multiscale", "fit", True),
        ("lsj", "validate", False),
    ],
)
def test_a_detector_leaves_scaling_to_the_augmentation_in_training(augmentation, stage, off):
    args = {**PYRAMID_ARGS, "min_size": [48, 64]}
    task = DetectionTask("fasterrcnn_fpn", args, categories=CATEGORIES)
    data = DetectionData("x", augmentation=augmentation)
    task.trainer = SimpleNamespace(datamodule=data)
    task.setup(stage)
    assert task.model.transform.resize_in_training != off
    assert (data.model_input.size, data.model_input.min_size) == (None, 64)
    assert data.model_input.target_types == ("boxes",)
