"""What is planned without computing against what autograd keeps; and the mode chosen from it."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from long_cases import first_now
from tiny_nets import TINY, tiny
from tiny_runs import training_arguments
from tiny_segmenters import segmentation_arguments
from torch import nn

from densenet_backbones.analysis.memory_plan import (
    choose_memory,
    largest_batch,
    plan_memory,
)
from densenet_backbones.benchmark.measuring import measure_saved_bytes
from densenet_backbones.dense_block import MEMORY_MODES, rank_modes
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.heads.segmentation.fcdensenet import FCDenseNet
from densenet_backbones.layers import get_memory, set_memory
from densenet_backbones.training import memory_choice, running
from densenet_backbones.training.cli import train_det, train_seg

pytestmark = pytest.mark.usefixtures("empty_figures")

SMALL_TIRAMISU = {"growth_rate": 4, "block_config": (1, 2, 1), "num_init_features": 8}
MODELS = {
    "features": (lambda: tiny("densenet121_features", features_only=True), 64),
    "classifier": (lambda: tiny("densenet201_features", features_only=False, num_classes=5), 64),
    "cifar": (lambda: tiny("densenet100bc_k12_features", features_only=False), 32),
    "dsod": (lambda: tiny("dsod_features", features_only=True, proj_drop_rate=0.1), 64),
    "fcdensenet": (lambda: FCDenseNet(3, **SMALL_TIRAMISU), 33),
}


def kept_by(net, memory, size, autocast=None):
    """Bytes that a real forward pass keeps."""
    set_memory(net, memory)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        return measure_saved_bytes(net, lambda: net(torch.randn(size)))[0]


@pytest.mark.parametrize(
    ("name", "autocast"),
    [*((name, None) for name in MODELS), *first_now((name, torch.bfloat16) for name in MODELS)],
)
def test_a_plan_is_what_autograd_keeps(name, autocast):
    build, side = MODELS[name]
    net, size = build().train(), (2, 3, side, side)
    plan = plan_memory(net, size, autocast=autocast)
    measured = {memory: kept_by(net, memory, size, autocast) for memory in MEMORY_MODES}
    assert plan.saved_bytes == pytest.approx(measured, rel=0.03 if autocast else 0)
    assert plan.saved_bytes["none"] > plan.saved_bytes["layer"] > plan.saved_bytes["shared_lean"]


@pytest.mark.filterwarnings("ignore:memory='shared' is off")  # what falls back: group norm
def test_what_is_frozen_or_falls_back_is_planned_as_it_runs():
    size = (2, 3, 64, 64)
    frozen = DenseNet(DenseNetSpec(**TINY)).train()
    frozen.freeze(3)
    grouped = DenseNet(DenseNetSpec(**TINY, norm="group", norm_group_size=1)).train()
    for net in (frozen, grouped):
        plan = plan_memory(net, size)
        for memory in ("none", "layer", "shared"):
            assert plan.saved_bytes[memory] == kept_by(net, memory, size)


def test_planning_leaves_the_model_and_the_random_stream_alone():
    net = DenseNet(DenseNetSpec(**TINY, proj_drop_rate=0.1), memory="block").eval()
    net.denseblock2.memory = "layer"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    plan = plan_memory(net, (2, 3, 64, 64), dtype=torch.float64, modes=("none", "block"))
    assert list(plan.saved_bytes) == ["none", "block"]
    single = plan_memory(net, (2, 3, 64, 64), modes=("block",)).saved_bytes["block"]
    assert single < plan.saved_bytes["block"] < 2 * single  # but for the indices of pools
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in net.modules())
    assert (net.denseblock1.memory, net.denseblock2.memory) == ("block", "layer")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_fastest_mode_within_a_budget_is_chosen(monkeypatch):
    monkeypatch.setattr("densenet_backbones.dense_block.native.has_bfloat16_tiles", lambda: False)
    net, size, mixed = DenseNet(DenseNetSpec(**TINY)), (2, 3, 64, 64), torch.bfloat16
    plan = plan_memory(net, size, autocast=mixed)

    def choose(budget):
        memory = choose_memory(net, size, budget, autocast=mixed)
        assert get_memory(net) == memory
        return memory

    assert choose(plan.saved_bytes["none"]) == "none"
    assert choose(plan.saved_bytes["none"] - 1) == "shared"
    assert choose(plan.saved_bytes["shared"] - 1) == "shared_lean"
    with pytest.warns(UserWarning, match="no memory mode fits 0.0 MiB; 'shared_lean' keeps least"):
        assert choose(1) == "shared_lean"
    lines = plan.table().splitlines()
    assert lines[0] == "DenseNet at 2 x 3 x 64 x 64, fastest first"
    assert [line.split()[0] for line in lines[2:]] == list(MEMORY_MODES)
    assert lines[2].split()[1:] == [f"{plan.saved_bytes['none'] / 2**20:.1f}", "1.00"]


@pytest.mark.parametrize("name", ["features", "fcdensenet"])
def test_the_largest_batch_within_a_budget(name):
    build, side = MODELS[name]
    net, image = build(), (3, side, side)
    seven, eight = (plan_memory(net, (batch, *image)).saved_bytes for batch in (7, 8))
    for memory in MEMORY_MODES:
        most = eight[memory] - 1
        assert seven[memory] <= most
        assert largest_batch(net, image, most, memory=memory) == 7
    assert largest_batch(net, image, eight["none"]) == 8
    assert largest_batch(net, image, eight["none"] / 8) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: plan_memory(net, (2, 3, 0, 64)), "input_size must hold integers >= 1"),
        (lambda net: plan_memory(net, modes=("all",)), "modes must be some of"),
        (lambda net: choose_memory(net, (1, 3, 64, 64), 0), "a number of bytes above 0, got 0"),
        (lambda net: choose_memory(nn.ReLU(), (1, 3, 8, 8), 9), "ReLU has no dense blocks"),
        (lambda net: set_memory(net, "auto"), "memory must be one of .* got 'auto'"),
        (lambda net: net.set_memory("auto"), "'auto' is for training tools and .*choose_memory"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(DenseNet(DenseNetSpec(**TINY)))


def test_a_device_whose_plan_ends_the_process_is_refused_where_it_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="here it has none; plan for cuda"):
        plan_memory(nn.ReLU(), (1, 3, 8, 8), device="mps")


# ------------------------------------------------------------------------------ training


@pytest.fixture
def prepared(monkeypatch, tmp_path, capsys):
    """Runs a training up to its first step; returns its task and what was printed."""
    monkeypatch.chdir(tmp_path)
    kept = []
    monkeypatch.setattr(running, "fit", kept.append)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)

    def run(train, arguments):
        train(arguments)
        return kept.pop().model, " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.usefixtures("compiled")
def test_in_the_kernels_one_buffer_is_the_fastest():
    net, size = DenseNet(DenseNetSpec(**TINY)), (2, 3, 64, 64)
    plan = plan_memory(net, size)
    assert list(plan.saved_bytes)[:3] == ["shared", "shared_lean", "none"]
    assert choose_memory(net, size, plan.saved_bytes["none"]) == get_memory(net) == "shared"
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64)):
        assert rank_modes(torch.device(device), dtype) == MEMORY_MODES


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("tiles", [False, True])
def test_in_bfloat16_it_is_so_where_the_processor_multiplies_tiles(tiles, monkeypatch):
    monkeypatch.setattr("densenet_backbones.dense_block.native.has_bfloat16_tiles", lambda: tiles)
    cpu = torch.device("cpu")
    ranked = rank_modes(cpu, torch.float32, torch.bfloat16)
    assert ranked[0] == ("shared" if tiles else "none")
    assert rank_modes(cpu, torch.float32, torch.float16) == MEMORY_MODES


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ((), "shared"),
        (("--trainer.precision", "bf16-true"), "none"),
        (("--model.args.backbone_kwargs", "{norm: group}"), "none"),  # not run in one buffer
        (("--model.args.memory", "none"), "none"),
        (("--memory", "none"), "none"),
    ],
)
@pytest.mark.filterwarnings("error:memory=")
def test_left_out_it_is_the_fastest(prepared, tiny_scenes, words, memory):
    task, out = prepared(train_det, training_arguments(tiny_scenes, *words))
    assert get_memory(task.model) == memory
    assert f"Memory mode {memory}: the backbone of dsod_tiny keeps" in out


def test_the_summary_tells_what_the_mode_keeps(prepared, tiny_scenes):
    task, out = prepared(train_det, training_arguments(tiny_scenes, "--memory", "layer"))
    assert get_memory(task.model) == "layer"
    assert "Memory mode layer: the backbone of dsod_tiny keeps" in out
    assert "for the backward pass of 4 x 3 x 64 x 64;" in out and "Fastest first" not in out


@pytest.mark.usefixtures("compiled")
def test_auto_takes_what_fits_the_budget_of_a_detector(prepared, tiny_scenes):
    budget = ("--memory", "auto", "--model.memory_budget")
    task, out = prepared(train_det, training_arguments(tiny_scenes, *budget, "1"))
    assert task.chosen == get_memory(task.model) == "shared" and "Memory mode shared: the" in out
    assert "the budget is 1.00 GiB, as model.memory_budget says." in out
    task, out = prepared(train_det, training_arguments(tiny_scenes, *budget, "0.00001"))
    assert task.chosen == get_memory(task.model) == "shared_lean"
    assert "No memory mode fits the budget: lower --batch-size" in out


def test_auto_counts_the_whole_segmenter_against_the_free_memory(prepared, tiny_masks, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        memory_choice, "compute_budget", lambda *args: sizes.append(args[1:]) or 2**20
    )
    args = {"num_init_features": 8, "growth_rate": 4, "block_config": [1, 2, 1]}
    arguments = segmentation_arguments(tiny_masks, "--memory", "auto")
    named = ("--model.segmenter", "fcdensenet56", "--model.args", json.dumps(args))
    task, out = prepared(train_seg, [*arguments, *named])
    assert sizes == [(torch.device("cpu"), 1)]
    assert {block.memory for block in task.model.net.blocks_up} == {task.chosen}
    plan = plan_memory(task.model.net, (4, 3, 64, 64))
    assert task.chosen == plan.fastest_within(2**20) != "none"
    assert f"Fastest first: {plan.line()}; the budget is 1.0 MiB, 50% of what is free." in out


def test_processes_run_the_mode_of_the_first_one(prepared, tiny_scenes):
    budget = ("--memory", "auto", "--model.memory_budget", "1")
    task, _ = prepared(train_det, training_arguments(tiny_scenes, *budget))
    first = {task.chosen: "layer", 4: 3}  # what this process chose -> what the first one did
    strategy = SimpleNamespace(broadcast=lambda own: first[own])
    data = SimpleNamespace(batch=4)
    task._trainer = SimpleNamespace(strategy=strategy, datamodule=data)
    task.on_fit_start()
    assert get_memory(task.model) == "layer" and data.batch == 3


def test_a_budget_without_auto_is_refused(tiny_scenes, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, "--model.memory_budget", "1"))
    assert end.value.code == 1
    assert "GiB above 0, for model.memory auto; got 1.0 for None" in capsys.readouterr().err


def test_the_default_budget_leaves_room_for_weights_and_optimiser(monkeypatch):
    monkeypatch.setattr(memory_choice, "_measure_free_ram", lambda: 10_000)
    net = nn.Linear(9, 9)  # 90 values of 4 bytes
    cpu = torch.device("cpu")
    assert memory_choice.compute_budget(net, cpu) == (10_000 - 4 * 360) // 2
    net.bias.requires_grad_(False)
    assert memory_choice.compute_budget(net, cpu, processes=2) == (5_000 - 4 * 324) // 2
    on_meta = nn.Linear(9, 9, device="meta")  # still to be moved there
    assert memory_choice.compute_budget(on_meta, cpu) == (10_000 - 5 * 360) // 2
    monkeypatch.setattr(memory_choice, "_measure_free_ram", lambda: 100)
    assert memory_choice.compute_budget(net, cpu) == 0


def test_free_memory_is_within_the_machine():
    free = memory_choice._measure_free_ram()
    assert 0 < free < 2**45
