import json
import re
import sys

import pytest
import torch

from densenet_backbones.benchmark import contenders
from densenet_backbones.benchmark.command import main
from densenet_backbones.benchmark.contenders import compile_nets
from densenet_backbones.benchmark.inference import (
    _Bounds,
    _build_table,
    _Checked,
    _choose_bounds,
    _compare_maps,
    compare_inference,
    parse_input,
)
from densenet_backbones.benchmark.measuring import Timing


@pytest.mark.long
def test_inference_of_all_libraries_is_compared(capsys, tmp_path):
    file = tmp_path / "times.json"
    assert main(["inference", "--inputs", "2x64", "--turns", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    names = ["timm in onnxruntime", "timm", "torchvision", "smp", "ours", "ours deployed"]
    assert re.findall(r"^(\S[\w ]+?)  +[\d.]+ ", printed, re.M) == names
    (table,) = json.loads(file.read_text())["tables"]
    assert [row[""] for row in table["rows"]] == names
    deployed = table["rows"][-1]
    assert deployed["time / ours deployed"] == [1.0]
    assert deployed["us an image"] == pytest.approx(1e3 * deployed["ms"][0] / 2)
    assert all(0 <= row["error"] < 1e-4 for row in table["rows"])


def test_inference_in_bfloat16_without_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.encoders", None)
    assert main(["inference", "--inputs", "1x64", "--turns", "1", "--precision", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "smp: not measured, segmentation_models_pytorch is not installed" in printed
    assert "timm in onnxruntime" not in printed  # it has float32 alone


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        (torch.tensor([1.0, 1.01, 1.0]), "differs by 1.0e-02 at most"),  # at one place
        (torch.full((3,), 1.002), "and 2.0e-03 of the norm"),  # a little everywhere
        (torch.full((3,), float("nan")), "differs by nan"),
    ],
)
def test_contenders_that_disagree_are_not_timed(last, shown):
    bounds = _Bounds(largest=5e-3, error=1e-3 if "norm" in shown else 1.0)
    with pytest.raises(RuntimeError, match=shown):
        _compare_maps("timm", last, torch.ones(3), bounds)


def test_bounds_follow_the_bits_of_products():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    exact, tf32 = _choose_bounds(torch.float32, cpu, 1e-2), _choose_bounds(torch.float32, gpu, 1e-3)
    bf16 = _choose_bounds(torch.bfloat16, cpu, 1e-2)
    assert exact == _Bounds(1e-4, 1e-4)  # whatever timm's own
    assert tf32.error == pytest.approx(1.5e-3 + 2**-12)
    assert bf16.error == pytest.approx(1.5e-2 + 2**-9)
    assert exact.largest < tf32.largest < bf16.largest


def test_a_net_that_computes_something_else_is_not_timed(monkeypatch):
    real = contenders.deploy

    def doubled(net):
        deployed = real(net)
        deployed.relu5.register_forward_hook(lambda module, inputs, x: 2 * x)
        return deployed

    monkeypatch.setattr(contenders, "deploy", doubled)
    options = {"turns": 1, "repeats": 1, "device": torch.device("cpu"), "dtype": torch.bfloat16}
    with pytest.raises(RuntimeError, match=r"ours deployed differs by .* cannot be compared"):
        compare_inference("densenet121", (1, 3, 64, 64), **options)


def test_times_beside_the_floor_of_a_gpu():
    timings = (Timing("timm", (4e-3, 2e-3, 2e-3)), Timing("ours deployed", (1e-3, 2e-3, 1e-3)))
    checked = dict.fromkeys(("timm", "ours deployed"), _Checked(1e-2, 2e-2, 3.0))
    table = _build_table("", timings, checked, batch=4, floor=5e-4, note="")
    assert table.column("us an image") == pytest.approx([500, 250])
    assert table.column("time / floor") == pytest.approx([4, 2])
    assert table.column("time / ours deployed")[0] == pytest.approx((4, 1, 2))


def test_on_a_gpu_the_deployed_net_is_compiled_too():
    nets = {"timm": torch.nn.ReLU(), "ours deployed": torch.nn.ReLU()}
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compile_nets(nets, cpu, requested=False) == {}
    assert list(compile_nets(nets, gpu, requested=False)) == ["ours deployed, compiled"]
    both = ["timm, compiled", "ours deployed, compiled"]
    assert list(compile_nets(nets, cpu, requested=True)) == both
    assert list(compile_nets(nets, gpu, requested=True)) == both


@pytest.mark.parametrize("given", ["1x224", "2x800x1344"])
def test_sides_of_inputs(given):
    batch, channels, *sides = parse_input(given)
    assert (batch, channels, *sides) == ((1, 3, 224, 224) if given[0] == "1" else (2, 3, 800, 1344))


@pytest.mark.parametrize("given", ["224", "0x224", "1x31", "1x224x224x224", "1x-64"])
def test_inputs_are_typed_as_batch_and_side(given, capsys):
    with pytest.raises(SystemExit):
        main(["inference", "--inputs", given])
    assert "must be like 1x224" in capsys.readouterr().err
