"""Names of options of earlier releases: in model files and in configs."""

import json

import pytest
import safetensors.torch
import yaml
from tiny_runs import DETECTOR_ARGS, PYRAMID_ARGS, training_arguments
from tiny_segmenters import UNET_ARGS, segmentation_arguments

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.heads.renamed_options import NESTED, RENAMED, rename_options
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.inference.segmenter import SegmenterSpec
from densenet_backbones.training.cli import train_det, train_seg

DSOD = DetectorSpec("dsod_tiny", DETECTOR_ARGS, Categories(("dog", "cat"), (7, 3)))
PYRAMID = DetectorSpec("retinanet_fpn", PYRAMID_ARGS, DSOD.categories)
SSD_ARGS = {"image_size": 64, "backbone_kwargs": DETECTOR_ARGS["backbone_kwargs"]}
SSD = DetectorSpec("ssd300", SSD_ARGS, DSOD.categories)
UNET = SegmenterSpec("unet", UNET_ARGS, MaskClasses(("a", "b"), ((0, 0, 0), (9, 9, 9)), (0, 1)))

# Of each old name a model that had it, an old value, and what it is today.
EXAMPLES = [
    (UNET, "backbone_args", UNET_ARGS["backbone_kwargs"], {}),
    (DSOD, "detections_per_image", 7, {"detections_per_img": 7}),
    (DSOD, "nms_threshold", 0.3, {"nms_thresh": 0.3}),
    (DSOD, "pretrained_backbone", True, {"weights_backbone": "timm"}),
    (UNET, "pretrained_backbone", True, {"weights_backbone": "timm"}),
    (UNET, "pretrained_backbone", False, {"weights_backbone": None}),
    (DSOD, "score_threshold", 0.2, {"score_thresh": 0.2}),
    (PYRAMID, "trainable_layers", 2, {"trainable_backbone_layers": 2}),
    (DSOD, "preprocessing", {"std": [2, 3, 4]}, {"image_std": [2, 3, 4]}),
    (
        PYRAMID,
        "preprocessing",
        {"mean": [0, 0, 0], "min_size": 48},
        {"image_mean": [0] * 3, "min_size": 48},
    ),
    (SSD, "preprocessing", {"channel_order": "bgr"}, {"channel_order": "bgr"}),
    (UNET, "normalization", {"mean": [0, 0, 0]}, {"image_mean": [0, 0, 0]}),
]


def test_every_old_name_has_an_example():
    assert {old for _, old, _, _ in EXAMPLES} == {*RENAMED, *NESTED}


def written_before(spec, old, value):
    """A description as format 1 had it, where an option stands under its old name."""
    today = rename_options({old: value})
    args = {name: given for name, given in spec.args.items() if name not in today}
    return {**spec.to_dict(), "format": 1, "args": {**args, old: value}}


@pytest.mark.parametrize(("spec", "old", "value", "today"), EXAMPLES)
def test_a_model_file_with_an_old_name_loads(spec, old, value, today, tmp_path):
    model = spec.build()
    save_model(tmp_path / "new.safetensors", spec, model)
    weights = safetensors.torch.load_file(tmp_path / "new.safetensors")
    described = json.dumps(written_before(spec, old, value))
    safetensors.torch.save_file(weights, tmp_path / "old.safetensors", {spec.key: described})
    loaded = load(tmp_path / "old.safetensors")
    assert loaded.spec.args == {**spec.args, **today}
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    assert json.loads(json.dumps(loaded.spec.to_dict()))["format"] == 2


FACTS = {
    "mean": [1.0, 2.0, 3.0],
    "std": [4.0, 5.0, 6.0],
    "channel_order": "bgr",
    "value_range": 255,
}


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (DSOD, {"image_size": [64, 64]}),
        (PYRAMID, {"min_size": 48, "max_size": 90, "size_divisible": 32, "fixed_size": None}),
        (SSD, {"min_size": 64, "max_size": 64, "size_divisible": 1, "fixed_size": [64, 64]}),
        (UNET, {}),
    ],
)
def test_a_preprocessing_described_by_old_names_is_taken(spec, sizes, tmp_path):
    """Each kind of model described it in a way of its own."""
    model = spec.build()
    save_model(tmp_path / "new.safetensors", spec, model)
    weights = safetensors.torch.load_file(tmp_path / "new.safetensors")
    described = json.dumps({**spec.to_dict(), "format": 1, "preprocessing": {**sizes, **FACTS}})
    safetensors.torch.save_file(weights, tmp_path / "old.safetensors", {spec.key: described})
    loaded = load(tmp_path / "old.safetensors").model
    transform = loaded.normalization if spec is UNET else loaded.transform
    today = transform.to_dict()
    assert today["image_mean"] == FACTS["mean"] and today["image_std"] == FACTS["std"]
    assert (today["channel_order"], today["value_range"]) == ("bgr", 255)
    if spec is PYRAMID:
        assert (today["min_size"], today["max_size"], today["image_size"]) == (48, 90, None)
    elif spec is not UNET:
        assert today["image_size"] == [64, 64] and today["size_divisible"] == 1


def test_a_name_given_twice_is_refused():
    for options in ({"nms_threshold": 1, "nms_thresh": 0}, {"nms_thresh": 1, "nms_threshold": 1}):
        with pytest.raises(ValueError, match="nms_threshold is an old name of nms_thresh"):
            rename_options(options)


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_a_config_with_old_names_runs(kind, tiny_scenes, tiny_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if kind == "detector":
        train, arguments = train_det, training_arguments(tiny_scenes)
        args = {**DETECTOR_ARGS, "score_threshold": 0.2, "nms_threshold": 0.4}
        args |= {"detections_per_image": 3, "pretrained_backbone": False}
    else:
        train, arguments = train_seg, segmentation_arguments(tiny_masks)
        args = {**UNET_ARGS, "pretrained_backbone": False}
        args["backbone_args"] = args.pop("backbone_kwargs")
    place = arguments.index("--model.args")
    del arguments[place : place + 2]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"model": {"args": args}}))
    train(["--config", "old.yaml", *arguments, "--dry-run"])
    assert "Dry run done" in capsys.readouterr().out
