"""Evaluation of fewer images than processes: equal numbers to one process's."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from forked_processes import run_on_two
from locations import PROJECT
from torch.utils.data import DataLoader

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.training import evaluate
from densenet_backbones.training.tasks.detection import DetectionTask


def keep_one_image(root, split):
    """Cut a drawn data set's split down to its first image, in both layouts."""
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    first = content["images"][0]
    content["images"] = [first]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == first["id"]]
    file.write_text(json.dumps(content))
    for name in (root / split).iterdir():
        if name.name != first["file_name"]:
            name.unlink()
    for names in (root / "VOC" / "ImageSets").rglob(f"{split}.txt"):
        names.write_text(names.read_text().splitlines()[0] + "\n")
    return root


@pytest.fixture
def one_val_image(tiny_scenes, tmp_path):
    return keep_one_image(shutil.copytree(tiny_scenes, tmp_path / "data"), "val")


def test_a_process_without_images_evaluates_others_and_does_not_count_them(one_val_image):
    for rank, counts in ((0, True), (1, False), (2, False)):
        data = DetectionData(str(one_val_image), num_workers=0, batch_size=2)
        strategy = SimpleNamespace(root_device=SimpleNamespace(type="cpu"))
        data.trainer = SimpleNamespace(world_size=3, global_rank=rank, strategy=strategy)
        data.make_evaluated_images = lambda data=data: data.val_set.records
        loader = data.val_dataloader()
        assert isinstance(loader, DataLoader) and len(loader) == 1
        assert len(next(iter(loader))) == 1
        task = SimpleNamespace(trainer=data.trainer, datamodule=data)
        assert DetectionTask.counts_images.fget(task) == counts


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="gloo as on Linux")
@pytest.mark.parametrize("kind", ["detector", "segmenter"])
@pytest.mark.usefixtures("empty_figures")
def test_two_processes_and_one_image_equal_one_process(
    kind, tiny_run, tiny_segmentation, one_val_image, tmp_path
):
    run = tiny_run if kind == "detector" else tiny_segmentation
    data = one_val_image if kind == "detector" else one_val_image / "VOC"
    numbers = []
    for devices in ("2", "1"):
        out = tmp_path / devices
        words = [str(run / "model.safetensors"), "--data", str(data), "--out", str(out)]
        words += ["--devices", devices, "--accelerator", "cpu", "--workers", "0"]
        if devices == "2":
            words = [PROJECT / "tools/evaluate.py", *words, "--strategy", "ddp"]
            said = tmp_path / "said.txt"
            assert run_on_two(words, said) == [0, 0], said.read_text()
        else:
            evaluate.main(words)
        numbers.append(json.loads((out / "metrics.json").read_text()))
    assert numbers[0] == numbers[1]
    images = numbers[0]["coco"]["images"] if kind == "detector" else numbers[0]["images"]
    assert images == 1
