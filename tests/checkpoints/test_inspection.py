"""What ``python -m densenet_backbones.checkpoints`` says of files, and of their statistics."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torchvision
from locations import PROJECT
from torch import nn

from densenet_backbones.checkpoints import CheckpointError, to_ours
from densenet_backbones.checkpoints.__main__ import main
from densenet_backbones.checkpoints.inspection import inspect_file
from densenet_backbones.checkpoints.statistics import TOLERANCE
from densenet_backbones.densenet import DenseNet, DenseNetSpec

BLOCKS = (2, 3, 1)


def trained(steps: int = 3, frozen: tuple[str, ...] = (), **arguments) -> nn.Module:
    """A tiny torchvision net after some steps in train mode."""
    torch.manual_seed(0)
    net = torchvision.models.DenseNet(
        growth_rate=4, block_config=BLOCKS, num_init_features=8, num_classes=3, **arguments
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for name in frozen:
        net.get_submodule(name).eval()
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 64, 64) + step).square().mean().backward()
        optimizer.step()
    return net


def inspected(tmp_path, state, name: str = "weights.pth"):
    torch.save(state, tmp_path / name)
    return inspect_file(tmp_path / name)


def pairs(report) -> dict[int, list[tuple[str, str]]]:
    """Neighbouring norms that differ, by block."""
    short = [[(a, b) for a, b, _ in block.differing] for block in report.blocks]
    return {block.block: found for block, found in zip(report.blocks, short, strict=True) if found}


# ------------------------------------------------------------------------------ statistics


def test_training_in_one_piece_leaves_equal_statistics(tmp_path):
    report = inspected(tmp_path, trained().state_dict())
    assert [block.block for block in report.blocks] == [1, 2, 3]
    assert [(b.mean_difference, b.variance_difference) for b in report.blocks] == [(0, 0)] * 3
    assert list(report.batch_counts) == [3]
    text = "\n".join(report.lines())
    assert "denseblock2: alike in all layers" in text
    assert "3 counted by all norms" in text
    assert "differ" not in text and "NaN" not in text


def test_one_damaged_norm_shows_with_both_neighbours(tmp_path):
    net = trained()
    net.features.denseblock2.denselayer2.norm1.running_mean[5] += 0.1
    report = inspected(tmp_path, net.state_dict())
    layers = [f"denseblock2.denselayer{i}.norm1" for i in (1, 2, 3)]
    assert pairs(report) == {2: [(layers[0], layers[1]), (layers[1], layers[2])]}
    assert [count for *_, count in report.blocks[1].differing] == [1, 1]
    assert report.blocks[1].mean_difference > TOLERANCE
    assert report.blocks[1].variance_difference == 0
    assert f"{layers[1]} and {layers[2]}: 1 channel" in "\n".join(report.lines())


def test_differences_below_the_tolerance_are_no_finding(tmp_path):
    net = trained()
    net.features.denseblock2.denselayer2.norm1.running_var *= 1 + TOLERANCE / 10
    report = inspected(tmp_path, net.state_dict())
    assert pairs(report) == {}
    assert 0 < report.blocks[1].variance_difference < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*")
def test_second_updates_under_naive_checkpointing_show_at_the_transitions(tmp_path):
    # The layers' first norms are all updated twice, so they agree, and the norm behind does not.
    report = inspected(tmp_path, trained(memory_efficient=True).state_dict())
    last = {1: 2, 2: 3, 3: 1}
    behind = {1: "transition1.norm", 2: "transition2.norm", 3: "norm5"}
    assert pairs(report) == {
        i: [(f"denseblock{i}.denselayer{last[i]}.norm1", behind[i])] for i in (1, 2, 3)
    }
    assert {count: len(norms) for count, norms in report.batch_counts.items()} == {6: 6, 3: 10}
    text = "\n".join(report.lines())
    assert "norm1 counted twice the batches of norm2 in 6 layers" in text
    assert "6 counted by 6 norms: denseblock1.denselayer1.norm1" in text


def test_partial_freezing_shows_where_it_ends(tmp_path):
    frozen = ("features.norm0", "features.denseblock1", "features.denseblock2.denselayer1")
    report = inspected(tmp_path, trained(frozen=frozen).state_dict())
    assert pairs(report) == {
        1: [("denseblock1.denselayer2.norm1", "transition1.norm")],
        2: [("denseblock2.denselayer1.norm1", "denseblock2.denselayer2.norm1")],
    }
    assert list(report.batch_counts) == [3, 0]
    assert "twice" not in "\n".join(report.lines())


def test_norms_without_statistics_have_none_to_compare(tmp_path):
    spec = DenseNetSpec(growth_rate=4, block_config=(1, 1), num_init_features=8, norm="group")
    report = inspected(tmp_path, DenseNet(spec).state_dict())
    assert (report.blocks, report.batch_counts) == ((), {})
    assert "statistics  none to compare" in report.lines()


# ------------------------------------------------------------------------------ values


def test_values_that_are_not_finite_are_named_as_saved(tmp_path):
    state = {f"module.{key}": value for key, value in trained().state_dict().items()}
    weight = state["module.features.denseblock1.denselayer2.conv1.weight"]
    weight[0, 0], weight[1, 0] = float("nan"), float("inf")
    state["module.head.weight"] = torch.full((3,), float("-inf"))
    report = inspected(tmp_path, state)
    assert report.non_finite == {
        "module.features.denseblock1.denselayer2.conv1.weight": 2,
        "module.head.weight": 3,
    }
    assert "head.weight: 3 values NaN or infinite" in "\n".join(report.lines())
    assert report.recognized.spec.block_config == BLOCKS


def test_statistics_that_are_not_finite_or_negative(tmp_path):
    net = trained()
    net.features.denseblock1.denselayer1.norm1.running_mean[0] = float("nan")
    net.features.norm5.running_var[:2] = -1
    report = inspected(tmp_path, net.state_dict())
    assert report.non_finite == {"features.denseblock1.denselayer1.norm1.running_mean": 1}
    assert report.negative_variances == {"features.norm5.running_var": 2}
    assert pairs(report).keys() == {3}
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_types_are_looked_at(tmp_path, dtype):
    state = trained().state_dict()
    state["features.conv0.weight"] = state["features.conv0.weight"].to(dtype)
    report = inspected(tmp_path, state)
    assert report.non_finite == {}
    assert report.dtypes[str(dtype).removeprefix("torch.")] == 1
    state["features.conv0.weight"][0, 0, 0, 0] = float("nan")
    assert inspected(tmp_path, state).non_finite == {"features.conv0.weight": 1}


# ------------------------------------------------------------------------------ the file


def test_everything_about_a_training_checkpoint(tmp_path):
    net = trained()
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    state["n_averaged"] = torch.tensor(3)
    report = inspected(tmp_path, {"state_dict": state, "model_ema": state, "epoch": 7})
    path = tmp_path / "weights.pth"
    assert (report.path, report.size) == (str(path), path.stat().st_size)
    assert (report.format, report.entry) == ("torch (zip)", "state_dict")
    assert report.other_entries == ("model_ema",)
    assert (report.prefix, report.outside) == ("module.features.", 1)
    assert report.entries == len(state)
    assert report.parameters == sum(value.numel() for value in net.parameters())
    assert report.dtypes == {
        "float32": sum(v.dtype == torch.float32 for v in state.values()),
        "int64": sum(v.dtype == torch.int64 for v in state.values()),
    }
    assert (report.recognized.classes, report.recognized.complete_to) == (3, "c4")
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert DenseNetSpec.from_dict(values["recognized"]["spec"]) == report.recognized.spec
    assert values["recognized"]["complete_to"] == "c4"
    assert values["blocks"][1]["block"] == 2
    text = "\n".join(report.lines())
    for part in (
        "entry 'state_dict', prefix 'module.features.', 1 tensor outside it; also there: model_ema",
        "growth rate 4, blocks 2-3-1), 3 classes, 3 image channels",
        "pooled     c1 c2 c3 c4",
        f"{report.parameters:,}",
    ):
        assert part in text


def test_missing_and_unexpected_entries_are_listed(tmp_path):
    state = to_ours(trained().state_dict())
    del state["denseblock2.denselayer2.conv1.weight"]
    state |= {f"norm5.extra{i}": torch.ones(1) for i in range(8)}
    lines = inspected(tmp_path, state).lines()
    assert "missing     denseblock2.denselayer2.conv1.weight" in lines
    assert "unexpected  norm5.extra0" in lines
    assert "            and 2 more" in lines


def test_other_networks_are_read_without_an_architecture(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[1].running_var[0] = -1
    report = inspected(tmp_path, net.state_dict())
    assert (report.prefix, report.naming, report.recognized) == (None, None, None)
    assert report.parameters == 3 * 4 * 9 + 4 + 8
    assert report.negative_variances == {"1.running_var": 1}
    assert "network     not recognized: they hold no denseblock1" in report.lines()


def test_two_networks_need_a_prefix(tmp_path):
    state = trained().state_dict()
    both = {f"{who}.{key}": value for who in ("student", "teacher") for key, value in state.items()}
    with pytest.raises(
        CheckpointError, match=r"weights\.pth: .*'student\.features\.' and 'teacher\.features\.'"
    ):
        inspected(tmp_path, both)
    report = inspect_file(tmp_path / "weights.pth", prefix="teacher")
    assert (report.prefix, report.outside) == ("teacher.features.", len(state))


# ------------------------------------------------------------------------------ the command


def run(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "densenet_backbones.checkpoints", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_runs_as_a_module(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(to_ours(trained().state_dict()), path)
    done = run(str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == inspect_file(path).lines()
    assert "ours (torchvision's without features.)" in done.stdout


def test_findings_are_no_failure(tmp_path, capsys):
    state = trained().state_dict()
    state["features.norm0.running_var"][0] = float("nan")
    torch.save(state, tmp_path / "weights.pth")
    assert main([str(tmp_path / "weights.pth"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["non_finite"] == {"features.norm0.running_var": 1}
    assert err == ""


def test_prefix_and_entry_are_passed_on(tmp_path, capsys):
    state = trained().state_dict()
    both = {f"{who}.{key}": value for who in ("a", "b") for key, value in state.items()}
    torch.save({"model": both, "ema": state}, tmp_path / "run.pth")
    assert main([str(tmp_path / "run.pth"), "--prefix", "b"]) == 0
    assert "prefix 'b.features.'" in capsys.readouterr().out
    assert main([str(tmp_path / "run.pth"), "--entry", "ema"]) == 0
    assert "entry 'ema'" in capsys.readouterr().out
    assert main([str(tmp_path / "run.pth")]) == 2
    assert "choose one of them with prefix" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["absent", "text", "module"])
def test_files_that_cannot_be_read_are_one_sentence_and_status_2(tmp_path, capsys, kind):
    path = tmp_path / "weights.pth"
    if kind == "text":
        path.write_text("not weights")
    elif kind == "module":
        torch.save(trained(steps=0), path)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}: ") and err.count("\n") == 1


def test_help_tells_what_the_rows_mean(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--prefix", "--entry", "--json", "statistics", "exit status"):
        assert word in text
