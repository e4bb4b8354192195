import json
import re
from typing import get_args

import pytest
import torch

from densenet_backbones.benchmark import memory as memory_benchmark
from densenet_backbones.benchmark.command import main
from densenet_backbones.benchmark.measuring import measure_peak_bytes, measure_saved_bytes
from densenet_backbones.benchmark.memory import compare_memory_modes
from densenet_backbones.dense_block import Memory
from densenet_backbones.heads import dsod_tiny
from densenet_backbones.heads.segmentation.fcdensenet import FCDenseNet


@pytest.mark.long
def test_memory_modes_beside_torchvisions(tmp_path, monkeypatch):
    file = tmp_path / "memory.json"
    planned = []

    def largest_batch(net, image_size, budget, *, memory, autocast, device):
        planned.append((tuple(image_size), budget, memory))
        return len(planned)

    monkeypatch.setattr(memory_benchmark, "largest_batch", largest_batch)
    tiny = ["--nets", "densenet121", "--size", "64", "--turns", "1", "--json", str(file)]
    assert main(["memory", *tiny]) == 0
    (table,) = json.loads(file.read_text())["tables"]
    rows = {row[""]: row for row in table["rows"]}
    peers = ["torchvision", "torchvision memory_efficient", "timm"]
    assert list(rows) == [*peers, *(f"ours memory={memory}" for memory in get_args(Memory))]
    saved = {name.removeprefix("ours memory="): row["saved MiB"] for name, row in rows.items()}
    checkpointing = [saved[memory] for memory in ("none", "bottleneck", "layer", "block")]
    assert sorted(checkpointing, reverse=True) == checkpointing
    efficient = saved["torchvision memory_efficient"]
    assert saved["none"] <= saved["torchvision"] and saved["bottleneck"] <= efficient
    assert saved["shared"] <= 0.5 * efficient and saved["shared_lean"] <= 0.25 * efficient
    updates = [row["BN updates"] for row in rows.values()]
    assert updates == ["1", "1 and 2", "1", *("1" for _ in get_args(Memory))]
    modes = ("none", "none", "none", *get_args(Memory))
    assert planned == [((3, 64, 64), 8 * 2**30, memory) for memory in modes]
    for number, row in enumerate(rows.values(), start=1):
        assert row["images in 8 GiB"] == number
        assert row["peak MiB"] > row["saved MiB"] and row["ms"][0] > 0


def test_memory_of_a_detector_without_a_peer(monkeypatch, capsys):
    monkeypatch.setattr(memory_benchmark, "dsod300", dsod_tiny)
    tiny = ["--nets", "dsod300", "--size", "160", "--turns", "1", "--budget", "0.1"]
    assert main(["memory", *tiny, "--modes", "none", "shared"]) == 0
    printed = capsys.readouterr().out
    pattern = r"^ours memory=(\w+) +([\d.]+) +([\d.]+) +[\d.]+ +(\d+) +1 "
    (none, kept, share, images), (shared, less, _, more) = re.findall(pattern, printed, re.M)
    assert (none, share, shared) == ("none", "1.00", "shared")
    assert float(less) < float(kept) and int(images) < int(more)
    assert int(images) == int(2 * 102.4 / float(kept))
    assert "step time / ours memory=none" in printed


@pytest.mark.parametrize("usable", [True, False])
def test_steps_beside_each_other_and_the_core_they_ran_on(usable, monkeypatch, tmp_path):
    monkeypatch.setattr(memory_benchmark, "dsod300", dsod_tiny)
    monkeypatch.setattr(memory_benchmark.native, "is_usable", lambda: usable)
    file = tmp_path / "steps.json"
    tiny = ["--net", "dsod300", "--inputs", "2x160", "1x160x192", "--precisions", "32-true"]
    tiny += ["--modes", "none", "shared", "--turns", "2", "--threads", "1", "--json", str(file)]
    assert main(["step", *tiny]) == 0
    tables = json.loads(file.read_text())["tables"]
    assert [table["measurement"] for table in tables] == ["step", "step"]
    assert [re.findall(r"\d+ images? of \d+x\d+", table["title"]) for table in tables] == [
        ["2 images of 160x160"],
        ["1 image of 160x192"],
    ]
    for table in tables:
        assert [row[""] for row in table["rows"]] == ["ours memory=none", "ours memory=shared"]
        for name in ("step time / ours memory=none", "CPU time / ours memory=none"):
            first, second = (row[name] for row in table["rows"])
            assert first == [1, 1] and len(second) == 2 and min(second) > 0
        assert table["note"].startswith("instructions: torch ")
        speed = re.search(r"multiply-adds in these turns: (\d+) ", table["note"])
        assert (float(speed[1]) > 1) if usable else speed is None


def test_memory_of_a_net_that_drops_out(monkeypatch):
    small = {"growth_rate": 4, "block_config": (1, 2, 1), "num_init_features": 8}
    build = {"fcdensenet103": lambda: FCDenseNet(3, drop_rate=0.5, **small)}
    monkeypatch.setattr(memory_benchmark, "_OTHERS", build)
    options = {"batch": 2, "size": 32, "turns": 1, "device": torch.device("cpu")}
    table = compare_memory_modes("fcdensenet103", **options)
    assert len(table.rows) == len(get_args(Memory))


@pytest.mark.long
def test_mixed_precision_keeps_less(monkeypatch):
    monkeypatch.setattr(memory_benchmark, "dsod300", dsod_tiny)
    options = {"batch": 2, "size": 160, "turns": 1, "device": torch.device("cpu")}
    whole, mixed = (
        compare_memory_modes("dsod300", bf16=bf16, modes=["none", "shared"], **options)
        for bf16 in (False, True)
    )
    assert "float32" in whole.title and "bf16-mixed" in mixed.title
    names = [column.name for column in whole.columns]
    for before, after in zip(whole.rows, mixed.rows, strict=True):
        for name, less in (("saved MiB", True), ("images in 8 GiB", False)):
            at = names.index(name)
            assert (after[at] < before[at]) is less, name


def test_modes_that_compute_something_else_are_not_timed(monkeypatch):
    small = {"growth_rate": 4, "block_config": (1, 2, 1), "num_init_features": 8}
    monkeypatch.setattr(memory_benchmark.torch, "manual_seed", lambda seed: None)  # drops differ
    build = {"fcdensenet103": lambda: FCDenseNet(3, drop_rate=0.5, **small)}
    monkeypatch.setattr(memory_benchmark, "_OTHERS", build)
    options = {"batch": 2, "size": 32, "turns": 1, "device": torch.device("cpu")}
    with pytest.raises(RuntimeError, match="losses differ by"):
        compare_memory_modes("fcdensenet103", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "densenet264"], "torchvision has no 'densenet264' to compare with"),
        (["--size", "32"], "--size must be >= 64"),
    ],
)
def test_memory_of_nothing_to_compare(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["memory", *arguments])
    assert message in capsys.readouterr().err


def test_saved_bytes_count_a_storage_once():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(16, 8, requires_grad=True)
    saved, out = measure_saved_bytes(layer, lambda: (layer(x) * layer(x[:8].repeat(2, 1))).sum())
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

    assert 8 << 20 <= measure_peak_bytes(step, torch.device("cpu")) < 9 << 20
