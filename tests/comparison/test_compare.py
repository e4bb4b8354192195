"""Comparison of runs: what their files say, with and without summaries."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from tiny_runs import files_below

from densenet_backbones.comparison.command import main
from densenet_backbones.comparison.runs import read_run
from densenet_backbones.comparison.tables import format_plain, tabulate_runs


@pytest.fixture
def runs(tiny_run, tmp_path):
    """A run, the same with another rate and a worse number, and one from before summaries."""
    others = [shutil.copytree(tiny_run, tmp_path / name) for name in ("slower | run", "old")]
    config = others[0] / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.002"))
    summary = json.loads((tiny_run / "summary.json").read_text())
    for entry in summary["evaluations"]:
        entry["numbers"]["AP"] /= 2
    (others[0] / "summary.json").write_text(json.dumps(summary))
    (others[1] / "summary.json").unlink()
    return [tiny_run, *others]


def test_a_summary_says_what_a_run_is_and_what_it_cost(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["ended"] == "finished" and summary["parameters"] == 46_668
    assert summary["experiment"]["images_per_step"] == 4 and summary["epochs_done"] == 2
    assert summary["data"]["train"]["images"] == 12 and len(summary["data"]["classes"]) == 6
    assert [(e["epoch"], e["step"]) for e in summary["evaluations"]] == [(1, 3), (2, 6)]
    best = max(e["numbers"]["AP"] for e in summary["evaluations"])
    assert summary["best"]["numbers"]["AP"] == best
    report = json.loads((tiny_run / "evaluation/metrics.json").read_text())
    assert report["coco"]["numbers"]["AP"] == pytest.approx(best, rel=1e-6)
    assert summary["time"]["wall_seconds"] > 0 and summary["time"]["images_per_second"] > 0
    assert summary["memory"]["peak_rss_bytes"] > 100 * 2**20
    assert {"torch", "processor", "python"} <= set(summary["machine"])


def test_runs_are_compared_in_every_form(runs, tmp_path, capsys):
    before = files_below(runs[0])
    out = tmp_path / "out"
    for _ in range(2):
        main([*map(str, runs[:2]), str(runs[2] / "model.safetensors"), "--out", str(out)])
    said = capsys.readouterr().out
    assert "model.optimizer.lr" in said and "0.002" in said and "data.seed" not in said
    assert sorted(files_below(out)) == ["comparison.csv", "comparison.md", "comparison.png"]
    assert sorted(files_below(tmp_path / "out-2")) == sorted(files_below(out))
    with (out / "comparison.csv").open(newline="") as file:
        whole, slower, old = csv.DictReader(file)
    assert float(slower["best"]) == pytest.approx(float(whole["best"]) / 2)
    assert slower["model.optimizer.lr"] == "0.002"
    # Table and log of an old run say the same; time and memory they do not.
    assert float(old["best"]) == pytest.approx(float(whole["best"]), rel=1e-6)
    assert (old["epoch"], old["parameters"]) == (whole["epoch"], "46668")
    assert old["seconds"] == "" and float(whole["seconds"]) > 0
    text = (out / "comparison.md").read_text()
    assert "slower \\| run" in text and text.count("\n| ") >= 4
    with Image.open(out / "comparison.png") as picture:
        assert picture.size[0] > 1000
    assert files_below(runs[0]) == before


def test_numbers_stay_whole_in_80_columns(runs):
    """Of a name that is too long, the run's folds; "parame-ters" is hard to read."""
    long = replace(read_run(runs[0]), name="few_photos_scratch-12", seconds=36000, macs=15e9)
    rows = tabulate_runs([long, replace(long, monitor="mIoU")])
    text = format_plain(rows, "Runs", 80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(cell in text for row in rows for cell in row[1:])


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "is no run" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"format": 1}', '{"format": 1, "monitor": 3, "memory": [], "time": 1}']
)
def test_a_damaged_summary_counts_as_missing(text, runs):
    (runs[2] / "summary.json").write_text(text)
    (runs[2] / "config.yaml").write_text("a: [")
    run = read_run(runs[2])
    assert run.best is not None and run.parameters == 46_668 and run.options == {}
    options, numbers = run.faults
    assert options.startswith(f"{runs[2]}/config.yaml: ") and "options are not compared" in options
    assert numbers.startswith(f"{runs[2]}/summary.json: is damaged; the numbers are those of")
