"""The heat map as a user draws it, from names, runs and files of weights."""

import csv

import pytest
import timm
from safetensors.torch import save_file
from tiny_runs import files_below

from densenet_backbones.anatomy.heatmap import draw_heatmap, main, name_folder
from densenet_backbones.anatomy.opening import open_model


def test_a_run_is_drawn_with_its_head(tiny_run, tmp_path, capsys):
    before = files_below(tiny_run)
    for _ in range(2):
        main([str(tiny_run), "--out", str(tmp_path / "map")])
    assert files_below(tiny_run) == before
    assert sorted(files_below(tmp_path / "map")) == ["heatmap.csv", "heatmap.png", "heatmap.txt"]
    assert sorted(files_below(tmp_path / "map-2")) == sorted(files_below(tmp_path / "map"))
    said = capsys.readouterr().out
    assert "random weights" not in said and said.count("the paper") == 0
    assert said.count("held: ") + said.count("cannot be told: ") == 16  # twice four, drawn twice
    with (tmp_path / "map/heatmap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"layer", "transition", "head"}
    assert {row["block"] for row in rows} == {f"backbone.denseblock{n}" for n in range(1, 5)}
    assert all(float(row["plain"]) > 0 for row in rows)


def test_segmenters_and_configs_are_drawn(tiny_segmentation, tmp_path, capsys):
    draw_heatmap(str(tiny_segmentation), out=tmp_path / "seg")
    assert "no column of it" in capsys.readouterr().out
    for name in ("det/quickstart", "cls/quickstart", "configs/seg/quickstart.yaml"):
        draw_heatmap(name, out=tmp_path / name.replace("/", "-"))
        assert "random weights" in capsys.readouterr().out
    kinds = [open_model(f"{folder}/quickstart").kind for folder in ("det", "seg", "cls")]
    assert kinds == ["detector", "segmenter", "classifier"]


def test_weights_of_a_name_are_read(tmp_path, capsys):
    net = timm.create_model("densenet40_k12_features", features_only=False, num_classes=4)
    net.classifier.weight.data.fill_(3.0)
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(weights, tmp_path / "net.safetensors")
    out = draw_heatmap("densenet40_k12", str(tmp_path / "net.safetensors"), tmp_path / "out")
    with (out / "heatmap.csv").open(newline="") as file:
        values = {r["plain"] for r in csv.DictReader(file) if r["kind"] == "classifier"}
    assert values == {"3"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["densnet121"], "did you mean 'densenet121'"),
        (["resnet18"], "no dense block"),
        (["nowhere.safetensors"], "there is no"),
        (["nowhere.yaml"], "there is no such config"),
        (["densenet121", "--weights", "nowhere.safetensors"], "there is no such file"),
    ],
)
def test_what_is_no_dense_model_is_refused(refused_command, words, sentence):
    code, error = refused_command(main, *words)
    assert code == 1 and sentence in error


def test_names_open_as_what_they_are():
    kinds = {"densenet40_k12": "classifier", "dsod_tiny": "detector", "fcdensenet56": "segmenter"}
    assert {name: open_model(name).kind for name in kinds} == kinds


def test_folders_are_named_by_what_is_drawn():
    assert name_folder("heatmap", "runs/mine") == "heatmap-mine"
    assert name_folder("heatmap", "a/b c.yaml") == "heatmap-b-c"
    assert name_folder("heatmap", "..") == "heatmap-model"
