"""tools/detectors.sh, which makes the README's rows for torchvision's detectors."""

import json

import pytest
from locations import PROJECT
from row_scripts import rows_of, run_script

from densenet_backbones.training.cli import train_det

# A network and images so small that a step takes a second.
ARGS = {
    "backbone_kwargs": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8},
    "min_size": 64,
    "max_size": 96,
}
TINY = f"--model.args {json.dumps(ARGS, separators=(',', ':'))} --dry-run"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Arguments of each row's training."""
    folder = tmp_path_factory.mktemp("shown")
    return rows_of(
        "detectors.sh", "COCO", "BCCD", folder=folder, tool="train_det.py", flags="--epochs 3"
    )


def test_every_row_is_a_training_that_resolves(rows, capsys):
    assert {f"runs/detectors/{name}" for name in ("overfit_maskrcnn", "bccd_resnet50")} <= {*rows}
    for arguments in rows.values():
        with pytest.raises(SystemExit) as stop:
            train_det([*arguments, "--print_config"])
        shown = capsys.readouterr()
        assert stop.value.code in (0, None), shown.err
        assert "detector: " in shown.out
        assert "max_epochs: 3" in shown.out  # FLAGS come last
        assert "weights_backbone" not in shown.out  # from scratch


def test_compared_detectors_differ_in_the_backbone_alone():
    ours, theirs = (
        (PROJECT / "configs" / "det" / f"retinanet_{name}_bccd.yaml").read_text().splitlines()
        for name in ("densenet121", "resnet50")
    )
    differ = [
        (a, b)
        for a, b in zip(ours, theirs, strict=True)
        if a != b and not (a.startswith("#") and b.startswith("#"))
    ]
    assert len(differ) == 1
    assert differ[0][0].replace("densenet121_features", "resnet50") == differ[0][1]


@pytest.mark.long
def test_figures_are_drawn_and_trained_on(tmp_path):
    done = run_script(
        "detectors.sh", "no", "no", "overfit_keypointrcnn", folder=tmp_path, flags=TINY
    )
    assert done.returncode == 0, done.stderr
    assert "4 images a step" in done.stdout
    assert len(list((tmp_path / "runs/detectors/figures/train").iterdir())) == 80


def test_usage(tmp_path):
    wrong = run_script("detectors.sh", "COCO", "BCCD", "retinanet", folder=tmp_path)
    assert wrong.returncode == 2
    assert "there is no row retinanet; known: overfit_retinanet" in wrong.stderr
    assert "BCCD missing" in run_script("detectors.sh", "COCO", folder=tmp_path).stderr
