"""Recipes: chosen by kind and size of the data, named, and fitted to it."""

import argparse
import itertools
import json
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from foreign_sets import write_layout
from tiny_runs import DETECTOR_ARGS

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.dense_block import rank_modes
from densenet_backbones.training import cli, running
from densenet_backbones.training.arguments import (
    DETECTION_FORM,
    RECIPE,
    SEGMENTATION_FORM,
    find_config,
    list_configs,
)
from densenet_backbones.training.precision import has_fast_half
from densenet_backbones.training.recipes.choice import choose_recipe, insert_recipe
from densenet_backbones.training.recipes.facts import DataFacts, gather_facts, read_data
from densenet_backbones.training.recipes.pretrained import find_densenet121_weights

pytestmark = pytest.mark.usefixtures("empty_figures")

KINDS = ("boxes", "masks", "keypoints", "semantic")
CASES = list(itertools.product(KINDS, (12, 400, 20_000), (None, Path("/w.pth")), (False, True)))


def choose(kind, images, weights, has_gpu, **more):
    return choose_recipe(DataFacts(kind, images, (640, 480), **more), weights, has_gpu)


def test_every_recipe_is_a_shipped_experiment_with_keys_of_its_own_and_is_named():
    for case in CASES:
        kind, images, weights, _ = case
        recipe = choose(*case)
        form = SEGMENTATION_FORM if kind == "semantic" else DETECTION_FORM
        written = yaml.safe_load(list_configs(form)[recipe.config].read_text())
        assert recipe.config in recipe.reason and f"{images} images" in recipe.reason
        assert ("from scratch" in recipe.reason) == (weights is None)
        args = written["model"].get("args", {})
        if weights:
            assert recipe.options["model.args.weights_backbone"] == "/w.pth"
        elif "weights_backbone" in args:  # nothing is fetched
            assert recipe.options["model.args.weights_backbone"] is None
        seen = images * recipe.options["trainer.max_epochs"]
        assert 3000 <= seen <= 600_000
        assert recipe.options["data.batch_size"] == "auto"


def test_fewer_images_get_more_epochs_and_small_objects_larger_images():
    epochs = [choose("boxes", n, None, False).options["trainer.max_epochs"] for n in (20, 80, 800)]
    assert epochs == sorted(epochs, reverse=True) and len(set(epochs)) == 3
    for weights, key in ((None, "image_size"), (Path("/w"), "min_size")):
        large, small = (
            choose("boxes", 80, weights, False, small_object=side).options for side in (90.0, 11.0)
        )
        assert small[f"model.args.{key}"] > large.get(f"model.args.{key}", 300)


def test_the_kind_is_what_most_objects_have(tiny_scenes, tmp_path):
    def look(data_type, root):
        return gather_facts(read_data(["--data.root", str(root), "--model.x=1"], data_type))

    boxes = look(DetectionData, tiny_scenes / "VOC")
    assert (boxes.kind, boxes.images, boxes.size) == ("boxes", 12, (64, 64))
    assert 2 < boxes.small_object < 40
    assert look(DetectionData, tiny_scenes).kind == "masks"
    assert look(SegmentationData, tiny_scenes / "VOC").kind == "semantic"
    # Outlines that are the corners of the boxes are none.
    text = (tiny_scenes / "annotations/instances_train.json").read_text()
    root = tmp_path / "corners"
    (root / "annotations").mkdir(parents=True)
    (root / "train").symlink_to(tiny_scenes / "train")
    content = yaml.safe_load(text)
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    assert look(DetectionData, root).kind == "boxes"


def insert(arguments, data_type=DetectionData):
    form = DETECTION_FORM if data_type is DetectionData else SEGMENTATION_FORM
    return insert_recipe(arguments, data_type, lambda name: find_config(name, form))


def test_keypoints_that_cannot_be_learned_are_said(tmp_path):
    """Else one faulty number would make a detector of boxes of it without a word."""
    file = write_layout("coco beside images", tmp_path) / "annotations.json"
    arguments = [f"--data.root={tmp_path}", "--model.x=1"]
    assert gather_facts(read_data(arguments, DetectionData)).unused == ""
    content = json.loads(file.read_text())
    content["annotations"][0]["keypoints"][2] = -1
    file.write_text(json.dumps(content))
    facts = gather_facts(read_data(arguments, DetectionData))
    assert facts.kind == "boxes"
    assert facts.unused.startswith("Its keypoints are left aside: ")
    assert "1 annotation has faulty keypoints" in facts.unused and "photo 0.jpg" in facts.unused


def test_what_is_typed_comes_after_the_recipe(tiny_scenes):
    typed = [f"--data.root={tiny_scenes}/VOC", "--trainer.max_epochs=3"]
    assert insert(typed) == (typed, [])
    full, lines = insert([f"--config={RECIPE}", *typed])
    assert "few_photos_scratch" in full[0] and full[-2:] == typed and len(lines) == 1
    assert "--trainer.check_val_every_n_epoch=1" in full  # an evaluation within three epochs
    full, _ = insert([f"--config={RECIPE}", *typed, "--model.detector=fcos_fpn"])
    assert not any(word.startswith("--model.args.") for word in full)
    assert "--model.args=null" in full
    with pytest.raises(argparse.ArgumentError, match="bach_size"):
        insert([f"--config={RECIPE}", *typed, "--data.bach_size=3"])


def test_masks_are_fine_tuned_by_adamw():
    scratch, tuned = (choose("semantic", 80, w, False).options for w in (None, Path("/w.pth")))
    assert "model.optimizer.name" not in scratch  # the config's
    assert tuned["model.optimizer.name"] == "adamw"
    assert tuned["model.optimizer.layer_decay"] < 1


def test_weights_are_found_in_the_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "densenet_backbones.training.recipes.pretrained.try_to_load_from_cache", lambda *a: None
    )
    assert find_densenet121_weights() is None
    file = tmp_path / "hub/checkpoints/densenet121-a639ec97.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_densenet121_weights() == file
    theirs = tmp_path / "model.safetensors"
    theirs.touch()
    monkeypatch.setattr(
        "densenet_backbones.training.recipes.pretrained.try_to_load_from_cache",
        lambda *a: str(theirs),
    )
    assert find_densenet121_weights() == theirs


def test_data_without_a_config_is_trained_by_a_recipe(tiny_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    cli.train_det(
        [
            *("--data", str(tiny_scenes / "VOC"), "--dry-run"),
            *("--model.args.image_size=64", "--trainer.accelerator", "cpu"),
            f"--model.args.adapter_channels={DETECTOR_ARGS['adapter_channels']}",
            f"--model.args.backbone_kwargs={DETECTOR_ARGS['backbone_kwargs']}",
            *("--data.num_workers", "0"),
        ]
    )
    said = capsys.readouterr().out
    assert "Recipe few_photos_scratch (12 images of about 64x64 with boxes), from scratch" in said
    autocast = torch.bfloat16 if has_fast_half() else None
    fastest = rank_modes(torch.device("cpu"), torch.float32, autocast)[0]
    assert f"Chosen for this machine: 3 images a step, memory mode {fastest}, precision" in said
    assert "Dry run done" in said


@pytest.mark.long
@pytest.mark.parametrize("kind", ["boxes", "masks", "semantic"])
def test_recipes_begin_with_weights_from_a_cache(kind, tiny_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/densenet121-a639ec97.pth"
    file.parent.mkdir(parents=True)
    published = torchvision.models.densenet121(num_classes=1000).state_dict()
    torch.save(published, file)
    root = tiny_scenes if kind == "masks" else tiny_scenes / "VOC"
    train = cli.train_seg if kind == "semantic" else cli.train_det
    kept = []
    monkeypatch.setattr(running, "fit", kept.append)
    monkeypatch.setattr(running.report, "report_results", lambda *args: None)
    train(["--data", str(root), "--trainer.accelerator", "cpu", "--data.num_workers", "0"])
    said = capsys.readouterr().out
    assert "from the pretrained weights" in said and str(file) in said
    own = kept[0].model.model.state_dict()
    (name,) = [n for n in own if n.endswith("denseblock2.denselayer3.conv1.weight")]
    assert torch.equal(own[name], published["features.denseblock2.denselayer3.conv1.weight"])
    assert kept[0].config.data.batch_size == "auto" and kept[0].datamodule.batch == 3
