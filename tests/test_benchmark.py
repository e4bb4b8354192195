import builtins
import json
import os
import re
from typing import get_args

import pytest
import torch

from densenet_backbones.analysis.benchmark import main
from densenet_backbones.analysis.inference_benchmark import _difference
from densenet_backbones.analysis.input_benchmark import (
    STEP,
    input_table,
    measure,
    pipelines,
    training_step,
)
from densenet_backbones.analysis.memory import peak_bytes, saved_bytes
from densenet_backbones.analysis.timing import Timing, interleave, ratio_table
from densenet_backbones.data.scenes import generate
from densenet_backbones.data.sources import read_detection
from densenet_backbones.dense_block import Memory
from densenet_backbones.heads import dsod_tiny

PIPELINES = ("decode", "decode + ssd", "decode + light", "decode + none")


def test_contenders_take_turns_in_both_orders_and_one_round_is_not_counted():
    ran: list[str] = []
    timings = interleave({name: lambda name=name: ran.append(name) for name in "ab"}, turns=3)
    assert "".join(ran) == "ba" + "ab" + "ba" + "ab"
    assert [(t.name, len(t.seconds)) for t in timings] == [("a", 3), ("b", 3)]


def test_what_a_device_still_does_belongs_to_the_turn():
    waiting: list[str] = []
    order: list[str] = []

    def launch():
        waiting.append("work")

    def synchronize():
        order.append("waited" if waiting else "idle")
        waiting.clear()

    interleave({"a": launch}, 1, synchronize)
    assert order == ["idle", "waited"] * 2


@pytest.mark.parametrize(("contenders", "turns"), [({}, 1), ({"a": lambda: None}, 0)])
def test_nothing_to_time_is_an_error(contenders, turns):
    with pytest.raises(ValueError, match="one or more contenders and turns >= 1"):
        interleave(contenders, turns)


def test_ratios_are_taken_turn_by_turn():
    table = ratio_table([Timing("ours", (1.0, 2.0, 4.0)), Timing("theirs", (2.0, 2.0, 2.0))])
    assert table.splitlines()[2].split() == ["theirs", "2000.00", "1.000", "(0.500", "..", "2.000)"]


def test_inference_of_all_libraries_is_compared(capsys, tmp_path):
    file = tmp_path / "times.json"
    assert main(["inference", "--inputs", "2x64", "--turns", "1", "--json", str(file)]) == 0
    report = capsys.readouterr().out
    names = ["timm in onnxruntime", "timm", "torchvision", "smp", "ours", "ours deployed"]
    assert re.findall(r"^(\S[\w ]+?)  +[\d.]+ ", report, re.M) == names
    assert list(json.loads(file.read_text())["2x64"]) == names
    assert re.search(r"^ours deployed +[\d.]+  1.000 \(1.000 .. 1.000\)", report, re.M)


def test_inference_in_bfloat16(capsys):
    assert main(["inference", "--inputs", "1x64", "--turns", "1", "--precision", "bfloat16"]) == 0
    assert "onnxruntime" not in capsys.readouterr().out


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_contenders_that_disagree_are_not_timed(off):
    with pytest.raises(RuntimeError, match="timm differs by"):
        _difference("timm", torch.ones(2) + off, torch.ones(2), bound=1e-3)


@pytest.mark.parametrize("given", ["224", "0x224", "1x31", "1x224x224"])
def test_inputs_are_typed_as_batch_and_side(given, capsys):
    with pytest.raises(SystemExit):
        main(["inference", "--inputs", given])
    assert "must be like 1x224" in capsys.readouterr().err


def test_memory_modes_beside_torchvisions(capsys):
    assert main(["memory", "--nets", "densenet121", "--size", "64", "--turns", "1"]) == 0
    report = capsys.readouterr().out
    rows = dict(re.findall(r"^(\S+ ?\S+) +([\d.]+) +[\d.]+ +[\d.]+ +\d", report, re.M))
    kept = [float(mebibytes) for mebibytes in rows.values()]
    assert list(rows)[2:] == [f"ours memory={memory}" for memory in get_args(Memory)]
    assert sorted(kept[2:6], reverse=True) == kept[2:6]  # the checkpointing modes, and none
    assert kept[2] <= kept[0] and kept[3] <= kept[1]
    shared, lean = kept[6:]
    assert shared <= 0.5 * kept[1] and lean <= 0.25 * kept[1]
    assert re.findall(r"\.\d +(\d(?: and \d)?)  \d\.", report) == [
        "1",
        "1 and 2",
        *("1" for _ in get_args(Memory)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "densenet264"], "torchvision has no 'densenet264' to compare with"),
        (["--size", "32"], "--size >= 64"),
    ],
)
def test_memory_of_nothing_to_compare(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["memory", *arguments])
    assert message in capsys.readouterr().err


def test_saved_bytes_count_a_storage_once():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(16, 8, requires_grad=True)
    saved, out = saved_bytes(layer, lambda: (layer(x) * layer(x[:8].repeat(2, 1))).sum())
    # x, its repetition, and both outputs; the weight is a parameter
    assert saved == 4 * (16 * 8 * 2 + 16 * 4 * 2) and out.ndim == 0


def test_peak_is_the_most_there_is_at_once():
    kept = []

    def step():
        kept.clear()  # what an earlier step left is not beyond what there was
        first = torch.zeros(1 << 20)
        second = first + 1
        del first
        kept.append(second.sum())

    assert 8 << 20 <= peak_bytes(step, torch.device("cpu")) < 9 << 20


def test_a_detector_on_several_backbones(capsys):
    arguments = (
        "--backbones",
        "resnet18",
        "dsod_smallest_features",
        "--size",
        "64",
        "--turns",
        "1",
    )
    assert main(["detector", *arguments]) == 0
    report = capsys.readouterr().out
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)  \d", report, re.M)
    assert [row[0] for row in rows] == ["resnet18", "dsod_smallest_features"]
    for _, parameters, macs, saved, peak, seconds in rows:
        assert int(parameters.replace(",", "")) > 1_000_000
        assert float(macs) > 0 and float(seconds) > 0
        assert 0 < float(saved) <= float(peak)


def test_table_of_the_input():
    timings = [
        Timing("decode", (0.1, 0.2, 0.4)),  # 10 images: 100, 50 and 25 a second
        Timing("decode + ssd", (4.0, 4.0, 4.0)),
        Timing(STEP, (0.5, 0.5, 2.0)),  # 4 images: 8, 8 and 2 a second
    ]
    rows = [re.split(r"  +", line.strip()) for line in input_table(timings, 10, 4).splitlines()]
    assert rows[1:] == [
        ["decode", "50.0 (25.0 .. 100.0)", "0.080 (0.080 .. 0.160)", "1"],
        ["decode + ssd", "2.5 (2.5 .. 2.5)", "3.200 (0.800 .. 3.200)", "4"],
        [STEP, "8.0 (2.0 .. 8.0)"],
    ]


def test_input_of_drawn_scenes(capsys):
    tiny = ["--detector", "dsod_tiny", "--batch", "2", "--images", "2", "--turns", "1"]
    assert main(["input", *tiny]) == 0
    report = capsys.readouterr().out
    assert "2 images a turn" in report
    assert "input: at 160x160" in report
    for name in (*PIPELINES, STEP):
        assert re.search(rf"^{re.escape(name)} +[\d.]+ \([\d.]+ \.\. [\d.]+\)", report, re.M), name


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("scenes"), train=3, val=1, size=64, progress=False)


def test_input_of_a_folder_with_mixed_precision(scenes):
    options = {"turns": 1, "detector": "dsod_tiny", "batch": 4, "precision": "bf16-mixed"}
    report = measure(str(scenes), "train", images=99, device=torch.device("cpu"), **options)
    assert "3 images a turn" in report  # all there are
    assert "batch 4, bf16-mixed" in report


def test_input_of_real_photographs(shared_data, capsys):
    tiny = ["--detector", "dsod_tiny", "--batch", "2", "--images", "2", "--turns", "1"]
    assert main(["input", *tiny, "--data", str(shared_data / "bccd" / "BCCD")]) == 0
    assert "2 images a turn" in capsys.readouterr().out


def test_each_turn_augments_anew_on_one_core_and_gives_the_cores_back(scenes, monkeypatch):
    found = read_detection(scenes, "train")
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    keys, cores = [], []
    augment = "densenet_backbones.analysis.input_benchmark.Augmentation.__call__"

    def watched(self, image, boxes, labels, key):
        keys.append(key)
        cores.append(len(os.sched_getaffinity(0)) if before else 1)
        return image, boxes, labels

    monkeypatch.setattr(augment, watched)
    steps = pipelines(found, dsod_tiny(num_classes=4))
    assert tuple(steps) == PIPELINES
    for _ in range(2):
        steps["decode + ssd"]()
    assert keys == [(0, epoch, index) for epoch in range(2) for index in range(3)]
    assert set(cores) == {1}
    assert before is None or os.sched_getaffinity(0) == before


def test_the_training_step_trains(scenes):
    found = read_detection(scenes, "train")
    model = dsod_tiny(num_classes=found.categories.num_classes).train()
    before = [p.detach().clone() for p in model.parameters()]
    step = training_step(model, found, 4, "32-true")  # more than there are images
    step()
    after = list(model.parameters())
    assert all(p.grad is not None for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="loss is nan"):
        step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inference", "--net", "resnet18"], "--net must be one of"),
        (["inference", "--inputs", "1x64", "--turns", "0"], "turns >= 1, not 0"),
        (["detector", "--size", "32"], "--size >= 64, not 2 and 32"),
        (["detector", "--detector", "retinanetfpn"], "retinanetfpn"),
        (["detector", "--backbones", "resnet"], "cannot be built on resnet: Unknown model"),
        (
            ["detector", "--detector", "resnet18"],
            "resnet18 cannot be built on densenet121_features",
        ),
        (["input", "--images", "0"], "--images must be >= 1 and --batch >= 2, not 0 and 8"),
        (["input", "--batch", "1"], "--images must be >= 1 and --batch >= 2, not 32 and 1"),
        (["input", "--data", "no/such/folder"], "no/such/folder: is not a folder"),
        (["input", "--images", "1", "--detector", "dsod30"], "no detector is called 'dsod30'"),
        (["input", "--images", "1", "--detector", "resnet18"], "resnet18 has no one size"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_without_the_training_tools_the_input_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "densenet_backbones.analysis.input_benchmark":
            raise ModuleNotFoundError("No module named 'cv2'", name="cv2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SystemExit):
        main(["input"])
    assert "needs cv2: install densenet-backbones[train]" in capsys.readouterr().err
