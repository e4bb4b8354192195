import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densenet_backbones.benchmark import measuring
from densenet_backbones.benchmark import startup as startup_benchmark
from densenet_backbones.benchmark.command import main
from densenet_backbones.benchmark.deployed.models import measure_peak
from densenet_backbones.benchmark.input_pipeline import (
    STEP,
    build_input_table,
    build_pipelines,
    build_training_step,
    measure,
)
from densenet_backbones.benchmark.measuring import Timing, interleave
from densenet_backbones.benchmark.startup import compare_compilation, compare_imports
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.scenes.generation import generate_scenes
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


def test_a_turn_of_several_steps_is_their_mean(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 2.0

    assert interleave({"a": step}, turns=2, repeats=5)[0].seconds == (2.0, 2.0)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        interleave({"a": step}, turns=2, repeats=0)


def test_ratios_are_taken_turn_by_turn():
    ours, theirs = Timing("ours", (1.0, 2.0, 4.0)), Timing("theirs", (2.0, 2.0, 2.0))
    assert theirs.compute_ratios(ours) == (2.0, 1.0, 0.5)
    assert ours.milliseconds == (1000.0, 2000.0, 4000.0)


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
    printed = capsys.readouterr().out
    rows = re.findall(
        r"^(\w+) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +\d", printed, re.M
    )
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
    table = build_input_table("", timings, 10, 4)
    assert table.column("images/s")[0] == pytest.approx((100, 50, 25))
    assert table.column("images/s")[2] == pytest.approx((8, 8, 2))
    shares = table.column("batch on one core / step")
    assert shares[0] == pytest.approx((0.08, 0.16, 0.08)) and shares[2] is None
    assert table.column("workers to keep up") == [1, 4, None]


def test_input_of_drawn_scenes(capsys):
    tiny = ["--detector", "dsod_tiny", "--batch", "2", "--images", "2", "--turns", "1"]
    assert main(["input", *tiny]) == 0
    printed = capsys.readouterr().out
    assert "2 images a turn of scenes/train, at 160x160" in printed
    for name in (*PIPELINES, STEP):
        spread = r" +[\d.]+ +[\d.]+ \([\d.]+ \.\. [\d.]+\)"
        assert re.search(rf"^{re.escape(name)}{spread}", printed, re.M), name


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate_scenes(
        tmp_path_factory.mktemp("scenes"), train=3, val=1, size=64, progress=False
    )


def test_input_of_a_folder_with_mixed_precision(scenes):
    options = {"turns": 1, "detector": "dsod_tiny", "batch": 4, "precision": "bf16-mixed"}
    table = measure(str(scenes), "train", images=99, device=torch.device("cpu"), **options)
    assert "3 images a turn" in table.title  # all there are
    assert "batch 4, bf16-mixed" in table.title


def test_input_of_real_photographs(shared_data, capsys):
    tiny = ["--detector", "dsod_tiny", "--batch", "2", "--images", "2", "--turns", "1"]
    assert main(["input", *tiny, "--data", str(shared_data / "bccd" / "BCCD")]) == 0
    assert "2 images a turn" in capsys.readouterr().out


def test_each_turn_augments_anew_on_one_core_and_gives_the_cores_back(scenes, monkeypatch):
    found = read_detection(scenes, "train")
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    keys, cores = [], []
    augment = "densenet_backbones.benchmark.input_pipeline.Augmentation.__call__"

    def watched(self, image, boxes, labels, key):
        keys.append(key)
        cores.append(len(os.sched_getaffinity(0)) if before else 1)
        return image, boxes, labels

    monkeypatch.setattr(augment, watched)
    steps = build_pipelines(found, dsod_tiny(num_classes=4))
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
    step = build_training_step(model, found, 4, "32-true")  # more than there are images
    step()
    after = list(model.parameters())
    assert all(p.grad is not None for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="loss is nan"):
        step()


# -- starting -----------------------------------------------------------------------------------


def test_imports_are_timed_in_processes_of_their_own(monkeypatch):
    programs = {"light": "import json", "heavy": "import densenet_backbones.variants"}
    monkeypatch.setattr(startup_benchmark, "_IMPORTS", programs)
    table = compare_imports(turns=1)
    assert table.column("") == ["light", "heavy"]
    (light,), (heavy,) = table.column("s")
    assert 0 < light < 1 < 10 * heavy / light  # ours brings torch
    monkeypatch.setattr(startup_benchmark, "_IMPORTS", {"none": "import no_such_package"})
    with pytest.raises(RuntimeError, match="No module named 'no_such_package'"):
        compare_imports(turns=1)


def test_compiling_starts_with_empty_caches(monkeypatch):
    """The programs are run here, and nothing is compiled."""
    caches, nets = [], []
    monkeypatch.setattr(torch, "compile", lambda net: nets.append(type(net).__name__) or net)

    def run(program, **environment):
        folder = Path(environment["TORCHINDUCTOR_CACHE_DIR"])
        assert folder.is_dir() and not list(folder.iterdir())
        assert environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1"
        caches.append(folder)
        printed = []
        exec(program, {"print": printed.append})
        return printed[0]

    monkeypatch.setattr(startup_benchmark, "_time_program", run)
    size, device = (1, 3, 32, 32), torch.device("cpu")
    table = compare_compilation("densenet121", size, turns=1, device=device)
    assert table.column("") == ["timm", "ours deployed"]
    assert sorted(nets) == ["DenseFeatureNet", "FeatureListNet"]
    assert len(set(caches)) == 2 and not any(folder.exists() for folder in caches)


# -- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inference", "--threads", "0"], "--threads: must be a whole number >= 1, got '0'"),
        (["inference", "--device", "abacus"], "--device must be like cpu or cuda:0, got 'abacus'"),
        (["inference", "--repeats", "few"], "--repeats: must be a whole number >= 1, got 'few'"),
        (["inference", "--json", "no/such/times.json"], "there is no folder"),
        (["all", "--plot", "picture.gif"], "--plot must end in .png or .svg, got 'picture.gif'"),
        (["memory", "--budget", "0"], "--budget must be above 0, got 0.0"),
        (["memory", "--modes", "all"], "invalid choice: 'all'"),
        (["step", "--inputs", "1x48"], "--inputs must have sides >= 64, got 1x48"),
        (["step", "--net", "resnet18"], "torchvision has no 'resnet18' to compare with"),
        (["startup", "--inputs", "224"], "must be like 1x224"),
        (["startup", "--net", "resnet18"], "--net: invalid choice: 'resnet18'"),
        (["inference", "--net", "resnet18"], "--net must be one of"),
        (["inference", "--turns", "0"], "--turns: must be a whole number >= 1, got '0'"),
        (["detector", "--size", "32"], "--size must be >= 64, got 32"),
        (["detector", "--detector", "retinanetfpn"], "retinanetfpn"),
        (
            ["detector", "--backbones", "resnet"],
            "no backbone is called 'resnet'; did",
        ),
        (
            ["detector", "--detector", "resnet18"],
            "resnet18 cannot be built on densenet121_features",
        ),
        (["input", "--images", "0"], "--images must be >= 1 and --batch >= 2, got 0 and 8"),
        (["input", "--batch", "1"], "--images must be >= 1 and --batch >= 2, got 32 and 1"),
        (["input", "--data", "no/such/folder"], "no/such/folder: there is no such file or folder"),
        (["input", "--images", "1", "--detector", "dsod30"], "no detector is called 'dsod30'"),
        (["input", "--images", "1", "--detector", "resnet18"], "resnet18 has no one size"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


WITHOUT_TRAINING_TOOLS = """
import sys
sys.modules.update(dict.fromkeys(("rich", "cv2", "pycocotools", "lightning", "albumentations")))
from densenet_backbones.benchmark import command, startup
# What works without them, and takes its time:
startup.compare_imports = startup.compare_answers = lambda turns: None
command.Report.add = lambda *table: None
for name in ("input", "startup"):
    try:
        command.main([name, "--quick"])
    except SystemExit as end:
        print(end.code)
"""


def test_without_the_training_tools_it_says_what_to_install():
    command = [sys.executable, "-c", WITHOUT_TRAINING_TOOLS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packages = re.findall(
        r"error: this measurement needs (\w+): install densenet-backbones\[train\]", done.stderr
    )
    assert len(packages) == 2, done.stderr
    assert packages[0] in ("cv2", "albumentations") and packages[1] in ("pycocotools", "rich")
    assert done.stdout.splitlines().count("2") == 2, "exit status of each"


def test_whole_models_beside_themselves_exported(capsys):
    assert main(["deployed", "--quick"]) == 0
    printed = capsys.readouterr().out
    for contender in ("ours deployed", "onnxruntime", "OpenVINO", "ours, as trained"):
        assert re.search(rf"^{contender} +[\d.]+ \(", printed, re.M)
    assert "GFLOP/s a core in this process" in printed


@pytest.mark.long
def test_whole_models_in_8_bits(capsys, monkeypatch):
    assert main(["deployed", "--quick", "--int8"]) == 0
    printed = capsys.readouterr().out
    for contender in ("OpenVINO", "onnxruntime, 8 bits", "OpenVINO, 8 bits"):
        assert re.search(rf"^{contender} +[\d.]+ \(", printed, re.M)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "nncf" else find(name, *at)
    )
    with pytest.raises(SystemExit):
        main(["deployed", "--quick", "--int8"])
    assert 'pip install "densenet-backbones[int8]"' in capsys.readouterr().err


def test_the_peak_is_above_what_products_reach():
    peak = measure_peak()
    matrix = torch.ones(256, 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (timing,) = interleave({"product": lambda: matrix @ matrix}, 100)
    finally:
        torch.set_num_threads(threads)
    assert peak is not None
    assert 0.2 * peak < 2 * 256**3 / min(timing.seconds) < 1.05 * peak
