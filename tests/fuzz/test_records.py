"""Files that our own commands write, with any of their values replaced: read, or one sentence."""

import copy
import json
import math
import platform
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from densenet_backbones.anatomy.prune_report import PruneReport
from densenet_backbones.comparison.runs import read_run
from densenet_backbones.comparison.tables import tabulate_runs
from densenet_backbones.data.sets.split_file import read_split
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.exported import models
from densenet_backbones.reporting.plots import plot_training_curves
from densenet_backbones.training.progress.summary import FORMAT
from densenet_backbones.training.resuming import lock
from densenet_backbones.training.run_folder import HOLDER, _read_starts
from densenet_backbones.tuning import plan

VALUES = (math.inf, math.nan, 10**400, -1, "[/red]", [], {}, None, True, "DEEP")
NUMBERS = {"AP": 0.5}
SUMMARY = {
    "format": FORMAT,
    "monitor": "AP",
    "evaluations": [{"epoch": 1, "numbers": NUMBERS}],
    "memory": {"peak_rss_bytes": 10**9},
    "time": {"wall_seconds": 3.0, "images_per_second": 4.0, "step_cpu_seconds": 1.0},
    "experiment": {"memory_kept_bytes": 5, "images_per_step": 2},
    "parameters": 100,
    "macs": 1e9,
    "ended": "done",
}
PRUNING = {
    "connections_before": 5,
    "connections_after": 3,
    "absent_layers": ["a"],
    "rows": [{"title": "before", "parameters": 3, "macs": 4, "numbers": NUMBERS}],
}
SWEEP = {
    "format": plan.FORMAT,
    "words": ["--data", "x"],
    "knobs": {"model.lr": [0.1, 0.2]},
    "seeds": [0],
    "sampler": "tpe",
    "pruner": "none",
    "sampler_seed": 0,
    "points": 4,
    "keep_checkpoints": False,
}
MODEL = {
    "format": 2,
    "name": "dsod_tiny",
    "args": {"image_size": 64},
    "categories": {"names": ["cat", "dog"], "ids": [1, 2]},
    "preprocessing": {"image_mean": [0.0] * 3, "image_std": [1.0] * 3},
    "best_score": 0.5,
}
SPLIT = {"seed": 0, "fraction": 0.1, "group_pattern": None, "train": ["a"], "val": ["b"]}


def read_holder(folder: Path) -> None:
    lock._is_left_behind(lock._read_holder(folder))


def read_facts(folder: Path) -> None:
    """The description in an exported file, with what its runtime gives in a stand-in."""
    facts = {DetectorSpec.key: (folder / "facts.json").read_text()}
    with patch.object(models, "open_runtime", lambda _: SimpleNamespace(facts=facts)):
        models.read_exported(folder / "model.onnx")


RECORDS = {
    "summary": ("summary.json", SUMMARY, lambda folder: tabulate_runs([read_run(folder)])),
    "pruning": ("prune.json", PRUNING, PruneReport.read),
    "sweep": (plan.NAME, SWEEP, plan.read_plan),
    "split": ("split.json", SPLIT, lambda folder: read_split(folder / "split.json")),
    "starts": (
        "environment.json",
        [{"packages": {"a": "1"}}],
        lambda folder: _read_starts(folder / "environment.json"),
    ),
    "facts": ("facts.json", MODEL, read_facts),
    "holder": (HOLDER, {"process": 1, "host": platform.node(), "since": "now"}, read_holder),
}


def replace_values(content: object) -> list[str]:
    """JSON of the content with each value in turn replaced by each of `VALUES`."""
    texts = []

    def walk(parent: object, root: object) -> None:
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            own = parent[key]
            for value in VALUES:
                parent[key] = value
                texts.append(json.dumps(root).replace('"DEEP"', "[" * 5000 + "]" * 5000))
            parent[key] = own
            if isinstance(own, dict | list):
                walk(own, root)

    root = copy.deepcopy(content)
    walk(root, root)
    return texts


@pytest.mark.parametrize("name", RECORDS)
def test_any_value_is_read_or_refused(name, tmp_path):
    file, content, read = RECORDS[name]
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / file).write_text(json.dumps(content))
    read(tmp_path)
    for text in replace_values(content):
        (tmp_path / file).write_text(text)
        try:
            read(tmp_path)
        except ValueError as error:
            assert "\n" not in str(error), text[:200]


@pytest.mark.parametrize("cell", ["9" * 200_000, "\0", "inf", "-"])
def test_tables_are_read_as_far_as_they_are_whole(cell, tmp_path):
    metrics = tmp_path / "metrics.csv"
    (tmp_path / "config.yaml").write_text("a: 1\n")
    metrics.write_text(f"epoch,step,val/AP\n0,9,0.5\n1,19,{cell}\n")
    assert read_run(tmp_path).curve == ((1.0, 0.5),)
    plot_training_curves(metrics, tmp_path / "curves.png")
