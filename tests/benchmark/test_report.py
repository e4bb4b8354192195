import argparse
import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from densenet_backbones.benchmark import command as benchmark
from densenet_backbones.benchmark import report
from densenet_backbones.benchmark.charts import draw
from densenet_backbones.benchmark.command import main
from densenet_backbones.benchmark.report import Column, Table, Unavailable
from densenet_backbones.benchmark.subcommands import SUBCOMMANDS, Subcommand

TABLE = Table(
    "two nets",
    (Column(""), Column("ms", ".1f"), Column("ratio", ".2f", spread=True), Column("n", ",d")),
    (("ours", (1.0, 2.0, 4.0), (1.0, 1.0, 1.0), 1234), ("the others", (3.0,), None, None)),
    note="of nothing",
)


def test_a_table_in_words():
    assert TABLE.text().splitlines() == [
        "two nets",
        "             ms   ratio (min .. max)      n",
        "ours        2.0  1.00 (1.00 .. 1.00)  1,234",
        "the others  3.0                    -      -",
        "of nothing",
    ]
    assert TABLE.column("ms") == [(1.0, 2.0, 4.0), (3.0,)]


def fake(name, run, **options):
    return Subcommand(name, "", lambda parser: None, run, **options)


def measured(arguments):
    yield TABLE
    yield TABLE


def ends_early(arguments):
    yield TABLE
    raise RuntimeError("losses differ\nby much")


def needs_more(arguments):
    raise Unavailable("it needs cv2")
    yield


@pytest.fixture
def fakes(monkeypatch):
    commands = (
        fake("early", ends_early, devices=("cpu",)),
        fake("more", needs_more, devices=("cpu",)),
        fake("fine", measured, devices=("cpu",)),
        fake("card", measured, devices=("cuda",)),
    )
    monkeypatch.setattr(benchmark, "SUBCOMMANDS", commands)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_one_failure_does_not_lose_the_others(fakes, tmp_path, capsys):
    file = tmp_path / "all.json"
    assert main(["all", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "early on cpu: FAILED, RuntimeError: losses differ\n" in printed
    assert "more on cpu: not measured, it needs cv2\n" in printed
    assert "card on a GPU: not measured, PyTorch finds no CUDA device\n" in printed
    found = json.loads(file.read_text())
    assert found["command"] == f"densenet-benchmark all --json {file}" and not found["quick"]
    assert [table["measurement"] for table in found["tables"]] == ["early", "fine", "fine"]
    assert found["tables"][0]["rows"][0] == {
        "": "ours",
        "ms": [1.0, 2.0, 4.0],  # of every turn
        "ratio": [1.0, 1.0, 1.0],
        "n": 1234,
    }
    assert found["failed"] == {"early on cpu": "RuntimeError: losses differ"}
    assert list(found["not_measured"]) == ["more on cpu", "card on a GPU"]
    assert f"torch {torch.__version__.partition('+')[0]}" in found["machine"]["packages"]


def test_what_is_measured_alone_fails_in_full(fakes):
    with pytest.raises(RuntimeError, match="by much"):
        main(["early"])
    assert main(["fine"]) == 0


def test_quick_options_yield_to_those_given(monkeypatch, capsys):
    seen = []

    def run(arguments):
        seen.append((arguments.size, arguments.turns))
        return iter(())

    def declare(parser):
        parser.add_argument("--size", type=int, default=224)
        parser.add_argument("--turns", type=int, default=10)

    command = Subcommand("one", "", declare, run, quick=("--size", "64", "--turns", "1"))
    monkeypatch.setattr(benchmark, "SUBCOMMANDS", (command,))
    main(["one"])
    assert "not to be quoted" not in capsys.readouterr().out
    main(["one", "--quick", "--turns", "3"])
    assert "not to be quoted" in capsys.readouterr().out
    main(["all", "--quick"])
    assert seen[:3] == [(224, 10), (64, 3), (64, 1)]


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=lambda command: command.name)
def test_quick_options_are_known(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.parse_args(command.quick)


def test_packages_that_are_not_there_have_no_version(monkeypatch):
    monkeypatch.setattr(report, "_PACKAGES", ("torch", "no-such-package"))
    assert report.describe_machine()["packages"].endswith(", no-such-package (none)")


# -- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_of_times_and_memory(suffix, tmp_path):
    bars = replace(TABLE, rows=TABLE.rows[:1] * 2, chart=("ratio",), title="times")
    points = replace(bars, chart=("ratio", "ms"), title="memory", rows=TABLE.rows[:1])
    file = tmp_path / f"picture{suffix}"
    draw([bars] * 4 + [TABLE, points], "a machine", file)
    if suffix == ".svg":
        texts = re.findall("<!-- (.*?) -->", file.read_text())
        assert texts.count("times") == 4 and texts.count("memory") == 1
        assert texts.count("ours") == 4 * 2 + 1  # at the bars, and in the legend
        assert "a machine" in texts and "two nets" not in texts
    else:
        with Image.open(file) as picture:
            assert min(picture.size) > 600


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([TABLE], "", tmp_path / "a.png")


def test_pictures_need_matplotlib_before_anything_is_measured(fakes, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        main(["all", "--plot", "a.png"])
    out = capsys.readouterr()
    assert "--plot needs matplotlib: pip install matplotlib" in out.err and out.out == ""
