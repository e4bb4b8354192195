"""Lists of albumentations on the command line and in an experiment's file."""

import pytest
import yaml
from tiny_runs import training_arguments
from tiny_segmenters import segmentation_arguments

from densenet_backbones.training.cli import train_det, train_seg

LIST = [
    {"name": "Mosaic", "p": 0.5, "target_size": [64, 64], "cell_shape": [64, 64]},
    {"name": "OneOf", "transforms": [{"name": "HorizontalFlip"}, {"name": "Blur"}], "p": 0.9},
]


@pytest.mark.parametrize("task", ["det", "seg"])
def test_an_experiment_may_hold_a_list(
    task, tiny_scenes, tiny_masks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    mixed = [*LIST, {"name": "MixUp", "p": 0.5}] if task == "det" else LIST
    (tmp_path / "listed.yaml").write_text(yaml.safe_dump({"data": {"augmentation": mixed}}))
    train, words, data = {
        "det": (train_det, training_arguments, tiny_scenes),
        "seg": (train_seg, segmentation_arguments, tiny_masks),
    }[task]
    words = words(data, "--config", "listed.yaml", "--dry-run", epochs=1)
    at = words.index("--data.augmentation") if "--data.augmentation" in words else len(words)
    train(words[:at] + words[at + 2 :])
    assert "Dry run done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ("[{name: HorizontalFlop}]", 1, "'HorizontalFlop' is no transform of albumentations"),
        ("ssdd", 2, "data.augmentation must be one of 'ssd'"),
    ],
)
def test_wrong_lists_end_in_one_line(
    given, status, message, tiny_scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train_det(training_arguments(tiny_scenes, "--data.augmentation", given, epochs=1))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == status and line.startswith("error: ") and message in line, line
