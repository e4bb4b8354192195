"""Runs of earlier versions are loaded, evaluated and resumed: `add.py` says how they were made."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import signals_as_before

from densenet_backbones.checkpoints import read_checkpoint
from densenet_backbones.training import cli, evaluate
from tests.zoo.add import DATA, MODELS, ZOO, compute_scores, unpack

pytestmark = pytest.mark.usefixtures("empty_figures")

VERSIONS = sorted(folder.name for folder in ZOO.glob("[0-9]*"))
COMMANDS = {"det": cli.train_det, "seg": cli.train_seg}


@pytest.fixture(params=[(version, kind) for version in VERSIONS for kind in MODELS], ids="-".join)
def entry(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """Unpacks an entry and its data into the current folder; returns the folder and the kind."""
    version, kind = request.param
    unpack(ZOO / "scenes.tar.xz", tmp_path)
    unpack(ZOO / version / f"{kind}.tar.xz", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path, kind


def read_numbers(file: Path, kind: str) -> dict[str, float]:
    report = json.loads(file.read_text())
    numbers: dict[str, Any] = (report["coco"] if kind == "det" else report)["numbers"]
    return {key: math.nan if value is None else value for key, value in numbers.items()}


def test_predictions_are_the_same(entry: tuple[Path, str]) -> None:
    folder, kind = entry
    expected = json.loads((folder / kind / "scores.json").read_text())
    assert compute_scores(folder, kind) == pytest.approx(expected, abs=1e-5)
    checkpoint = folder / kind / "checkpoints/last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 2  # four images, two a step


@pytest.mark.long
def test_evaluations_are_the_same(entry: tuple[Path, str]) -> None:
    folder, kind = entry
    model, out = str(folder / kind / "model.safetensors"), folder / "again"
    options = ["--data", DATA[kind], "--accelerator", "cpu", "--workers", "0", "--out", str(out)]
    evaluate.main([model, *options])
    expected = read_numbers(folder / kind / "evaluation/metrics.json", kind)
    found = read_numbers(out / "metrics.json", kind)
    assert found.items() >= expected.items() or found == pytest.approx(expected, nan_ok=True)


@pytest.mark.long
def test_trainings_go_on(entry: tuple[Path, str]) -> None:
    folder, kind = entry
    shutil.rmtree(folder / kind / "evaluation")
    with signals_as_before():
        COMMANDS[kind](["--resume", "--run-dir", kind, "--epochs", "2"])
    assert read_checkpoint(folder / kind / "checkpoints/last.ckpt")["global_step"] == 4
    numbers = read_numbers(folder / kind / "evaluation/metrics.json", kind)
    assert all(0 <= value <= 1 for value in numbers.values() if not math.isnan(value))
